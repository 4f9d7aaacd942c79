"""From a source's chunks to records in the store, with the screens that need no other record."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from bactrian.data import sources
from bactrian.data.build import screening, store
from bactrian.data.build.recipe import Build
from bactrian.data.build.screening import Screen
from bactrian.data.chat import Chat
from bactrian.data.records import Dropped, Noted, Record, masked_turns
from bactrian.data.sources import reader
from bactrian.data.sources.kinds import Share
from bactrian.errors import DataError, printable

_BAD_SHOWN = 5  # errors of one chunk that are kept for the ledger


class Task(NamedTuple):
    """One chunk to be parsed: its source's and its own number, and its rows."""

    source: int
    number: int
    chunk: reader.Chunk


class Done(NamedTuple):
    """How far the source has been read, and how many rows that was."""

    source: int
    share: float
    rows: int


def start(recipe: Build, chat: Chat | None, folder: Path) -> Callable[[Task], Done]:
    """What parses a chunk and keeps it in `folder`. Raises `DataError` at a row that does not fit, if that stops."""
    parsers = [sources.parser(source, chat and chat.tokenizer) for source in recipe.sources]
    screens = [screening.make(section, chat) for section in recipe.screens if not section.in_order]

    def parse(task: Task) -> Done:
        source = recipe.sources[task.source]
        index = store.Index(rows=len(task.chunk.rows))
        kept: list[bytes] = []
        for found in _records(task.chunk, parsers[task.source], source):
            if isinstance(found, DataError):
                if recipe.build.on_bad_row == "stop":
                    raise found
                if len(index.bad) < _BAD_SHOWN:
                    index.bad.append(printable(str(found)))
                index.bad_kinds[found.kind] = index.bad_kinds.get(found.kind, 0) + 1
                found = Dropped("bad_row", str(found))
            if isinstance(found, Noted):
                index.noted[found.what] = index.noted.get(found.what, 0) + 1
                continue
            if isinstance(found, Dropped):
                index.dropped[found.reason] = index.dropped.get(found.reason, 0) + 1
                continue
            if (kind := store.kind(found)) not in index.kinds:
                index.kinds.append(kind)
            if masked := masked_turns(found):
                index.noted["masked_turns"] = index.noted.get("masked_turns", 0) + masked
            kept.append(store.encode(found))
            index.lengths.append(len(kept[-1]))
            index.reasons.append(_reason(found, screens) if source.screened else None)
        store.write(folder, task.source, task.number, kept, index)
        return Done(task.source, task.chunk.share, index.rows)

    return parse


def _records(
    chunk: reader.Chunk, parser: sources.Parser, source: Share
) -> Iterator[Record | Dropped | Noted | DataError]:
    for where, row in reader.decode(chunk):
        if isinstance(row, DataError):
            yield row
            continue
        try:
            found = list(parser(row, where))
        except DataError as error:
            yield error
            continue
        number = reader.index_of(where)
        yield from (each for each in found if isinstance(each, Noted))
        found = [each for each in found if not isinstance(each, Noted)]
        for part, each in enumerate(found):
            if isinstance(each, Dropped):
                yield each
            else:
                # A published data set names its rows; what a raw row calls itself is unique in its own source alone.
                name = each.id or (str(number) if len(found) == 1 else f"{number}_{part}")
                whole = name if each.id and each.dataset else f"{source.name}_{name}"
                yield replace(each, id=whole, dataset=each.dataset or source.name)


def _reason(record: Record, screens: list[Screen]) -> str | None:
    return next((reason for screen in screens if (reason := screen(record)) is not None), None)
