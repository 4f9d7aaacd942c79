"""Pythons that this process starts, and where they and it take modules from: never from the working folder.

A file `json.py` or `pip.py` that lies where a command is given is somebody's data, not a module of ours. Python itself
puts that folder first (`-c`, `-m`, what `multiprocessing` spawns, an empty part of PYTHONPATH).
"""

import importlib.machinery
import importlib.util
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType

_SAFE = "PYTHONSAFEPATH"  # what `-P` is, for Pythons that others start


def command(*arguments: str) -> list[str]:
    """The command of a Python with these arguments that does not look into the working folder."""
    return [sys.executable, "-P", *arguments]


@contextmanager
def isolated() -> Iterator[None]:
    """Within, no Python that is started looks into the working folder, whoever starts it and however."""
    before = os.environ.get(_SAFE)
    os.environ[_SAFE] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[_SAFE]
        else:
            os.environ[_SAFE] = before


def isolate() -> None:
    """From here on no module is taken from the working folder or from where the command lies, in this process and in
    those that it starts, unless PYTHONPATH names that folder."""
    os.environ[_SAFE] = "1"
    parts = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    named = [part for part in parts if part]
    unwanted = {"", _here()}
    if not sys.flags.safe_path and sys.argv and sys.argv[0] and sys.path:
        unwanted.add(os.path.dirname(os.path.realpath(sys.argv[0])))
    unwanted -= set(map(os.path.abspath, named))
    # Python puts them first; the same folder further on is there for another reason.
    while sys.path and sys.path[0] in unwanted:
        del sys.path[0]
    if 0 < len(named) < len(parts):  # an empty part is the working folder, and hardly ever meant
        os.environ["PYTHONPATH"] = os.pathsep.join(named)
        sys.path[:] = [path for path in sys.path if path not in unwanted]


def named_by_user(name: str) -> ModuleType:
    """The module of this name in the working folder, which a user who names it means, or else as Python finds it.

    What it imports in turn is looked for there last, so that it shadows nothing. Raises what the import raises.
    """
    here, top = _here(), name.partition(".")[0]
    if here and here not in sys.path:
        sys.path.append(here)
    spec = importlib.machinery.PathFinder.find_spec(top, [here]) if here else None
    if spec is not None and spec.loader is not None and top not in {*sys.modules, *sys.stdlib_module_names}:
        sys.modules[top] = module = importlib.util.module_from_spec(spec)
        try:
            spec.loader.exec_module(module)
        except BaseException:
            del sys.modules[top]
            raise
    return importlib.import_module(name)


def _here() -> str:
    try:
        return os.getcwd()
    except OSError:  # it was removed
        return ""


def _beside_the_command() -> str:
    return os.path.dirname(os.path.realpath(sys.argv[0])) if sys.argv and sys.argv[0] else ""
