"""Layout `oasst`: Open Assistant's trees of messages, one tree a row.

    {"message_tree_id": "…", "tree_state": "ready_for_export", "prompt": {"text": "…", "role": "prompter", "deleted":
     false, "labels": {"quality": {"value": 0.75, "count": 3}}, "replies": [{"role": "assistant", "replies": […], …}]}}

The schema is LAION-AI/Open-Assistant's, oasst-data/oasst_data/schemas.py. The paths are those that Tulu took
(allenai/open-instruct, scripts/data/sft_v1_v2/reformat_datasets.py, convert_oasst1_data): from the root, past deleted
messages, to each answer that nobody replied to; or the one path on which every reply is the best by its quality label.
A path that ends in a question, or in an answer whose every reply was deleted, gives nothing there; it is counted.
"""

from collections.abc import Iterator
from typing import Any, Literal

from bactrian.data.records import Conversation, Dropped, Message, Messages, Role
from bactrian.data.sources import fields
from bactrian.errors import DataError

_ROLES: dict[str, Role] = {"prompter": "user", "assistant": "assistant"}
_READY = "ready_for_export"


def parse(row: dict[str, Any], where: str, paths: Literal["best", "all"]) -> Iterator[Conversation | Dropped]:
    """A conversation for each path. Raises `DataError`."""
    root = fields.required(row, "prompt", "oasst", where)
    if row.get("tree_state", _READY) != _READY:
        yield Dropped("tree_not_ready", where)
        return
    name = fields.name(row, where, "message_tree_id")
    for number, turns in enumerate(_paths(root, (), "prompt", where, paths == "best")):
        if isinstance(turns, str):
            yield Dropped(turns, where)
        else:
            yield Conversation(turns, where, name if paths == "best" or not name else f"{name}_{number}")


def _paths(node: Any, before: Messages, place: str, where: str, best: bool) -> Iterator[Messages | str]:
    """The paths through a message, each from the root to its end, or the reason why one gives nothing."""
    if not isinstance(node, dict):
        raise DataError(f"{where}: {place} is {fields.kind(node)}, not a message; repair or remove the row")
    if node.get("deleted"):
        yield "deleted"
        return
    role = node.get("role")
    if role not in _ROLES:
        raise DataError(f"{where}: {place}.role is {role!r}, not prompter or assistant; repair or remove the row")
    turns = (*before, Message(_ROLES[role], fields.text(node.get("text"), f"{place}.text", where)))
    replies = node.get("replies") or []
    if not isinstance(replies, list):
        raise DataError(f"{where}: {place}.replies is {fields.kind(replies)}, not a list; repair or remove the row")
    alive = [reply for reply in replies if not (isinstance(reply, dict) and reply.get("deleted"))]
    if best:
        alive = sorted(alive, key=_quality, reverse=True)[:1]
    if not replies:
        yield turns if turns[-1].role == "assistant" else "no_answer_at_the_end"
    elif not alive:
        yield "every_reply_deleted"
    for index, reply in enumerate(alive):
        yield from _paths(reply, turns, f"{place}.replies[{index}]", where, best)


def _quality(reply: Any) -> float:
    labels = reply.get("labels") if isinstance(reply, dict) else None
    quality = labels.get("quality") if isinstance(labels, dict) else None
    value = quality.get("value") if isinstance(quality, dict) else None
    return float(value) if isinstance(value, int | float) else 0.0
