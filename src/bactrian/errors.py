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
        ├── HostLost           another process of the run did not come, was killed, or cannot be reached
        └── Diverged           a loss or gradient that is not finite

    KeyboardInterrupt
    └── Preempted              told to stop, it did; exits with 75, or with 130 after Ctrl-C; says what comes again

Every message says what, where and what to do, on one line. Anything outside these trees is a bug and keeps its
traceback. A stop is none of the errors that a library may catch to go on.
"""


class BactrianError(Exception):
    """Whatever the project raises on purpose; `exit_code` is what the command returns."""

    exit_code = 1


class InputError(BactrianError):
    exit_code = 2


class RecipeError(InputError):
    pass


class DataError(InputError):
    pass


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


class Diverged(RunFailed):
    """`number` is the step, counted from 1."""

    def __init__(self, message: str, number: int):
        super().__init__(message)
        self.number = number


class Preempted(KeyboardInterrupt):
    def __init__(self, message: str, exit_code: int = 75):  # EX_TEMPFAIL of sysexits.h: try again later
        super().__init__(message)
        self.exit_code = exit_code


LONGEST_LINE = 400  # characters


def line(error: BactrianError | Preempted) -> str:
    """An error as the command says it: one line of at most `LONGEST_LINE` printable characters."""
    if isinstance(error, Preempted):
        return printable(f"stopped: {error}" if error.exit_code == 75 else str(error))
    return printable(f"{'error' if isinstance(error, InputError) else 'failed'}: {error}")


def printable(text: str, longest: int = LONGEST_LINE) -> str:
    """Text from anywhere as one line that a terminal shows as it is: line ends become spaces, control characters and
    halves of surrogate pairs their escapes, and the middle of what is longer than `longest` characters is left out."""
    if len(text) > 4 * longest:  # before each character is looked at: a message may quote megabytes
        text = f"{text[: 2 * longest]} … {text[-2 * longest :]}"
    shown = "".join(each if each.isprintable() else _escaped(each) for each in " ".join(text.split()))
    if len(shown) <= longest:
        return shown
    tail = longest // 3  # what to do stands at the end
    return f"{shown[: longest - tail - 3]} … {shown[-tail:]}"


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")
