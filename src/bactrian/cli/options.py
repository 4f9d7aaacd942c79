"""Options of the command that several verbs share, each group a dataclass with a field per option."""

import copy
import functools
import inspect
import math
from collections.abc import Callable
from dataclasses import MISSING, dataclass, fields, is_dataclass
from typing import Annotated, Any, get_args, get_origin, get_type_hints

import typer
import typer.core

from bactrian.errors import InputError


@dataclass(frozen=True)
class Prefix:
    """The beginning of the names of a group's options: `Annotated[Options, Prefix("judge")]` has `--judge-…`."""

    text: str


BackTo = Annotated[
    str | None,
    typer.Option(
        "--from-checkpoint",
        metavar="STAGE:STEP",
        help="Go back to a checkpoint that is kept; what came after it is set aside in the run's folder.",
    ),
]


def checkpoint_of(text: str, stages: Any) -> Any:
    """A stage of the recipe and a step, of STAGE:STEP. Raises `InputError`."""
    stage, _, step = text.partition(":")
    if stage not in stages or not (step.isascii() and step.isdecimal() and len(step) < 19):
        raise InputError(f"--from-checkpoint {text}: write STAGE:STEP, for example {next(iter(stages))}:100")
    return stage, int(step)


def grouped(command: Callable[..., None]) -> Callable[..., None]:
    """The command as typer sees it: a parameter whose type is a dataclass becomes an option for each of its fields.

    `def verb(model: Model, judge: JudgeOptions)` is called with `judge` made from its options.
    """
    hints = get_type_hints(command, include_extras=True)
    groups: dict[str, tuple[type, str]] = {}
    parameters: list[inspect.Parameter] = []
    for name, parameter in inspect.signature(command).parameters.items():
        kind, prefix = _group(hints[name])
        if kind is not None:
            groups[name] = kind, prefix
            parameters += _parameters(kind, prefix)
        else:
            parameters.append(parameter.replace(annotation=hints[name], kind=inspect.Parameter.KEYWORD_ONLY))

    @functools.wraps(command)
    def called(**given: Any) -> None:
        made = {
            name: kind(**{each.name: given.pop(prefix + each.name) for each in fields(kind)})
            for name, (kind, prefix) in groups.items()
        }
        command(**given, **made)

    called.__signature__ = inspect.Signature(parameters)  # pyright: ignore[reportAttributeAccessIssue]
    called.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    del called.__wrapped__  # pyright: ignore[reportAttributeAccessIssue]  (or the original's annotations are read)
    return called


def _group(hint: Any) -> tuple[type | None, str]:
    """The dataclass that a parameter's type is, or None, and what its options' names begin with."""
    if is_dataclass(hint) and isinstance(hint, type):
        return hint, ""
    kind, *notes = get_args(hint) if get_origin(hint) is Annotated else (None,)
    prefix = next((note.text for note in notes if isinstance(note, Prefix)), None)
    return (None, "") if prefix is None else (kind, f"{prefix}_")


def _parameters(group: type, prefix: str) -> list[inspect.Parameter]:
    hints = get_type_hints(group, include_extras=True)
    kind = inspect.Parameter.KEYWORD_ONLY
    found = []
    for each in fields(group):
        default = inspect.Parameter.empty if each.default is MISSING else each.default
        hint = hints[each.name]
        if prefix:
            plain, option = get_args(hint)
            option = copy.copy(option)
            option.param_decls = (f"--{prefix}{each.name}".replace("_", "-"),)  # for a flag too, which has no --no-…
            hint = Annotated[plain, option]
        found.append(inspect.Parameter(prefix + each.name, kind, default=default, annotation=hint))
    return found


def a_number(value: float | None) -> float | None:
    """A callback of options: NaN lies between no bounds, and passes them all. Raises typer's error for the option."""
    if value is not None and math.isnan(value):
        raise typer.BadParameter("nan is not a number")
    return value


class WithDefault(typer.core.TyperGroup):
    """A group of verbs of which one, the group's first hidden one, is meant where no verb is named."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        hidden = next((name for name, command in self.commands.items() if command.hidden), None)
        if hidden and args and args[0] not in self.commands and args[0] not in ("-h", "--help"):
            args = [hidden, *args]
        return super().parse_args(ctx, args)
