"""Commands in processes of their own that start at once: copies of one in which the package is imported already.

Reads one JSON object per line: {"command": […], "cache": PATH, "at": how many writes to make before SIGKILL, or null,
"signal": a signal's number, "after": seconds before it, or null}. Answers each with {"code": …, "err": …}.
"""

import json
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any


def main() -> None:
    from bactrian import pipeline  # noqa: F401  what takes seconds
    from bactrian.cli import app
    from bactrian.train import checkpoint  # noqa: F401

    for line in sys.stdin:
        print(json.dumps(run(json.loads(line), app.main)), flush=True)


def run(asked: dict[str, Any], command: Callable[[], None]) -> dict[str, Any]:
    with tempfile.TemporaryFile() as err:
        child = os.fork()
        if not child:
            begin(asked, command, err.fileno())
        if asked["after"] is not None:
            ended = wait(child, asked["after"])
            if ended is None:
                os.kill(child, asked["signal"])
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) if asked["after"] is None or ended is None else ended
        err.seek(0)
        return {"code": code, "err": err.read().decode()}


def wait(child: int, seconds: float) -> int | None:
    over = time.monotonic() + seconds
    while time.monotonic() < over:
        found, status = os.waitpid(child, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.002)
    return None


def begin(asked: dict[str, Any], command: Callable[[], None], err: int) -> None:
    """The copy's life: the command, as if it had been started."""
    os.dup2(err, 2)
    os.dup2(os.open(os.devnull, os.O_RDWR), 0)
    os.dup2(0, 1)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.argv = ["bactrian", *asked["command"]]
    os.environ["BACTRIAN_CACHE"] = asked["cache"]
    if asked["at"] is not None:
        die_at(asked["at"])
    sys.exit(command())


def die_at(count: int) -> None:
    """Be killed at the given write: halfway, that is with some of it done or before it is."""
    left = [count]

    def dying(function: Callable) -> Callable:
        def call(*arguments: Any, **named: Any) -> Any:
            left[0] -= 1
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*arguments, **named)

        return call

    for name in ("fsync", "replace", "rename", "mkdir", "unlink", "pwrite"):
        setattr(os, name, dying(getattr(os, name)))


if __name__ == "__main__":
    main()
