"""Layout `messages`: `{"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}]}`.

Roles are system, user and assistant. A row's `id` (or `prompt_id`) and `dataset` are kept, as in
allenai/tulu-v2-sft-mixture and HuggingFaceH4/ultrachat_200k; other keys, of the row and of its messages, are left
alone.
"""

from typing import Any

from bactrian.data.records import ROLES, Conversation, Message, Messages
from bactrian.data.sources import fields
from bactrian.errors import DataError


def parse(row: dict[str, Any], where: str) -> Conversation:
    """A conversation with at least one assistant's turn. Raises `DataError`."""
    turns = parse_list(fields.required(row, "messages", "messages", where), "messages", where)
    if all(turn.role != "assistant" for turn in turns):
        raise DataError(
            f"{where}: messages has no assistant's turn, so there is nothing to learn; add one or remove the row"
        )
    return Conversation(turns, where, fields.name(row, "id", "prompt_id"), fields.name(row, "dataset"))


def parse_list(value: Any, name: str, where: str) -> Messages:
    """A list of messages; `name` says which one in errors. Raises `DataError`."""
    if not isinstance(value, list) or not value:
        found = "empty" if value == [] else fields.kind(value)
        raise DataError(f"{where}: {name} is {found}, not a list of messages; repair or remove the row")
    return tuple(_message(turn, f"{name}[{index}]", where) for index, turn in enumerate(value))


def _message(value: Any, name: str, where: str) -> Message:
    if not isinstance(value, dict):
        raise DataError(f"{where}: {name} is {fields.kind(value)}, not an object with role and content; repair the row")
    for key in ("role", "content"):
        if key not in value:
            found = fields.shown(", ".join(map(str, value)) or "nothing")
            raise DataError(f"{where}: {name} has no {key!r} (found: {found}); repair the row")
    role = value["role"]
    if role not in ROLES:
        found = repr(fields.shown(role)) if isinstance(role, str) else fields.kind(role)
        raise DataError(f"{where}: {name}.role is {found}, not system, user or assistant; rename it")
    return Message(role, fields.text(value["content"], f"{name}.content", where))
