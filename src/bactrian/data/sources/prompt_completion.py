"""Layout `prompt_completion`: TRL's rows, `{"prompt": "Hi", "completion": "Hello."}`; each text, or a list of messages.

The completion alone is learnt, as TRL's `completion_only_loss` has it by default: assistant's turns of the prompt are
masked. Where TRL puts two texts one after the other, ours are a user's turn and an assistant's, in the chat format.
"""

from dataclasses import replace
from typing import Any

from bactrian.data.records import Conversation, Message, Messages, Role
from bactrian.data.sources import fields, messages
from bactrian.errors import DataError


def parse(row: dict[str, Any], where: str) -> Conversation:
    """A conversation whose prompt is masked. Raises `DataError`."""
    prompt, completion = _part(row, "prompt", "user", where), _part(row, "completion", "assistant", where)
    if isinstance(row.get("label"), bool):
        raise DataError(
            f"{where}: label says whether the completion is a good one, and all completions would be learnt alike; "
            f"leave out the rows where it is false, then the column",
            "not_carried",
        )
    if completion[-1].role != "assistant":
        raise DataError(
            f"{where}: completion ends in the {completion[-1].role}'s turn, not in an answer; repair or remove the row",
            "no_answer",
        )
    masked = tuple(replace(turn, trained=turn.role != "assistant") for turn in prompt)
    name, dataset = fields.name(row, where, "id", "prompt_id"), fields.name(row, where, "dataset")
    return Conversation((*masked, *completion), where, name, dataset)


def _part(row: dict[str, Any], key: str, role: Role, where: str) -> Messages:
    value = fields.required(row, key, "prompt_completion", where)
    if isinstance(value, str):
        return (Message(role, fields.text(value, key, where)),)
    return messages.parse_list(value, key, where)
