"""A stage's examples, tokenized once and memory-mapped ever after, under a key made of all they depend on.

tokens.npy   int32, all examples end to end        offsets.npy  int64 [examples + 1], where each begins
learn.npy    bool, beside the tokens               starts.npy   int32 [examples, K], where its branches begin
ledger.json  what became of every row and token
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bactrian.data import packing, screen, sources
from bactrian.data.chat import Chat
from bactrian.data.records import Conversation, Example, Preference
from bactrian.errors import DataError
from bactrian.recipe import Source
from bactrian.run import replacing, write_json

VERSION = 1  # of the code that makes examples; a change of what it makes changes the number

Record = Conversation | Preference


@dataclass(frozen=True)
class Limits:
    """What an example may measure: `max_length` tokens on one path, `row_length` places in all."""

    max_length: int
    row_length: int


class Corpus:
    """Examples by index, read from disk as they are asked for."""

    def __init__(self, folder: Path):
        self.key = folder.name
        self.ledger: dict[str, Any] = json.loads((folder / "ledger.json").read_text(encoding="utf-8"))
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

    def places(self) -> np.ndarray:
        """How many places of a row each example takes, int64 [examples]."""
        lengths = np.diff(self._offsets)
        return np.array([packing.places(int(n), s) for n, s in zip(lengths, self._starts.tolist(), strict=True)])

    def learned(self) -> np.ndarray:
        """How many places of a row each example learns the target of, int64 [examples]."""
        return np.array([int(packing.lay_out(self[index]).learn.sum()) for index in range(len(self))])


def build(data: Sequence[Source], chat: Chat, limits: Limits, max_dropped: float, root: Path) -> Corpus:
    """The corpus of some sources: opened if `root` has it, else tokenized. Raises `DataError`."""
    key = _key(data, chat, limits)
    folder = root / "corpora" / key
    if not (folder / "ledger.json").exists():
        with replacing(folder) as temporary:
            temporary.mkdir()
            _write(temporary, data, chat, limits)
    corpus = Corpus(folder)
    for source, entry in zip(data, corpus.ledger["sources"], strict=True):
        screen.Ledger(entry["read"], entry["kept"], entry["dropped"]).check(max_dropped, source.path)
    if not len(corpus):
        raise DataError(f"{', '.join(source.path for source in data)}: no row can be used; the ledger is in {folder}")
    return corpus


def examples(records: Iterable[Record], chat: Chat, limits: Limits) -> Iterator[Example | str]:
    """Each record's example, or the reason why it cannot be used."""
    for record in records:
        reason = screen.unusable(record)
        if reason is None:
            example = render(record, chat)
            reason = _misfit(example, limits)
            yield example if reason is None else reason
        else:
            yield reason


def render(record: Record, chat: Chat) -> Example:
    """Token ids of a conversation or a preference. Raises `ChatError`, naming the row."""
    if isinstance(record, Preference):
        return chat.render_preference(record)
    return chat.render_conversation(record)


def _misfit(example: Example, limits: Limits) -> str | None:
    paths = [example.branch(b) for b in range(len(example.starts))] or [(example.tokens, example.learn)]
    if max(len(tokens) for tokens, _ in paths) > limits.max_length:
        return "too_long"
    if packing.places(len(example.tokens), example.starts) > limits.row_length:
        return "longer_than_a_row"
    if not all(learn[1:].any() for _, learn in paths):
        return "nothing_to_learn"
    return None


def _write(folder: Path, data: Sequence[Source], chat: Chat, limits: Limits) -> None:
    tokens, learn, starts, offsets = [], [], [], [0]
    entries = []
    for source in data:
        ledger = screen.Ledger()
        for example in examples(sources.load(source), chat, limits):
            if isinstance(example, str):
                ledger.drop(example)
                continue
            ledger.keep()
            tokens.append(example.tokens)
            learn.append(example.learn)
            starts.append(example.starts)
            offsets.append(offsets[-1] + len(example.tokens))
        entries.append({"path": source.path, "format": source.format, "licence": source.licence, **ledger.to_json()})
    all_tokens = np.concatenate(tokens or [np.zeros(0, np.int32)])
    all_learn = np.concatenate(learn or [np.zeros(0, bool)])
    np.save(folder / "tokens.npy", all_tokens)
    np.save(folder / "learn.npy", all_learn)
    np.save(folder / "offsets.npy", np.array(offsets, np.int64))
    branches = len(starts[0]) if starts else 0
    np.save(folder / "starts.npy", np.array(starts, np.int32).reshape(len(starts), branches))
    totals = {"examples": len(starts), "tokens": len(all_tokens), "learned_tokens": int(all_learn.sum())}
    write_json(folder / "ledger.json", {"sources": entries, **totals})


def _key(data: Sequence[Source], chat: Chat, limits: Limits) -> str:
    digest = hashlib.sha256(json.dumps([VERSION, chat.fingerprint, asdict(limits)]).encode())
    for source in data:
        digest.update(json.dumps([source.path, source.format, source.licence]).encode())
        for record in sources.load(source):
            paths = record.branches if isinstance(record, Preference) else (record.messages,)
            digest.update(json.dumps([[(m.role, m.content) for m in path] for path in paths]).encode())
    return digest.hexdigest()[:32]
