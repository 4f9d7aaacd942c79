"""What a person sees while a run goes on: a line per thing that happens, a bar for what takes long."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.text import Text

from bactrian.errors import printable, shown
from bactrian.files import documents
from bactrian.masking import mask_line, masked


class Plain(Console):
    """A console for text from anywhere: nothing in it is markup or an emoji's name, and nothing in it drives a
    terminal. Colours are given as styles."""

    def __init__(self, stderr: bool = False, soft_wrap: bool = True, width: int | None = None):
        super().__init__(stderr=stderr, soft_wrap=soft_wrap, width=width, markup=False, emoji=False, highlight=False)

    def render_str(self, text: str, **how: Any) -> Text:
        return super().render_str(shown(text), **how)


console = Plain(stderr=True)

_WORTH_A_LINE = 1.0  # seconds: what is over sooner needs no progress shown


def say(*lines: str) -> None:
    """What has just happened or is about to, a line each, on the standard error."""
    for line in lines:
        console.print(printable(mask_line(line)))


def tell(text: str) -> None:
    """Why a command ends, a line on the standard error; of every process of a run, also of those that say nothing."""
    print(printable(mask_line(text)), file=sys.stderr, flush=True)


def show(text: str) -> None:
    """A line, or a text, that the command was asked for, on the standard output: as it is, but a terminal is not driven
    by it."""
    print(shown(text) if sys.stdout.isatty() else text, flush=True)


def show_json(value: Any) -> None:
    """A value that the command was asked for, as one line of JSON on the standard output."""
    show(documents.dumps(masked(value)))


def table(width: int) -> Plain:
    """A console for tables on the standard output, so wide where that is no terminal."""
    return Plain(soft_wrap=False, width=None if sys.stdout.isatty() else width)


class Bar:
    """One bar; `to` moves it."""

    def __init__(self, progress: Progress, title: str, total: int, done: int):
        self._progress = progress
        self._title = title
        self._task = progress.add_task(printable(title), total=total, completed=done, note="")
        self._plain = not console.is_terminal
        self._tenths = -1
        self._opened = time.monotonic()

    def to(self, done: int, total: int, note: str = "") -> None:
        """Show that `done` of `total` are done; `note` says how it goes."""
        self._progress.update(self._task, completed=done, total=total, note=printable(note))
        # Where nothing can be redrawn, a line now and then.
        long = time.monotonic() - self._opened > _WORTH_A_LINE
        if self._plain and long and total and 10 * done // total != self._tenths:
            self._tenths = 10 * done // total
            say(f"{self._title} {done}/{total} {note}")


@contextmanager
def bar(title: str, total: int, done: int = 0) -> Iterator[Bar]:
    """A progress bar with rate and time left."""
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TaskProgressColumn(show_speed=False),
        TextColumn("{task.fields[note]}", markup=False),
        TimeRemainingColumn(compact=True),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        yield Bar(progress, title, total, done)
