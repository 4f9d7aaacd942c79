"""What an evaluation needs beyond the plain installation: the extra `eval`."""

import importlib
from types import ModuleType

from bactrian.errors import InputError, printable


def load(module: str) -> ModuleType:
    """Import a module of the extra. Raises `InputError` that says what to install."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        missing = error.name if isinstance(error, ModuleNotFoundError) and error.name else None
        if missing is not None and missing.partition(".")[0] == "bactrian":
            raise
        own = missing is not None and (module == missing or module.startswith(f"{missing}."))
        what = f"{missing} is not installed" if own else f"{module} cannot be loaded ({printable(str(error), 160)})"
        raise InputError(
            f"{what}, and this part of the evaluation needs it; install it with: pip install 'bactrian[eval]'"
        ) from None
