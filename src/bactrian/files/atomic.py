"""Files and folders written whole or not at all: beside their place first, then renamed into it."""

import errno
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from bactrian.errors import RunError
from bactrian.files import documents

_NOT_WRITABLE = (
    *(errno.ENOSPC, errno.EDQUOT),  # full
    *(errno.EACCES, errno.EPERM, errno.EROFS),  # forbidden
    *(errno.EEXIST, errno.ENOTDIR),  # a file stands where a folder should
)
_LEFT_BEHIND = re.compile(r"\..+\.[0-9a-f]{8}\.(tmp|old)")  # the names that `replacing` gives


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turns a full or unwritable disk into a `RunError` that names `path`."""
    try:
        yield
    except OSError as error:
        # numpy's `tofile` counts what it could not write, and gives no number.
        if error.errno not in _NOT_WRITABLE and not (error.errno is None and "requested and" in str(error)):
            raise
        why = error.strerror or os.strerror(errno.ENOSPC)
        raise RunError(f"{path}: cannot write: {why}; free some space or choose another folder") from error


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path beside `path`, file or folder, that takes its place when the block ends well.

    On any error it is removed and what was at `path` stays. A full or unwritable disk becomes a `RunError`.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    displaced = temporary.with_suffix(".old")
    try:
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            yield temporary
            if path.is_dir():
                os.replace(path, displaced)  # a folder cannot be renamed over another, and to delete it takes a while
            os.replace(temporary, path)
    finally:
        if displaced.exists() and not path.exists():
            os.replace(displaced, path)
        _remove(temporary)
        _remove(displaced)


def is_left_behind(path: Path) -> bool:
    """Whether a killed process was writing there."""
    return _LEFT_BEHIND.fullmatch(path.name) is not None


def sweep(folder: Path) -> None:
    """Remove what `replacing` had no time to."""
    left = [path for path in folder.rglob(".*") if _LEFT_BEHIND.fullmatch(path.name)]
    for path in left:
        replaced = path.with_name(path.name[1:].rsplit(".", 2)[0])
        if path.suffix == ".old" and not replaced.exists():
            os.replace(path, replaced)
        else:
            _remove(path)


def _remove(path: Path) -> None:
    # What cannot be removed must not hide the error that led here.
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink()


def write_json(path: Path, value: Any) -> None:
    """Write JSON, whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_text(documents.dumps(value, indent=2) + "\n", encoding="utf-8")


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> None:
    """Write one JSON object per line, whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_text("".join(documents.dumps(row) + "\n" for row in rows), encoding="utf-8")


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """The rows of a file that `write_jsonl` wrote; none where there is no file. Raises `RunError`."""
    lines = enumerate(whole_lines(path), 1)
    return [
        documents.parse_json(line, f"{path}:{number}", RunError, "restore the file", nan=True) for number, line in lines
    ]


def whole_lines(path: Path) -> list[str]:
    """The lines of a file that are not empty; none where there is no file."""
    # Not splitlines: an answer may hold the other separators of Unicode, which JSON leaves as they are.
    return [line for line in path.read_text(encoding="utf-8").split("\n") if line] if path.exists() else []
