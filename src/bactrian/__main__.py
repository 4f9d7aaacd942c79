"""The command `bactrian`, and `python -m bactrian`: Ctrl-C is taken before anything else is loaded."""

import os
import sys

# Of which `signal` is made; this is at hand already.
from _signal import SIGINT, default_int_handler, getsignal, signal  # pyright: ignore[reportMissingImports]


def main() -> None:
    """The `bactrian` command."""
    # Not where it is ignored, as in what a shell starts in the background.
    if getsignal(SIGINT) is default_int_handler:
        signal(SIGINT, _leave)
    from bactrian.children import isolate

    isolate()  # before anything else is imported: Python may have put the working folder first
    from contextlib import suppress

    from bactrian.cli import app

    try:
        app.main()
    except SystemExit as leaving:
        if leaving.code in (130, 75):
            # What was interrupted may have threads at work, which an interpreter does not end well beside.
            for stream in (sys.stdout, sys.stderr):
                with suppress(OSError):
                    stream.flush()
            os._exit(leaving.code)
        raise


def _leave(number: int, frame: object) -> None:
    """What SIGINT does while the command loads and after it is done: nothing is there that has to be tidied up."""
    os.write(2, b"interrupted\n")
    os._exit(130)


if __name__ == "__main__":
    main()
