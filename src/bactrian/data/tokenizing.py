"""Sources → tokenized parts, by many processes: a file for each chunk of a source, there once it is whole.

    000-000012.npz   tokens int32, learn bool: the chunk's examples end to end; lengths int64 [examples];
                     starts int32 [examples, K]; ledger: what became of its rows, as JSON; then a seal

What is there, and whole, is not made again, so that tokenizing goes on where it was cut short.
"""

import io
import json
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np

from bactrian import progress
from bactrian.data import packing, screen, sources, workers
from bactrian.data.chat import Chat
from bactrian.data.records import Conversation, Example, Noted, Preference, Record, masked_turns
from bactrian.data.screen import Ledger
from bactrian.data.sources import reader
from bactrian.errors import ChatError, DataError
from bactrian.files import sealed
from bactrian.recipe import OnBadRow, Source

_TOGETHER = 256  # records tokenized at once


@dataclass(frozen=True)
class Limits:
    """What an example may measure: `max_length` tokens on one path, `row_length` places in all."""

    max_length: int
    row_length: int


class Part(NamedTuple):
    """The examples of one chunk, end to end; see the module."""

    tokens: np.ndarray
    learn: np.ndarray
    lengths: np.ndarray
    starts: np.ndarray
    ledger: Ledger


class _Task(NamedTuple):
    source: int
    number: int
    chunk: reader.Chunk


class _Done(NamedTuple):
    source: int
    share: float
    rows: int


def examples(records: Iterable[Record], chat: Chat, limits: Limits) -> Iterator[Example | str]:
    """Each record's example, or the reason why it cannot be used. Raises `ChatError`, naming the row."""
    for example in _examples(records, chat, limits):
        if isinstance(example, ChatError):
            raise example
        yield example


def _examples(records: Iterable[Record], chat: Chat, limits: Limits) -> Iterator[Example | str | ChatError]:
    """As `examples`, with the refusals of the chat format in their places."""
    waiting = iter(records)
    while some := list(islice(waiting, _TOGETHER)):
        reasons = [screen.unusable(record) for record in some]
        rendered = iter(chat.render_many([each for each, why in zip(some, reasons, strict=True) if why is None]))
        for reason in reasons:
            if reason is not None:
                yield reason
                continue
            example = next(rendered)
            yield example if isinstance(example, ChatError) else _misfit(example, limits) or example


def parts(
    data: Sequence[Source],
    chat: Chat,
    limits: Limits,
    folder: Path,
    processes: int,
    on_bad_row: OnBadRow = "stop",
) -> list[list[Path]]:
    """Tokenize what is not tokenized yet; the files of each source's parts, in order. Raises `DataError`."""
    counts = [0] * len(data)
    weights = [reader.size(source) for source in data]
    began, rows = time.monotonic(), 0

    def tasks() -> Iterator[_Task]:
        for number, source in enumerate(data):
            for chunk in reader.chunks(source):
                if not _is_done(_path(folder, number, counts[number])):
                    yield _Task(number, counts[number], chunk)
                counts[number] += 1

    with progress.bar("tokenizing (MB)", sum(weights)) as bar:
        for done in workers.in_order(_start, (tuple(data), chat, limits, folder, on_bad_row), tasks(), processes):
            rows += done.rows
            rate = rows / max(time.monotonic() - began, 1e-9)
            read = sum(weights[: done.source]) + round(weights[done.source] * done.share)
            bar.to(read, sum(weights), f"{rows:,} rows, {rate:,.0f}/s")
    return [[_path(folder, source, number) for number in range(count)] for source, count in enumerate(counts)]


def read(path: Path) -> Part:
    """A part that is there, and whole."""
    content = sealed.read(path)
    assert content is not None, path  # it has been looked at before
    with np.load(io.BytesIO(content)) as stored:
        ledger = Ledger(**json.loads(str(stored["ledger"])))
        return Part(stored["tokens"], stored["learn"], stored["lengths"], stored["starts"], ledger)


def _is_done(path: Path) -> bool:
    """Whether a part is there and whole. One that is damaged is said to be."""
    if not path.exists():
        return False
    if sealed.read(path) is None:
        progress.say(f"{path}: damaged, or kept by an earlier version: made again")
        return False
    return True


def _path(folder: Path, source: int, number: int) -> Path:
    return folder / f"{source:03}-{number:06}.npz"


def _start(
    data: Sequence[Source], chat: Chat, limits: Limits, folder: Path, on_bad_row: OnBadRow
) -> Callable[[_Task], _Done]:
    parsers = [sources.parser(source, None) for source in data]

    def tokenize(task: _Task) -> _Done:
        part = _part(task.chunk, parsers[task.source], chat, limits, on_bad_row)
        content = io.BytesIO()
        np.savez(content, **{**part._asdict(), "ledger": json.dumps(part.ledger.to_json())})
        sealed.write(_path(folder, task.source, task.number), content.getvalue())
        return _Done(task.source, task.chunk.share, len(task.chunk.rows))

    return tokenize


def _records(
    chunk: reader.Chunk, parse: sources.Parser, on_bad_row: OnBadRow, ledger: Ledger
) -> Iterator[Conversation | Preference]:
    """The record of each row; what becomes none is in the ledger, and what a layout leaves out of a row is noted."""
    for where, row in reader.decode(chunk):
        try:
            if isinstance(row, DataError):
                raise row
            found = list(parse(row, where))
        except DataError as error:
            if on_bad_row == "stop":
                raise
            ledger.drop_bad(error)
            continue
        record = next((each for each in found if isinstance(each, Conversation | Preference)), None)
        left = [each.what if isinstance(each, Noted) else each.reason for each in found if isinstance(each, tuple)]
        if record is None:
            ledger.drop(left[0])
            continue
        for what in left:
            ledger.note(what)
        yield record


def _part(chunk: reader.Chunk, parse: sources.Parser, chat: Chat, limits: Limits, on_bad_row: OnBadRow) -> Part:
    ledger = Ledger()
    kept: list[Example] = []
    records = list(_records(chunk, parse, on_bad_row, ledger))
    for record, example in zip(records, _examples(records, chat, limits), strict=True):
        if isinstance(example, ChatError):
            if on_bad_row == "stop":
                raise example
            ledger.drop_bad(example)
        elif isinstance(example, str):
            ledger.drop(example)
        else:
            ledger.keep()
            ledger.note("masked_turns", masked_turns(record))
            kept.append(example)
    branches = len(kept[0].starts) if kept else 0
    if any(len(example.starts) != branches for example in kept):
        raise DataError(f"{chunk.where}: rows have different numbers of answers; give each number a source of its own")
    return Part(
        np.concatenate([np.zeros(0, np.int32), *(example.tokens for example in kept)]),
        np.concatenate([np.zeros(0, bool), *(example.learn for example in kept)]),
        np.array([len(example.tokens) for example in kept], np.int64),
        np.array([example.starts for example in kept], np.int32).reshape(len(kept), branches),
        ledger,
    )


def _misfit(example: Example, limits: Limits) -> str | None:
    paths = [example.branch(b) for b in range(len(example.starts))] or [(example.tokens, example.learn)]
    if max(len(tokens) for tokens, _ in paths) > limits.max_length:
        return "too_long"
    if packing.places(len(example.tokens), example.starts) > limits.row_length:
        return "longer_than_a_row"
    if not all(learn[1:].any() for _, learn in paths):
        return "nothing_to_learn"
    return None
