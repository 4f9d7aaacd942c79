"""Ctrl-C, from the first instant of the process to its last: one line, exit code 130, no traceback.

SIGINT is taken in one of three ways, each a signal handler. While the command loads, the process leaves (`__main__`).
A verb at work is interrupted by KeyboardInterrupt, which tidies up what it holds (`raised`). A run saves first, as by
SIGTERM (`hosts.joined`). However it is taken, a second one leaves at once: a thread hears of it even while the main
thread is inside a compiler.
"""

import _thread
import os
import select
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from types import FrameType
from typing import Any, NoReturn

from bactrian.errors import Preempted

CODE = 130  # as shells say it of a command that SIGINT ended
AGAIN = "interrupted again: left at once, and saved nothing more"
_DEADLINE = 10.0  # seconds that an interrupted verb has to tidy up
_RETRY = 0.01  # seconds until an interrupt that a library has swallowed is raised again


def leave(said: str = "interrupted") -> NoReturn:
    """End the process now, with one line and nothing else."""
    # A bar that was being drawn hides the cursor, and has not ended its line.
    start = "\x1b[?25h\n" if os.isatty(2) else ""
    try:
        os.write(2, f"{start}{said}\n".encode())
    finally:
        os._exit(CODE)


@contextmanager
def raised() -> Iterator[Callable[[], bool]]:
    """While this lasts SIGINT is a KeyboardInterrupt in the main thread, and a second one leaves at once.

    Yields what says whether one came, since a library may catch anything.
    """
    before, came = signal.getsignal(signal.SIGINT), []
    if before is signal.SIG_IGN or before is None or not _is_main():
        yield lambda: False
        return

    def interrupt(number: int, frame: FrameType | None) -> None:
        if came:
            leave(AGAIN)
        came.append(number)
        _raise(number, frame)

    heard, told = os.pipe()
    os.set_blocking(told, False)
    hook = sys.unraisablehook
    wake = signal.set_wakeup_fd(told, warn_on_full_buffer=False)
    os.register_at_fork(after_in_child=partial(_deafen, told))
    sys.unraisablehook = partial(_raise_again, hook)
    signal.signal(signal.SIGINT, interrupt)
    _thread.start_new_thread(_hear, (heard, interrupt))
    try:
        yield lambda: bool(came)
    finally:
        signal.signal(signal.SIGINT, before)
        signal.setitimer(signal.ITIMER_REAL, 0)
        sys.unraisablehook = hook
        signal.set_wakeup_fd(wake)
        os.close(told)  # at which the thread ends


@contextmanager
def each_raised() -> Iterator[None]:
    """While this lasts every SIGINT is a KeyboardInterrupt, for who catches them and goes on: a chat, an event loop."""
    before = signal.getsignal(signal.SIGINT)
    if before is signal.SIG_IGN or before is None or not _is_main():
        yield
        return
    wake = signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
        signal.set_wakeup_fd(wake)


@contextmanager
def kept(what: str) -> Iterator[None]:
    """Says of work that is interrupted what of it is kept, and that the same command goes on with that."""
    try:
        yield
    except Preempted:
        raise
    except KeyboardInterrupt:
        raise Preempted(f"interrupted; {what} is kept, and the same command goes on with it", CODE) from None


def _is_main() -> bool:
    import threading

    return threading.current_thread() is threading.main_thread()


def _raise(number: int, frame: FrameType | None) -> None:
    # What loads a module may turn whatever is raised into an error of its own, or end the process.
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            leave()
        frame = frame.f_back
    raise KeyboardInterrupt


def _raise_again(hook: Callable[[Any], object], unraisable: Any) -> None:
    """Raise an interrupt again that came where nothing can be raised, as in a callback of the garbage collector."""
    if issubclass(unraisable.exc_type, KeyboardInterrupt):
        signal.signal(signal.SIGALRM, _raise)
        signal.setitimer(signal.ITIMER_REAL, _RETRY)
    else:
        hook(unraisable)


def _hear(heard: int, interrupt: Callable[..., None]) -> None:
    """Leave at a second SIGINT, or when a verb that was interrupted has not ended after a while."""
    count = 0
    # A signal that this thread were given would not wake the main thread.
    signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    try:
        while True:
            is_ending = count > 0 and signal.getsignal(signal.SIGINT) is interrupt
            if not select.select([heard], [], [], _DEADLINE if is_ending else None)[0]:
                leave()
            signals = os.read(heard, 64)
            if not signals:
                return
            count += signals.count(signal.SIGINT)
            if count > 1:
                leave(AGAIN)
    finally:
        os.close(heard)


def _deafen(told: int) -> None:
    """In a copy of this process: its signals are not this one's."""
    if (wake := signal.set_wakeup_fd(-1)) != told:
        signal.set_wakeup_fd(wake)
