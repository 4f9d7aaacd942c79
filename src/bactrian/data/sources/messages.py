"""Layout `messages`: `{"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}]}`.

Roles are system, user and assistant. An assistant's `weight` of 0 (or `train`, `loss` false) masks its turn. A row's
`id` (or `prompt_id`) and `dataset` are kept, as in allenai/tulu-v2-sft-mixture and HuggingFaceH4/ultrachat_200k.
"""

from typing import Any

from bactrian.data.records import ROLES, Conversation, Message, Messages
from bactrian.data.sources import beside, fields
from bactrian.errors import DataError


def parse(row: dict[str, Any], where: str) -> Conversation:
    """A conversation with at least one assistant's turn. Raises `DataError`."""
    turns = parse_list(fields.required(row, "messages", "messages", where), "messages", where)
    if all(turn.role != "assistant" for turn in turns):
        raise DataError(
            f"{where}: messages has no assistant's turn, so there is nothing to learn; add one or remove the row",
            "no_answer",
        )
    return Conversation(turns, where, fields.name(row, where, "id", "prompt_id"), fields.name(row, where, "dataset"))


def parse_list(value: Any, name: str, where: str) -> Messages:
    """A list of messages; `name` says which one in errors. Raises `DataError`."""
    listed = fields.some(value, name, where, "messages")
    return tuple(parse_turn(turn, f"{name}[{index}]", where) for index, turn in enumerate(listed))


def parse_turn(value: Any, name: str, where: str) -> Message:
    """One message; `name` says which one in errors. Raises `DataError`."""
    if not isinstance(value, dict):
        raise DataError(
            f"{where}: {name} is {fields.kind(value)}, not an object with role and content; repair the row",
            "wrong_type",
        )
    for key in ("role", "content"):
        if key not in value:
            found = fields.shown(", ".join(map(str, value)) or "nothing")
            raise DataError(f"{where}: {name} has no {key!r} (found: {found}); repair the row", "missing_key")
    role = value["role"]
    trained = beside.is_trained(value, str(role), name, where)
    if role in beside.TOOL_ROLES:
        raise DataError(
            f"{where}: {name}.role is {role!r}, and tools are not carried into training yet; remove the row",
            "not_carried",
        )
    if role not in ROLES:
        found = repr(fields.shown(role)) if isinstance(role, str) else fields.kind(role)
        raise DataError(f"{where}: {name}.role is {found}, not system, user or assistant; rename it", "unknown_role")
    return Message(role, beside.content(value["content"], f"{name}.content", where), trained)
