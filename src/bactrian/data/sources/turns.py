"""Layouts whose turns are a list of texts, user and assistant by turns.

`lima`: `{"conversations": ["…", "…"], "source": "…"}`, GAIR's LIMA as read by allenai/open-instruct,
scripts/data/sft_v1_v2/reformat_datasets.py (convert_lima_data).
`ultrachat`: `{"id": "0", "data": ["…", "…"]}`, UltraChat's own files, as the card of stingning/ultrachat on the Hub has
them ("Dataset Structure").

A last turn without an answer is left out, and counted.
"""

from collections.abc import Iterator
from typing import Any

from bactrian.data.records import Conversation, Dropped, Message, Role
from bactrian.data.sources import fields
from bactrian.errors import DataError

_KEYS = {"lima": "conversations", "ultrachat": "data"}
_ROLES: tuple[Role, Role] = ("user", "assistant")


def parse(layout: str, row: dict[str, Any], where: str) -> Iterator[Conversation | Dropped]:
    """A conversation of whole rounds, and what is left over. Raises `DataError`."""
    key = _KEYS[layout]
    value = fields.required(row, key, layout, where)
    if not isinstance(value, list):
        raise DataError(f"{where}: {key} is {fields.kind(value)}, not a list of texts; repair or remove the row")
    texts = [fields.text(each, f"{key}[{index}]", where) for index, each in enumerate(value)]
    whole = len(texts) // 2 * 2
    if whole:
        turns = tuple(Message(_ROLES[index % 2], text) for index, text in enumerate(texts[:whole]))
        yield Conversation(turns, where, fields.name(row, where, "id"))
    if whole < len(texts) or not texts:
        yield Dropped("turn_without_answer" if texts else "no_turns", where)
