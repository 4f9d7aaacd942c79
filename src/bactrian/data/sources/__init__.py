"""Data files and Hub datasets → conversations and preferences.

`reader` gives the rows of a file whatever its container; one small parser for each layout makes records of them. A row
that cannot be read stops everything with a line that names it: what is wrong with a file is never skipped.
"""

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from bactrian.data.chat import Chat
from bactrian.data.records import Conversation, Dropped, Preference, Record
from bactrian.data.sources import alpaca, fields, hh, messages, preference, reader
from bactrian.errors import DataError
from bactrian.recipe import File, Layout, Source

Parser = Callable[[dict[str, Any], str], Iterable[Record | Dropped]]

_PARSERS: dict[Layout, Callable[[dict[str, Any], str], Conversation | Preference]] = {
    "messages": messages.parse,
    "preference": preference.parse,
    "hh": hh.parse,
    "alpaca": alpaca.parse,
}


def load(source: Source) -> Iterator[Conversation | Preference]:
    """The records of a source, one per row, in its order. Raises `DataError`."""
    for where, row in reader.read(source):
        yield parse(source.format, row, where)


def parse(layout: Layout, row: dict[str, Any], where: str) -> Conversation | Preference:
    """The record in one row; `where` names the row in errors, as `pairs.jsonl:12`. Raises `DataError`."""
    return _PARSERS[layout](row, where)


def parser(source: File, chat: Chat | None) -> Parser:
    """What makes records of a row of this source, and of its place; a row may give several, or none and why.

    The parser raises `DataError` where the row does not fit. `chat`: of the layouts that are cut at a length.
    """
    layout: Layout = source.format  # pyright: ignore[reportAttributeAccessIssue]  (each kind of source has its own)
    return lambda row, where: (parse(layout, row, where),)


def layout_of(path: Path) -> Layout:
    """The layout of a file, from the keys of its first row. Raises `DataError` where they fit none."""
    where, row = next(iter(reader.read(Source(path=str(path), format="messages"))))
    if "messages" in row:
        return "messages"
    if {"chosen", "rejected"} <= row.keys():
        return "hh" if str(row["chosen"]).startswith("\n\nHuman:") else "preference"
    if {"instruction", "output"} <= row.keys():
        return "alpaca"
    raise DataError(
        f"{where}: the row has {fields.shown(', '.join(row))}, which is no layout known here; "
        f"rows need messages, or chosen and rejected, or instruction and output"
    )
