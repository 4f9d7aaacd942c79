"""One tree of what can go wrong.

    BactrianError
    ├── InputError             the user's input; the command prints one line and exits with 2
    │   ├── RecipeError        a recipe: unknown key, wrong type, contradiction
    │   ├── DataError          a data file or row: where it is and what is wrong with it
    │   ├── ModelError         a model's folder, file or name
    │   ├── ChatError          messages that a chat format cannot render
    │   └── RunError           a run folder that belongs to something else, or cannot be written
    └── RunFailed              the run itself went wrong; exits with 1
        ├── GateFailed         a check before the first step does not hold
        ├── JudgeError         a judge or model behind an address cannot be reached, or does not answer
        ├── OutputLost         the standard output is full, closed, or read by nobody any more
        ├── HostLost           another process of the run did not come, was killed, or cannot be reached
        └── Diverged           a loss or gradient that is not finite

    KeyboardInterrupt
    └── Preempted              told to stop, it did; exits with 75, or with 130 after Ctrl-C; says what comes again

Every message says what, where and what to do, on one line. What a machine refuses (memory, disk, files, threads) is
said on a line too, by `refusal`. Anything else is a bug and keeps its traceback. A stop is none of the errors that a
library may catch to go on.
"""

import errno
import re
import resource
import signal
from collections.abc import Callable


class BactrianError(Exception):
    """Whatever the project raises on purpose; `exit_code` is what the command returns."""

    exit_code = 1


class InputError(BactrianError):
    exit_code = 2


class RecipeError(InputError):
    pass


class DataError(InputError):
    """`kind` names what is wrong with a row, for counting: `missing_key`, `wrong_type`, …"""

    def __init__(self, message: str, kind: str = "does_not_fit"):
        super().__init__(message)
        self.kind = kind


class ModelError(InputError):
    pass


class ChatError(InputError):
    pass


class RunError(InputError):
    pass


class RunFailed(BactrianError):
    exit_code = 1


class GateFailed(RunFailed):
    pass


class JudgeError(RunFailed):
    pass


class HostLost(RunFailed):
    pass


class OutputLost(RunFailed):
    """`is_quiet`: who read it has gone, as `head` does, and needs no word."""

    def __init__(self, why: str, is_quiet: bool):
        super().__init__(f"cannot write to the standard output: {why}; what was asked for is not all there")
        self.is_quiet = is_quiet
        self.exit_code = 128 + signal.SIGPIPE if is_quiet else 1  # as shells say it of a command that SIGPIPE ended


class Diverged(RunFailed):
    """`number` is the step, counted from 1."""

    def __init__(self, message: str, number: int):
        super().__init__(message)
        self.number = number


class Preempted(KeyboardInterrupt):
    def __init__(self, message: str, exit_code: int = 75):  # EX_TEMPFAIL of sysexits.h: try again later
        super().__init__(message)
        self.exit_code = exit_code


# What a machine refuses, and what to do about it; by the number of the error, or by how libraries word it.
_REFUSED = {
    errno.ENOMEM: "free memory, or raise ulimit -v",
    errno.ENOSPC: "free space on the disk, then run the same command again",
    errno.EDQUOT: "free space in the quota, then run the same command again",
    errno.EFBIG: "raise ulimit -f, then run the same command again",
    errno.EMFILE: "raise ulimit -n",
    errno.ENFILE: "the machine has too many files open; close some",
    errno.EAGAIN: "raise ulimit -u, or end other processes",
    errno.EIO: "the disk or its connection fails; check it",
    errno.EROFS: "give a folder that can be written",
    errno.EACCES: "give the permission, or another path",
    errno.EPERM: "give the permission, or another path",
    errno.ENAMETOOLONG: "give a shorter name",
    errno.ELOOP: "its links lead in a circle; give another path",
    errno.ESTALE: "the shared file system lost it; mount it again",
    errno.ETIMEDOUT: "the file system or network does not answer; check it",
}
_WORDED = {
    errno.ENOMEM: r"RESOURCE_EXHAUSTED|[Oo]ut of memory|[Cc]annot allocate memory|bad_alloc|failed to map segment",
    errno.ENOSPC: r"No space left on device",
    errno.EDQUOT: r"[Dd]isk quota exceeded",
    errno.EFBIG: r"File too large",
    errno.EMFILE: r"Too many open files",
    errno.EAGAIN: r"can't start new thread|pthread_create|[Tt]hread creation failed",
}
_CHAIN = 8  # errors behind an error that are looked at


def refusal(error: BaseException) -> RunFailed | None:
    """What a machine refused, where that is behind an error, in a line; None of a bug.

    Of errors that say a program is wrong (`TypeError`, `KeyError` and their kin) nothing is behind.
    """
    for _ in range(_CHAIN):
        number = _refused(error)
        if number is not None:
            what, file = _what(error), getattr(error, "filename", None)
            where = f"{file}: " if isinstance(file, str | bytes) else ""
            return RunFailed(f"{where}{what}; {_REFUSED[number]}")
        behind = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
        if behind is None:
            return None
        error = behind
    return None


def _refused(error: BaseException) -> int | None:
    if isinstance(error, MemoryError):
        return errno.ENOMEM
    if isinstance(error, OSError) and error.errno in _REFUSED:
        return error.errno
    if isinstance(error, ImportError) and "initializing the extension" in str(error):
        # jaxlib says no more of it; where memory is limited, that is why.
        return errno.ENOMEM if resource.getrlimit(resource.RLIMIT_AS)[0] != resource.RLIM_INFINITY else None
    if isinstance(error, RuntimeError | ImportError | OSError | ValueError) and not isinstance(error, RecursionError):
        return next((number for number, words in _WORDED.items() if re.search(words, str(error)[:10_000])), None)
    return None


def _what(error: BaseException) -> str:
    if isinstance(error, MemoryError):
        return f"out of memory{f': {error}' if str(error) else ''}"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror[0].lower() + error.strerror[1:]
    return f"out of memory or threads: {error}" if "EXHAUSTED" in str(error) else str(error)


LONGEST_LINE = 400  # characters


def line(error: BactrianError | Preempted, mask: Callable[[str], str] = str) -> str:
    """An error as the command says it: one line of at most `LONGEST_LINE` printable characters. `mask` takes secrets
    out, before the line is cut."""
    if isinstance(error, Preempted):
        return printable(mask(f"stopped: {error}" if error.exit_code == 75 else str(error)))
    return printable(mask(f"{'error' if isinstance(error, InputError) else 'failed'}: {error}"))


def printable(text: str, longest: int = LONGEST_LINE) -> str:
    """Text from anywhere as one line that a terminal shows as it is: line ends become spaces, control characters and
    halves of surrogate pairs their escapes, and the middle of what is longer than `longest` characters is left out."""
    if len(text) > 4 * longest:  # before each character is looked at: a message may quote megabytes
        text = f"{text[: 2 * longest]} … {text[-2 * longest :]}"
    ended = _LINE_ENDS.sub(" ", text).rstrip()
    line = "".join(each if each.isprintable() else " " if each.isspace() else _escaped(each) for each in ended)
    if len(line) <= longest:
        return line
    tail = longest // 3  # what to do stands at the end
    return f"{line[: longest - tail - 3]} … {line[-tail:]}"


def shown(text: str) -> str:
    """Text from anywhere as a terminal may be given it: what would drive it is escaped; lines and tabs stay."""
    return _DRIVES.sub(lambda found: _escaped(found[0]), text)


# Control characters but tab and line feed, what turns the direction of text around, and halves of surrogate pairs.
_DRIVES = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
_LINE_ENDS = re.compile(r"[ \t]*[\n\r\t\v\f\x1c-\x1e\x85\u2028\u2029]\s*")


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")
