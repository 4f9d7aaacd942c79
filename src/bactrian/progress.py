"""What a person sees while a run goes on: a line per thing that happens, a bar for what takes long."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

console = Console(stderr=True, highlight=False)

_WORTH_A_LINE = 1.0  # seconds: what is over sooner needs no progress shown


def say(text: str) -> None:
    """One line about what has just happened or is about to."""
    console.print(text, markup=False, soft_wrap=True)


class Bar:
    """One bar; `to` moves it."""

    def __init__(self, progress: Progress, title: str, total: int, done: int):
        self._progress = progress
        self._title = title
        self._task = progress.add_task(title, total=total, completed=done, note="")
        self._plain = not console.is_terminal
        self._tenths = -1
        self._opened = time.monotonic()

    def to(self, done: int, total: int, note: str = "") -> None:
        """Show that `done` of `total` are done; `note` says how it goes."""
        self._progress.update(self._task, completed=done, total=total, note=note)
        # Where nothing can be redrawn, a line now and then.
        long = time.monotonic() - self._opened > _WORTH_A_LINE
        if self._plain and long and total and 10 * done // total != self._tenths:
            self._tenths = 10 * done // total
            say(f"{self._title} {done}/{total} {note}")


@contextmanager
def bar(title: str, total: int, done: int = 0) -> Iterator[Bar]:
    """A progress bar with rate and time left."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TaskProgressColumn(show_speed=False),
        TextColumn("{task.fields[note]}"),
        TimeRemainingColumn(compact=True),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        yield Bar(progress, title, total, done)
