"""How a process ends that might not end by itself: for threads that libraries leave behind Python waits for ever."""

import os
import sys
import threading
import time
from typing import NoReturn

from bactrian import errors
from bactrian.errors import RunFailed

_PATIENCE = 5.0  # seconds that a failed process has to end in order
_LEISURE = 60.0  # seconds that one has in which all went well: a tracker may be sending what is left


def surely(code: int) -> None:
    """See that this process has ended with `code` some seconds after its main thread is done, whatever else runs."""

    def end() -> None:
        threading.main_thread().join()
        time.sleep(_PATIENCE if code else _LEISURE)
        _flush()
        os._exit(code)

    threading.Thread(target=end, daemon=True).start()


def at_once(text: str) -> NoReturn:
    """End this process from any thread with one line: a failed run's."""
    _flush()
    os.write(2, f"{errors.line(RunFailed(text))}\n".encode())
    os._exit(RunFailed.exit_code)


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):  # closed, or full: there is nobody to tell
            continue
