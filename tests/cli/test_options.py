"""Options in groups: typer sees each, the verb is called with the groups; a group of verbs has a default."""

from dataclasses import dataclass
from typing import Annotated

import typer
from typer.testing import CliRunner

from bactrian.cli.options import WithDefault, grouped


@dataclass(frozen=True)
class Speed:
    """How fast."""

    rate: Annotated[int, typer.Option(help="A rate.")] = 3
    slow: Annotated[bool, typer.Option("--slow", help="Slowly.")] = False


def make() -> tuple[typer.Typer, list]:
    app, seen = typer.Typer(cls=WithDefault), []

    @app.command("go")
    @grouped
    def go(where: Annotated[str, typer.Argument()], speed: Speed = Speed(), twice: bool = False) -> None:
        seen.append((where, speed, twice))

    @app.command("other", hidden=True)
    def other(thing: str) -> None:
        seen.append(thing)

    return app, seen


def test_a_group_is_made_of_its_options():
    app, seen = make()
    assert CliRunner().invoke(app, ["go", "home", "--rate", "7", "--slow"]).exit_code == 0
    assert CliRunner().invoke(app, ["go", "away", "--twice"]).exit_code == 0
    assert seen == [("home", Speed(7, True), False), ("away", Speed(), True)]
    text = CliRunner().invoke(app, ["go", "--help"]).output
    assert "A rate." in text and "Slowly." in text


def test_what_is_no_verb_goes_to_the_hidden_one():
    app, seen = make()
    assert CliRunner().invoke(app, ["something"]).exit_code == 0
    assert seen == ["something"]
    assert CliRunner().invoke(app, ["go"]).exit_code == 2
