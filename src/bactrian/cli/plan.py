"""`bactrian plan RECIPE`: what a recipe needs on hardware that is not here."""

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from bactrian.cli.options import a_number


def plan(
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE", help="A recipe, a TOML file.")],
    target: Annotated[str, typer.Option(help="A TPU slice or GPUs: v3-512, v5p-256, v5e-16, 8xh100, 64xa100-80, …")],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Changes to the recipe.")
    ] = None,
    stage: Annotated[Literal["sft", "dpo"] | None, typer.Option(help="The first stage's if not given.")] = None,
    search: Annotated[
        bool, typer.Option("--search", help="Try meshes, microbatches and remat; show the best that fit.")
    ] = False,
    check: Annotated[
        bool, typer.Option("--check", help="Fail where the compiled text moves what it should not.")
    ] = False,
    price: Annotated[
        float | None, typer.Option(callback=a_number, min=0, max=1e6, help="Dollars for a chip, or a GPU, for an hour.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Compile a recipe for hardware that is not here: memory, time, cost. Exits with 1 where it does not fit."""
    from bactrian import progress
    from bactrian import recipe as recipes
    from bactrian.errors import InputError, RecipeError, RunFailed
    from bactrian.plan import check as checking
    from bactrian.plan import planning, show, targets, versions
    from bactrian.plan import search as searching

    if search and check:
        raise InputError("--check reads one plan; give it the settings that --search finds")
    whole, where = recipes.load(recipe, overrides or []), targets.find(target)
    name = stage or next(iter(whole.stages()))
    if name not in whole.stages():
        raise RecipeError(f"{recipe}: the recipe has no section [{name}]")
    untested = versions.warning(versions.installed())
    if untested:
        progress.say(f"warning: {untested}")
    if search:
        found = []
        for planned in searching.best(whole, name, where):
            found.append(planned)
            _show(planned.to_json(price) if as_json else [show.summary(planned, price)])
        if not found:
            raise RunFailed(f"{where.name}: no mesh, microbatch and remat that was tried fits; take a larger target")
        return
    planned = planning.make(whole, name, where, planning.kinds_of(whole, name))
    _show(planned.to_json(price) if as_json else show.lines(planned, price))
    if not planned.fits:
        raise RunFailed(show.misfit(planned))
    strange = checking.violations(planned) if check else []
    if strange:
        raise RunFailed(f"{where.name}: {strange[0]}" + (f" (and {len(strange) - 1} more)" if strange[1:] else ""))


def _show(said: dict[str, Any] | list[str]) -> None:
    from bactrian import progress

    if isinstance(said, dict):
        progress.show_json(said)
    else:
        progress.show("\n".join(said))
