"""Records on their way from sources to shards: a file of records and an index for each chunk of a source.

parts/003-000017.records   the records' JSON, end to end
parts/003-000017.json      an `Index`, sealed; where both are there and whole the chunk is done
"""

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from bactrian.data.records import Conversation, Message, Messages, Preference, Record
from bactrian.errors import RunError
from bactrian.files import sealed
from bactrian.files.atomic import replacing

KINDS = ("conversations", "pairs", "rankings")


@dataclass(frozen=True)
class Index:
    """What became of one chunk.

    lengths: bytes of each record; reasons: why a screen drops it, or None.
    dropped: rows, and parts of rows, that became no record, by reason; bad: the first errors of rows that do not fit,
    bad_kinds: all of these by what is wrong.
    noted: what parsers counted without dropping it. kinds: what its records are, of `KINDS`.
    sha256: of the records' bytes.
    """

    rows: int
    lengths: list[int] = field(default_factory=list)
    reasons: list[str | None] = field(default_factory=list)
    dropped: dict[str, int] = field(default_factory=dict)
    bad: list[str] = field(default_factory=list)
    bad_kinds: dict[str, int] = field(default_factory=dict)
    noted: dict[str, int] = field(default_factory=dict)
    kinds: list[str] = field(default_factory=list)
    sha256: str = ""


def kind(record: Record) -> str:
    """What a record is, by its name in `KINDS`."""
    if isinstance(record, Preference):
        return "pairs" if len(record.branches) == 2 else "rankings"
    return "conversations"


def records_path(folder: Path, source: int, chunk: int) -> Path:
    return folder / f"{source:03}-{chunk:06}.records"


def is_done(folder: Path, source: int, chunk: int) -> bool:
    path = records_path(folder, source, chunk)
    content = sealed.read(path.with_suffix(".json"))
    if content is None or not path.exists():
        return False
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() == json.loads(content)["sha256"]


def write(folder: Path, source: int, chunk: int, records: Sequence[bytes], index: Index) -> None:
    """Keep a chunk; done once its index is there."""
    path, content = records_path(folder, source, chunk), b"".join(records)
    with replacing(path) as temporary:
        temporary.write_bytes(content)
    about = {**asdict(index), "sha256": hashlib.sha256(content).hexdigest()}
    sealed.write(path.with_suffix(".json"), json.dumps(about).encode())


def index(folder: Path, source: int, chunk: int) -> Index:
    path = records_path(folder, source, chunk).with_suffix(".json")
    content = sealed.read(path)
    if content is None:
        raise RunError(f"{path}: damaged; the same command makes it again")
    return Index(**json.loads(content))


def encode(record: Record) -> bytes:
    paths = record.branches if isinstance(record, Preference) else (record.messages,)
    turns = [[[turn.role, turn.content, *([] if turn.trained else [False])] for turn in path] for path in paths]
    kind = "preference" if isinstance(record, Preference) else "conversation"
    scores = record.scores if isinstance(record, Preference) else ()
    return json.dumps([kind, record.where, record.dataset, record.id, turns, scores], ensure_ascii=False).encode()


def decode(text: bytes) -> Record:
    kind, where, dataset, name, turns, scores = json.loads(text)
    paths: list[Messages] = [tuple(Message(*turn) for turn in path) for path in turns]
    if kind == "preference":
        return Preference(tuple(paths), where, name, dataset, tuple(scores))
    return Conversation(paths[0], where, name, dataset)


class Reader:
    """Records by their places, from files that stay open as long as the block does."""

    def __init__(self, folder: Path):
        self._folder = folder
        self._open: dict[tuple[int, int], Any] = {}

    def record(self, source: int, chunk: int, offset: int, length: int) -> Record:
        key = (source, chunk)
        if key not in self._open:
            if len(self._open) >= 256:  # well below the files that a process may have open
                self.close()
            self._open[key] = records_path(self._folder, source, chunk).open("rb")
        return decode(os.pread(self._open[key].fileno(), length, offset))

    def __enter__(self) -> "Reader":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        for file in self._open.values():
            file.close()
        self._open.clear()
