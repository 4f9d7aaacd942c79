"""Options of the command that several verbs share, each group a dataclass with a field per option."""

import functools
import inspect
import math
from collections.abc import Callable
from dataclasses import MISSING, fields, is_dataclass
from typing import Any, get_type_hints

import typer
import typer.core


def grouped(command: Callable[..., None]) -> Callable[..., None]:
    """The command as typer sees it: a parameter whose type is a dataclass becomes an option for each of its fields.

    `def verb(model: Model, judge: JudgeOptions)` is called with `judge` made from its options.
    """
    hints = get_type_hints(command, include_extras=True)
    groups: dict[str, type] = {}
    parameters: list[inspect.Parameter] = []
    for name, parameter in inspect.signature(command).parameters.items():
        if is_dataclass(hints[name]):
            groups[name] = hints[name]
            parameters += _parameters(hints[name])
        else:
            parameters.append(parameter.replace(annotation=hints[name], kind=inspect.Parameter.KEYWORD_ONLY))

    @functools.wraps(command)
    def called(**given: Any) -> None:
        made = {
            name: kind(**{each.name: given.pop(each.name) for each in fields(kind)}) for name, kind in groups.items()
        }
        command(**given, **made)

    called.__signature__ = inspect.Signature(parameters)  # pyright: ignore[reportAttributeAccessIssue]
    called.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    del called.__wrapped__  # pyright: ignore[reportAttributeAccessIssue]  (or the original's annotations are read)
    return called


def _parameters(group: type) -> list[inspect.Parameter]:
    hints = get_type_hints(group, include_extras=True)
    kind = inspect.Parameter.KEYWORD_ONLY
    found = []
    for each in fields(group):
        default = inspect.Parameter.empty if each.default is MISSING else each.default
        found.append(inspect.Parameter(each.name, kind, default=default, annotation=hints[each.name]))
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
