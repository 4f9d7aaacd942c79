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
    beside,
    dolly,
    fields,
    flan,
    hard_coded,
    hh,
    messages,
    oasst,
    open_orca,
    preference,
    prompt_completion,
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
    ShareGPT,
    SourceSection,
    Templated,
    UltraFeedback,
)
from bactrian.data.tokenizer import Tokenizer
from bactrian.errors import DataError
from bactrian.recipe import OnBadRow, RunLayout, Source

Found = Record | Dropped | Noted
Parser = Callable[[dict[str, Any], str], Iterable[Found]]

_PARSERS: dict[str, Callable[[dict[str, Any], str], Record]] = {
    "messages": messages.parse,
    "prompt_completion": prompt_completion.parse,
    "alpaca": alpaca.parse,
    "hh": hh.parse,
    "preference": preference.parse,
    "ranking": ranking.parse,
    "dolly": dolly.parse,
    "flan": flan.parse,
    "open_orca": open_orca.parse,
    "science": science.parse,
    "wizardlm": wizardlm.parse,
}
# What a row that does not fit its layout is tried as, the likeliest first. ShareGPT's kin includes WizardLM's rows.
_TRIED: tuple[RunLayout, ...] = (
    *("messages", "sharegpt", "prompt_completion", "alpaca", "hh", "preference", "ranking"),
    *("dolly", "flan", "open_orca", "science", "lima", "ultrachat"),
)


def load(source: Source, on_bad_row: OnBadRow = "stop") -> Iterator[Record]:
    """The records of a source, in its order; what a layout leaves out of a row is left out. Raises `DataError`."""
    made = parser(source, None)
    for where, row in (each for chunk in reader.chunks(source) for each in reader.decode(chunk)):
        try:
            if isinstance(row, DataError):
                raise row
            found = list(made(row, where))
        except DataError:
            if on_bad_row == "stop":
                raise
            continue
        yield from (each for each in found if isinstance(each, Conversation | Preference))


def parse(layout: RunLayout, row: dict[str, Any], where: str) -> Record:
    """The record in one row; `where` names the row in errors, as `pairs.jsonl:12`. Raises `DataError`."""
    found = list(_guided(layout, _of_layout(layout))(row, where))
    record = next((each for each in found if isinstance(each, Conversation | Preference)), None)
    if record is None:
        reasons = ", ".join(each.reason for each in found if isinstance(each, Dropped))
        raise DataError(f"{where}: the row gives no example ({reasons}); repair or remove it", "no_answer")
    return record


def parser(source: SourceSection | Source, tokenizer: Tokenizer | None) -> Parser:
    """What makes records of a row of this source, and of its place; a row may give several, or none and why.

    The parser raises `DataError` where the row does not fit. `tokenizer`: of layouts that are cut at a length.
    """
    layout = source.format
    match source:
        case ShareGPT():
            limit = sharegpt.Limit(source.max_tokens, source.keep_last_round) if source.max_tokens else None
            settings = {"html": source.html, "limit": limit, "tokenizer": tokenizer, "keep_system": source.keep_system}
            return _guided(layout, partial(sharegpt.parse, **settings))
        case OpenAssistant():
            return _guided(layout, partial(oasst.parse, paths=source.paths))
        case HardCoded():
            names = {"model_name": source.model_name, "developers": source.developers}
            return _guided(layout, lambda row, where: (hard_coded.parse(row, where, names),))
        case Templated():
            chosen = templates.read(source.templates)
            return _guided(layout, lambda row, where: (templates.parse(source.format, row, where, chosen),))
        case UltraFeedback():
            return _guided(layout, partial(ultrafeedback.parse, source))
    return _guided(source.format, _of_layout(source.format))


def _of_layout(layout: RunLayout) -> Parser:
    """The parser of a layout without settings, or with the settings that a run takes."""
    if layout == "sharegpt":
        return sharegpt.parse
    if layout == "lima" or layout == "ultrachat":
        return partial(turns.parse, layout)
    return lambda row, where: (_PARSERS[layout](row, where),)


def _guided(layout: str, parse: Parser) -> Parser:
    """A parser of rows with what stands beside their layout, whose refusal names the layout that a row does fit."""
    whole = beside.around(parse, layout)

    def parsed(row: dict[str, Any], where: str) -> Iterable[Found]:
        try:
            return list(whole(row, where))
        except RecursionError:
            raise DataError(f"{where}: the row is nested too deep; repair or remove it", "wrong_type") from None
        except DataError as error:
            wrong = error.kind == "missing_key"
            other = next((name for name in fitting(row) if name != layout), None) if wrong else None
            if other is None:
                raise
            what = str(error).rpartition(";")[0]
            advice = f'the row fits format = "{other}"; see docs/data.md, or let `bactrian data check` list such rows'
            raise DataError(f"{what}; {advice}", error.kind) from None

    return parsed


def fitting(row: dict[str, Any]) -> Iterator[RunLayout]:
    """The layouts that a row fits, the likeliest first."""
    for layout in _TRIED:
        try:
            if any(
                isinstance(each, Conversation | Preference)
                for each in beside.around(_of_layout(layout), layout)(row, "")
            ):
                yield layout
        except (DataError, RecursionError):
            continue


def layout_of(path: Path) -> RunLayout:
    """The layout of a file, from its first row. Raises `DataError` where it fits none."""
    where, row = next(iter(reader.read(Source(path=str(path), format="messages"))))
    # Pairs first: HuggingFaceH4's have `messages` too, for SFT on the chosen answers.
    if {"chosen", "rejected"} <= row.keys():
        return "hh" if str(row["chosen"]).startswith("\n\nHuman:") else "preference"
    if "messages" in row:
        return "messages"
    if (layout := next(fitting(row), None)) is not None:
        return layout
    raise DataError(
        f"{where}: the row has {fields.shown(', '.join(row))}, which is no layout known here; "
        f"rows need messages, or chosen and rejected, or instruction and output, or conversations"
    )
