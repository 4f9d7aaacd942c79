"""SHA-256 of files, remembered in the cache for as long as a file's size, times and place on the disk stay."""

import hashlib
import json
from pathlib import Path

from bactrian.files import atomic
from bactrian.files.cache import cache_root

_LENGTH = 64  # characters of a digest


def of(path: Path) -> str:
    """The digest of a file's bytes. Raises `OSError`."""
    memory = _memory(path)
    try:
        known, _, check = memory.read_bytes().decode("ascii").partition(" ")
    except (FileNotFoundError, UnicodeDecodeError):
        known = check = ""
    if len(known) == _LENGTH and check == _check(known, memory):
        return known
    found = compute(path)
    if _memory(path) == memory:  # it has not been written meanwhile
        _keep(memory, found)
    return found


def compute(path: Path) -> str:
    """The digest of a file's bytes as they are now. Raises `OSError`."""
    with path.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def remember(path: Path, digest: str) -> None:
    """Keep the digest of a file that has just been written. Raises `OSError`."""
    _keep(_memory(path), digest)


def _memory(path: Path) -> Path:
    """Where the digest of a file as it is now is remembered."""
    about = path.stat()
    known = [str(path.resolve()), about.st_size, about.st_mtime_ns, about.st_ctime_ns, about.st_ino]
    return cache_root() / "fingerprints" / hashlib.sha256(json.dumps(known).encode()).hexdigest()


def _keep(memory: Path, digest: str) -> None:
    with atomic.replacing(memory, lasting=False) as temporary:
        temporary.write_text(f"{digest} {_check(digest, memory)}", encoding="ascii")


def _check(digest: str, memory: Path) -> str:
    """What tells a damaged memory, or one under another's name, from a whole one."""
    return hashlib.sha256(f"{digest} {memory.name}".encode()).hexdigest()[:16]
