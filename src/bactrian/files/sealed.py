"""Files of the cache that are small enough to be read whole, with a SHA-256 of their bytes after them.

What was cut, emptied or changed since it was written is told from what is whole, and made again.
"""

import hashlib
from pathlib import Path

from bactrian.files import atomic

_SEAL = hashlib.sha256().digest_size  # bytes


def write(path: Path, content: bytes) -> None:
    """Write a file, whole or not at all. Raises as `atomic.replacing` does."""
    with atomic.replacing(path, lasting=False) as temporary:
        temporary.write_bytes(content + hashlib.sha256(content).digest())


def read(path: Path) -> bytes | None:
    """What was written; None where nothing is there, or what is there is not what was written. Raises `OSError`."""
    try:
        stored = path.read_bytes()
    except FileNotFoundError:
        return None
    content, seal = stored[:-_SEAL], stored[-_SEAL:]
    return content if hashlib.sha256(content).digest() == seal else None
