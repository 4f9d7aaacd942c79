"""What an evaluation needs beyond the plain installation: the extra `eval`."""

import importlib
from types import ModuleType

from bactrian.errors import InputError


def load(module: str) -> ModuleType:
    """Import a module of the extra. Raises `InputError` that says what to install."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or not (module == error.name or module.startswith(f"{error.name}.")):
            raise
        raise InputError(
            f"{error.name} is not installed, and this part of the evaluation needs it; "
            f"install it with: pip install 'bactrian[eval]'"
        ) from None
