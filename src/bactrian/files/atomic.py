"""Files written whole or not at all: beside their place first, on the disk, then renamed into it.

What stands at a path is replaced by its own kind alone: a file by a file (folders: see `bactrian.files.folders`).
"""

import errno
import os
import re
import secrets
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from bactrian.errors import RunError, RunFailed
from bactrian.files import documents
from bactrian.masking import masked

_FOR_THE_USER = (
    *(errno.ENOSPC, errno.EDQUOT),  # full
    *(errno.EACCES, errno.EPERM, errno.EROFS),  # forbidden
    *(errno.EEXIST, errno.ENOTDIR, errno.EISDIR),  # a file stands where a folder should, or the other way round
    *(errno.ENAMETOOLONG, errno.ELOOP),  # no path
)
_NO_SYNC = (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS, errno.EBADF)  # file systems that know no fsync, of folders say
_LEFT_BEHIND = re.compile(r"\..+\.[0-9a-f]{8}\.(tmp|old)")  # the names that `beside` and `displacing` give


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turns an `OSError` into one line that names `path`: `RunError` where the disk is full or may not be written,
    `RunFailed` where it fails."""
    try:
        yield
    except OSError as error:
        # numpy's `tofile` counts what it could not write, and gives no number.
        full = error.errno is None and "requested and" in str(error)
        if error.errno is None and not full:
            raise
        why = os.strerror(error.errno or errno.ENOSPC)
        if full or error.errno in _FOR_THE_USER:
            raise RunError(f"{path}: cannot write: {why}; free some space or choose another folder") from error
        raise RunFailed(f"{path}: cannot write: {why}; see to the disk, then the same command goes on") from error


@contextmanager
def beside(path: Path) -> Iterator[Path]:
    """A temporary path beside `path`, whose folder is there; removed at the end, if it is still there then."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    with writing(path):
        make_folder(path.parent)
    try:
        yield temporary
    finally:
        remove(temporary)


@contextmanager
def replacing(path: Path, lasting: bool = True) -> Iterator[Path]:
    """A temporary path beside `path` for a file that takes its place, on the disk, when the block ends well.

    On any error it is removed and what was at `path` stays. Raises `RunError` before the block where something else
    than a file is there, and as `writing` does. Not `lasting`: whether it outlives the machine is left open, as of what
    has a checksum and is made again where that does not agree.
    """
    check_file(path)
    with beside(path) as temporary:
        with writing(path):
            yield temporary
        if path.parent.is_dir() and not os.path.lexists(temporary):
            raise FileNotFoundError(f"{temporary}: nothing was written there")
        check_file(path)  # once more: the block may have taken hours
        with writing(path):
            if lasting:
                sync(temporary)
            os.replace(temporary, path)
            if lasting:
                sync(path.parent)


def check_file(path: Path) -> None:
    """Raise `RunError` unless a file can be written at `path`: nothing is there yet, or a file. To be asked before
    long work."""
    there = check_place(path)
    if there not in (None, "a file"):
        raise RunError(f"{path}: {there} is there, and a file is to be written; choose another path")


def check_place(path: Path) -> str | None:
    """What is at a path that is to be written; None for nothing. Raises `RunError` where nothing can be written."""
    if path.name in ("", ".."):
        raise RunError(f"{path}: not the name of a file or a new folder; choose another path")
    try:
        mode = path.lstat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        mode = None
    except OSError as error:
        raise RunError(f"{path}: cannot be written: {error.strerror}; choose another path") from error
    above = next((each for each in path.parents if os.path.lexists(each)), Path())
    if not above.is_dir():
        raise RunError(f"{path}: {above} is not a folder; choose another path")
    if mode is None:
        return None
    kinds = {stat.S_IFREG: "a file", stat.S_IFDIR: "a folder", stat.S_IFLNK: "a symbolic link"}
    return kinds.get(stat.S_IFMT(mode), "a device, a pipe or a socket")


def make_folder(folder: Path) -> None:
    """Make a folder and those above it, on the disk. Raises `OSError`."""
    missing = [each for each in (folder, *folder.parents) if not each.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for each in missing:
        sync(each.parent)


def sync(path: Path) -> None:
    """See that a file, or a folder's list of names, is on the disk. Raises `OSError`."""
    file = os.open(path, os.O_RDONLY)
    try:
        os.fsync(file)
    except OSError as error:
        if error.errno not in _NO_SYNC:
            raise
    finally:
        os.close(file)


def is_left_behind(path: Path) -> bool:
    """Whether a killed process was writing there."""
    return _LEFT_BEHIND.fullmatch(path.name) is not None


def sweep(folder: Path) -> None:
    """Remove what `beside` had no time to, and put back what was displaced for it."""
    left = [path for path in folder.rglob(".*") if is_left_behind(path)]
    for path in left:
        replaced = path.with_name(path.name[1:].rsplit(".", 2)[0])
        if path.suffix == ".old" and not replaced.exists():
            os.replace(path, replaced)
        else:
            remove(path)


def remove(path: Path) -> None:
    """Remove a file or a folder of ours, as far as that goes: it must not hide the error that led here."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink()


def append(path: Path, text: str) -> None:
    """Add text to a file; it is on the disk when this returns. Raises as `writing` does."""
    with writing(path):
        make_folder(path.parent)
        is_new = not path.exists()
        with path.open("ab") as file:
            file.write(text.encode())
            file.flush()
            os.fsync(file.fileno())
        if is_new:
            sync(path.parent)


def write_json(path: Path, value: Any) -> None:
    """Write JSON, whole or not at all, and without a secret."""
    with replacing(path) as temporary:
        temporary.write_text(documents.dumps(masked(value), indent=2) + "\n", encoding="utf-8")


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> None:
    """Write one JSON object per line, whole or not at all, and without a secret."""
    with replacing(path) as temporary:
        temporary.write_text("".join(documents.dumps(row) + "\n" for row in masked(rows)), encoding="utf-8")


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
