"""One door for words to a person: a line each, nothing in them is markup, and a terminal is not driven by them."""

import io
import json
import sys

import pytest
from rich.table import Table

from bactrian import progress

HOSTILE = "[red]a[/nope] :smile: \x1b[2J\x9b1m\u202eb"
SHOWN = "[red]a[/nope] :smile: \\x1b[2J\\x9b1m\\u202eb"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_message_is_what_it_says(monkeypatch: pytest.MonkeyPatch):
    said = Terminal()
    monkeypatch.setattr(sys, "stderr", said)
    progress.say(f"{HOSTILE}\nand more", "  indented")
    progress.tell(HOSTILE)
    assert said.getvalue() == f"{SHOWN} and more\n  indented\n{SHOWN}\n"
    progress.say("x" * 100_000)
    assert len(said.getvalue().splitlines()[-1]) <= 400


def test_what_was_asked_for_is_as_it_is_but_drives_no_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    progress.show(HOSTILE)
    progress.show_json({"text": HOSTILE, "mean": float("nan")})
    first, second = capsys.readouterr().out.splitlines()
    assert first == HOSTILE and json.loads(second) == {"text": HOSTILE, "mean": None}
    terminal = Terminal()
    monkeypatch.setattr(sys, "stdout", terminal)
    progress.show(f"{HOSTILE}\nand more")
    assert terminal.getvalue() == f"{SHOWN}\nand more\n"


def test_tables_and_bars_read_no_markup(capsys: pytest.CaptureFixture[str]):
    table = Table(title=HOSTILE)
    table.add_column(HOSTILE)
    table.add_row(HOSTILE)
    progress.table(140).print(table)
    assert capsys.readouterr().out.count(SHOWN) == 3
    console = progress.Plain(stderr=True, width=200)
    console.file, console._force_terminal = io.StringIO(), True
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(progress, "console", console)
        with progress.bar(HOSTILE, 3) as bar:
            bar.to(1, 3, HOSTILE)
    drawn = console.file.getvalue()
    assert SHOWN in drawn and "\x9b1m" not in drawn
