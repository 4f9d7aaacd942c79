"""How a call of the command ends: its exit code, and what went wrong in one line without secrets; a bug is raised."""

from collections.abc import Callable
from typing import Any

from bactrian import progress
from bactrian.errors import BactrianError, InputError, OutputLost, line, refusal
from bactrian.masking import mask_line


def code(call: Callable[[], Any]) -> int:
    """The exit code of a call, its fault told in a line."""
    try:
        returned = call()
    except SystemExit as leaving:
        return leaving.code if isinstance(leaving.code, int) else int(leaving.code is not None)
    except Exception as error:
        told = error if isinstance(error, BactrianError) else _misused(error) or refusal(error)
        if told is None:
            raise
        if not (isinstance(told, OutputLost) and told.is_quiet):
            progress.tell(line(told, mask_line))
        return told.exit_code
    return returned if isinstance(returned, int) else 0


def _misused(error: Any) -> InputError | None:
    """What is wrong with the options and arguments, of which typer's errors say nothing but that."""
    if not hasattr(error, "format_message"):
        return None
    context = getattr(error, "ctx", None)
    if type(error).__name__ == "NoArgsIsHelpError" and context is not None:
        print(context.get_help())
        raise SystemExit(error.exit_code)
    verb = context.command_path if context is not None else "bactrian"
    return InputError(f"{verb}: {error.format_message().rstrip('.')}; see {verb} --help")
