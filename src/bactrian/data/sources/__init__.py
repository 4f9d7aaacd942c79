"""Data files and Hub datasets → conversations and preferences.

`reader` gives the rows of a file whatever its container; one small parser for each layout makes records of them. A row
that cannot be read stops everything with a line that names it: what is wrong with a file is never skipped.
"""

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from bactrian.data.records import Conversation, Dropped, Noted, Preference, Record
from bactrian.data.sources import (
    alpaca,
    dolly,
    fields,
    flan,
    hard_coded,
    hh,
    messages,
    oasst,
    open_orca,
    preference,
    ranking,
    reader,
    science,
    sharegpt,
    templates,
    turns,
    ultrafeedback,
    wizardlm,
)
from bactrian.data.sources.kinds import (
    HardCoded,
    OpenAssistant,
    Plain,
    ShareGPT,
    SourceSection,
    Templated,
    UltraFeedback,
)
from bactrian.data.tokenizer import Tokenizer
from bactrian.errors import DataError
from bactrian.recipe import Layout, Source

Parser = Callable[[dict[str, Any], str], Iterable[Record | Dropped | Noted]]

_PARSERS: dict[str, Callable[[dict[str, Any], str], Record]] = {
    "messages": messages.parse,
    "preference": preference.parse,
    "hh": hh.parse,
    "ranking": ranking.parse,
    "alpaca": alpaca.parse,
    "dolly": dolly.parse,
    "flan": flan.parse,
    "open_orca": open_orca.parse,
    "science": science.parse,
    "wizardlm": wizardlm.parse,
}


def load(source: Source) -> Iterator[Conversation | Preference]:
    """The records of a source, one per row, in its order. Raises `DataError`."""
    for where, row in reader.read(source):
        yield parse(source.format, row, where)


def parse(layout: Layout, row: dict[str, Any], where: str) -> Conversation | Preference:
    """The record in one row; `where` names the row in errors, as `pairs.jsonl:12`. Raises `DataError`."""
    return _PARSERS[layout](row, where)


def parser(source: SourceSection, tokenizer: Tokenizer | None) -> Parser:
    """What makes records of a row of this source, and of its place; a row may give several, or none and why.

    The parser raises `DataError` where the row does not fit. `tokenizer`: of layouts that are cut at a length.
    """
    match source:
        case ShareGPT():
            limit = sharegpt.Limit(source.max_tokens, source.keep_last_round) if source.max_tokens else None
            return partial(sharegpt.parse, html=source.html, limit=limit, tokenizer=tokenizer)
        case OpenAssistant():
            return partial(oasst.parse, paths=source.paths)
        case HardCoded():
            names = {"model_name": source.model_name, "developers": source.developers}
            return lambda row, where: (hard_coded.parse(row, where, names),)
        case Templated():
            chosen = templates.read(source.templates)
            return lambda row, where: (templates.parse(source.format, row, where, chosen),)
        case UltraFeedback():
            return partial(ultrafeedback.parse, source)
        case Plain(format="lima" | "ultrachat"):
            return partial(turns.parse, source.format)
    return lambda row, where: (_PARSERS[source.format](row, where),)


def layout_of(path: Path) -> Layout:
    """The layout of a file, from the keys of its first row. Raises `DataError` where they fit none."""
    where, row = next(iter(reader.read(Source(path=str(path), format="messages"))))
    # Pairs first: HuggingFaceH4's have `messages` too, for SFT on the chosen answers.
    if {"chosen", "rejected"} <= row.keys():
        return "hh" if str(row["chosen"]).startswith("\n\nHuman:") else "preference"
    if "messages" in row:
        return "messages"
    if {"instruction", "output"} <= row.keys():
        return "alpaca"
    raise DataError(
        f"{where}: the row has {fields.shown(', '.join(row))}, which is no layout known here; "
        f"rows need messages, or chosen and rejected, or instruction and output"
    )
