"""A stage's examples, tokenized once and memory-mapped ever after, under a key made of all they depend on.

tokens.npy   int32, all examples end to end        offsets.npy  int64 [examples + 1], where each begins
learn.npy    bool, beside the tokens               starts.npy   int32 [examples, K], where its branches begin
ledger.json  what became of every row and token
"""

import fcntl
import hashlib
import json
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from bactrian import progress
from bactrian.data import tokenizing, workers
from bactrian.data.chat import Chat
from bactrian.data.records import Example, Preference, Record
from bactrian.data.screen import Ledger
from bactrian.data.sources import reader
from bactrian.data.tokenizing import Limits, examples
from bactrian.errors import DataError
from bactrian.files import atomic, documents, folders
from bactrian.recipe import OnBadRow, Source

__all__ = ["VERSION", "Corpus", "Limits", "build", "examples", "render"]

_TOGETHER = 2000  # examples whose learnt tokens are counted at once
VERSION = 3  # of the code that makes examples; a change of what it makes changes the number


class Corpus:
    """Examples by index, read from disk as they are asked for."""

    def __init__(self, folder: Path):
        self.key = folder.name
        self.ledger: dict[str, Any] = documents.read_json(folder / "ledger.json")
        self._offsets = np.load(folder / "offsets.npy")
        self._starts = np.load(folder / "starts.npy")
        self._tokens = np.load(folder / "tokens.npy", mmap_mode="r")
        self._learn = np.load(folder / "learn.npy", mmap_mode="r")

    def __len__(self) -> int:
        return len(self._offsets) - 1

    def __getitem__(self, index: int) -> Example:
        here = slice(self._offsets[index], self._offsets[index + 1])
        return Example(
            np.asarray(self._tokens[here]), np.asarray(self._learn[here]), tuple(self._starts[index].tolist())
        )

    @property
    def branches(self) -> int:
        """Branches of an example: at least 1, since a conversation is one path."""
        return max(1, self._starts.shape[1])

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each example, int64 [examples]."""
        return np.diff(self._offsets)

    @property
    def starts(self) -> np.ndarray:
        """Where each example's branches begin in it, int32 [examples, K]."""
        return self._starts

    def places(self) -> np.ndarray:
        """How many places of a row each example takes, int64 [examples]: `packing.places` of each."""
        lengths, starts = self.lengths, self.starts
        if not starts.shape[1]:
            return lengths - 1
        shared, branches = starts[:, 0].astype(np.int64), starts.shape[1]
        copies = np.where(shared > 0, branches, 0)
        return np.maximum(shared - 1, 0) + lengths - shared + copies - branches

    def learned(self) -> np.ndarray:
        """How many places of a row each example learns the target of, int64 [examples].

        That is every learnt token but those that nothing comes before: the first, or where nothing is shared the first
        of each branch.
        """
        if not len(self):
            return np.zeros(0, np.int64)
        begins = self._offsets[:-1]
        learned = np.concatenate([self._sums(at) for at in range(0, len(self), _TOGETHER)])
        if not self._starts.shape[1]:
            return learned - self._learn[begins]
        shared = self._starts[:, 0] > 0
        firsts = self._learn[begins[:, None] + self._starts]
        return learned - np.where(shared, self._learn[begins], firsts.sum(axis=1))

    def _sums(self, first: int) -> np.ndarray:
        """The learnt tokens of some examples from one on: few enough that counting them takes little memory."""
        offsets = self._offsets[first : first + _TOGETHER + 1]
        learn = self._learn[offsets[0] : offsets[-1]]
        return np.add.reduceat(learn, offsets[:-1] - offsets[0], dtype=np.int64)


def build(
    data: Sequence[Source],
    chat: Chat,
    limits: Limits,
    max_dropped: float,
    root: Path,
    processes: int | None = None,
    on_bad_row: OnBadRow = "stop",
) -> Corpus:
    """The corpus of some sources: opened if `root` has it, else tokenized, by a process for each core if it is much.

    What is cut short goes on where it was. Raises `DataError`.
    """
    corpus = made(data, chat, limits, root, processes, on_bad_row)
    for source, entry in zip(data, corpus.ledger["sources"], strict=True):
        ledger = Ledger.of(entry)
        if on_bad_row == "stop" and ledger.bad_rows:  # made for another run, which drops them
            raise DataError(ledger.bad_rows[0])
        ledger.check(max_dropped, source.path)
        if source.rows is not None and entry["read"] != min(source.rows, source.limit or source.rows):
            raise DataError(
                f"{source.path}: {entry['read']} rows were read, and the recipe says {source.rows}; "
                f"train on the version that has so many, or say rows = {entry['read']}"
            )
    if not len(corpus):
        paths, folder = ", ".join(source.path for source in data), root / "corpora" / corpus.key
        raise DataError(f"{paths}: no row can be used; the ledger is in {folder}")
    return corpus


def made(
    data: Sequence[Source],
    chat: Chat,
    limits: Limits,
    root: Path,
    processes: int | None = None,
    on_bad_row: OnBadRow = "stop",
) -> Corpus:
    """The corpus of some sources, however much of them was dropped. Raises `DataError`."""
    key = _key(data, chat, limits)
    folder = root / "corpora" / key
    if not _is_whole(folder):
        with _parts_folder(folder) as parts:
            if not _is_whole(folder):  # another process may have made it meanwhile
                processes = processes or workers.suited(sum(map(reader.size, data)))
                files = tokenizing.parts(data, chat, limits, parts, processes, on_bad_row)
                with folders.replacing(folder) as temporary:
                    _write(temporary, data, files)
            shutil.rmtree(parts, ignore_errors=True)  # another process may be at it as well
    return Corpus(folder)


def render(record: Record, chat: Chat) -> Example:
    """Token ids of a conversation or a preference. Raises `ChatError`, naming the row."""
    if isinstance(record, Preference):
        return chat.render_preference(record)
    return chat.render_conversation(record)


def _is_whole(folder: Path) -> bool:
    """Whether a corpus is there as it was written; one that was damaged since is removed, and that is said."""
    fault = folders.fault(folder) if folder.exists() else "nothing is there"
    if fault is not None and folder.exists():
        progress.say(f"{folder}: tokenized data that was damaged, or kept by an earlier version ({fault}): made again")
        atomic.remove(folder)
    return fault is None


@contextmanager
def _parts_folder(folder: Path) -> Iterator[Path]:
    """Where the parts of a corpus are kept until it is whole; one process at a time."""
    parts = folder.with_name(f".{folder.name}.parts")
    with atomic.writing(parts):
        parts.mkdir(parents=True, exist_ok=True)
    with parts.with_suffix(".lock").open("w") as lock:
        fcntl.lockf(lock, fcntl.LOCK_EX)
        parts.mkdir(exist_ok=True)  # whoever held the lock may have been done with it
        yield parts


def _write(folder: Path, data: Sequence[Source], files: Sequence[Sequence[Path]]) -> None:
    """The parts, end to end, one in memory at a time."""
    offsets, starts, entries = [np.zeros(1, np.int64)], [], []
    count = learned = 0
    with (folder / "tokens.npy").open("wb") as tokens, (folder / "learn.npy").open("wb") as learn:
        for file, kind in ((tokens, np.int32), (learn, np.bool_)):
            _write_header(file, np.dtype(kind), 0)
        for source, paths in zip(data, files, strict=True):
            ledger = Ledger()
            for part in map(tokenizing.read, paths):
                ledger.add(part.ledger)
                offsets.append(count + part.lengths.cumsum())
                starts.append(part.starts)
                part.tokens.tofile(tokens)
                part.learn.tofile(learn)
                count, learned = count + len(part.tokens), learned + int(part.learn.sum())
            entry = {"path": source.path, "format": source.format, "licence": source.licence}
            entries.append({**entry, **ledger.to_json()})
        for file, kind in ((tokens, np.int32), (learn, np.bool_)):
            file.seek(0)
            _write_header(file, np.dtype(kind), count)
    np.save(folder / "offsets.npy", np.concatenate(offsets))
    whole = _joined([each for each in starts if len(each)], data)
    np.save(folder / "starts.npy", whole)
    totals = {"examples": len(whole), "tokens": count, "learned_tokens": learned}
    atomic.write_json(folder / "ledger.json", {"sources": entries, **totals})


def _joined(starts: Sequence[np.ndarray], data: Sequence[Source]) -> np.ndarray:
    if len({each.shape[1] for each in starts}) > 1:
        paths = ", ".join(source.path for source in data)
        raise DataError(f"{paths}: rows have different numbers of answers; train on one number at a time")
    return np.concatenate(starts) if starts else np.zeros((0, 0), np.int32)


def _write_header(file: BinaryIO, kind: np.dtype, length: int) -> None:
    """The header of a .npy file; numpy makes it equally long for every length, so that it can be written again."""
    described = {"descr": np.lib.format.dtype_to_descr(kind), "fortran_order": False, "shape": (length,)}
    np.lib.format.write_array_header_1_0(file, described)


def _key(data: Sequence[Source], chat: Chat, limits: Limits) -> str:
    """Equal for two corpora only if they have the same bytes."""
    digest = hashlib.sha256(json.dumps([VERSION, chat.fingerprint, asdict(limits)]).encode())
    for source in data:
        described = [source.path, source.format, source.licence, source.limit, reader.fingerprint(source)]
        digest.update(json.dumps(described).encode())
    return digest.hexdigest()[:32]
