"""Folders that we make, each written whole with a manifest of its files, by which it is known as ours and as whole.

    FOLDER/manifest.json   {"files": {"config.json": {"bytes": 623, "sha256": "…"}, …}, "made_by": "bactrian"}

What else lies in such a folder is not ours to judge.
"""

import os
import secrets
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bactrian.errors import DataError, RunError
from bactrian.files import atomic, digests, documents

NAME = "manifest.json"
_MAKER = "bactrian"
_TOGETHER = 4  # files whose bytes are summed at once


@contextmanager
def replacing(folder: Path) -> Iterator[Path]:
    """A new folder beside `folder` that takes its place, with a manifest and on the disk, when the block ends well.

    On any error it is removed and what was there stays. Raises as `check` does before the block, and as
    `atomic.writing` does.
    """
    check(folder)
    with atomic.beside(folder) as temporary, atomic.writing(folder):
        temporary.mkdir()
        yield temporary
        found = write_manifest(temporary, names(temporary))
        check(folder)  # once more: the block may have taken hours
        _swap(temporary, folder)
    for name, digest in found.items():
        digests.remember(folder / name, digest)


def check(folder: Path) -> None:
    """Raise `RunError` unless a folder can be made at `folder`: nothing is there yet, an empty one, or one of ours."""
    there = atomic.check_place(folder)
    if there not in (None, "a folder"):
        raise RunError(f"{folder}: {there} is there, and a folder is to be made; choose another path")
    if there and any(folder.iterdir()) and not is_ours(folder):
        raise RunError(f"{folder}: a folder with other files is there; choose another path, or move it away")


def is_ours(folder: Path) -> bool:
    """Whether a folder has a manifest of ours."""
    return isinstance(_read(folder), dict)


def fault(folder: Path, content: bool = True) -> str | None:
    """What has happened to a folder's files since it was made, each named; None where they are whole.

    Their sizes are always compared, their bytes if `content`: read once, and again where a file's times have changed.
    """
    files = _read(folder)
    if not isinstance(files, dict):
        return files
    for name, about in files.items():
        try:
            size = (folder / name).stat().st_size
        except OSError as error:
            return f"{name} cannot be read ({error.strerror})"
        if size != about["bytes"]:
            return f"{name} has {size:,} bytes of {about['bytes']:,}"
    if content:
        with ThreadPoolExecutor(_TOGETHER) as threads:
            summed = {name: about["sha256"] for name, about in files.items() if "sha256" in about}
            found = threads.map(lambda name: digests.of(folder / name), summed)
            for (name, written), digest in zip(summed.items(), found, strict=True):
                if digest != written:
                    return f"{name} holds other bytes than were written"
    return None


def has_manifest(folder: Path) -> bool:
    """Whether a manifest is there, whatever it says: folders made before there were any have none."""
    return os.path.lexists(folder / NAME)


def _read(folder: Path) -> dict[str, Any] | str:
    """The files of a manifest, or what is wrong with it."""
    path = folder / NAME
    if not path.exists():
        return f"{NAME} is gone"
    try:
        content = documents.read_json(path, DataError)
        assert content["made_by"] == _MAKER
        assert all(isinstance(about["bytes"], int) for about in content["files"].values())
    except (DataError, AssertionError, AttributeError, KeyError, TypeError):
        return f"{NAME} is not what was written"
    return content["files"]


def write_manifest(folder: Path, files: Sequence[str], content: bool = True) -> dict[str, str]:
    """List files of a folder in its manifest, once they are on the disk; returns the digest of each, if `content`."""

    def sum_up(name: str) -> dict[str, Any]:
        path = folder / name
        atomic.sync(path)
        about: dict[str, Any] = {"bytes": path.stat().st_size}
        return {**about, "sha256": digests.compute(path)} if content else about

    with ThreadPoolExecutor(_TOGETHER) as threads:
        listed = dict(zip(files, threads.map(sum_up, files), strict=True))
    atomic.write_json(folder / NAME, {"made_by": _MAKER, "files": listed})
    for inside, _, _ in os.walk(folder):
        atomic.sync(Path(inside))
    return {name: about["sha256"] for name, about in listed.items() if content}


def names(folder: Path) -> list[str]:
    """The files in a folder and in those within, as a manifest names them."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def _swap(temporary: Path, folder: Path) -> None:
    # A folder cannot be renamed over another, and to delete it takes a while.
    displaced = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}.old")
    try:
        if folder.is_dir():
            os.replace(folder, displaced)
        os.replace(temporary, folder)
        atomic.sync(folder.parent)
    finally:
        if displaced.exists() and not folder.exists():
            os.replace(displaced, folder)
        atomic.remove(displaced)
