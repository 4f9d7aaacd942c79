"""`bactrian data build`: a data recipe becomes a data set, and its account is printed."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from bactrian import progress
from bactrian.data import build, tokenizer
from bactrian.data.build import recipe as recipes
from bactrian.data.build.recipe import Build
from bactrian.data.chat import Chat
from bactrian.model import hub


def run(path: Path, overrides: Sequence[str], out: Path | None, processes: int | None, as_json: bool) -> None:
    """Build the data set of a recipe file and print its ledger. Raises `InputError`s."""
    recipe = recipes.load(path, overrides)
    folder = out or Path("data") / recipe.name
    ledger = build.build(recipe, _chat(recipe), folder, processes)
    if as_json:
        progress.show_json(ledger)
    else:
        _print(ledger)
    rows, account = f"{ledger['written']:,} in {folder}", folder / "ledger.json"
    progress.say(f"done: {folder}", f"  rows             {rows}", f"  account          {account}")


def _chat(recipe: Build) -> Chat | None:
    """What the recipe counts tokens with."""
    if recipe.tokenizer is None:
        return None
    return Chat(tokenizer.load(hub.locate_tokenizer(recipe.tokenizer.source)), recipe.tokenizer.chat)


def _print(ledger: dict[str, Any]) -> None:
    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("source")
    for column in ("read", "kept", "written", "tokens", "learnt"):
        table.add_column(column, justify="right")
    table.add_column("dropped")
    for entry in (*ledger["sources"], {**ledger, "name": "all", "dropped": {}}):
        counts = [entry[key] for key in ("read", "kept", "written", "tokens", "learned_tokens")]
        dropped = ", ".join(f"{count:,} {reason}" for reason, count in sorted(entry["dropped"].items()))
        table.add_row(entry["name"], *("" if count is None else f"{count:,}" for count in counts), dropped)
    progress.table(200).print(table)
