"""Layout `preference`: a prompt with a better and a worse answer, as UltraFeedback's binarized sets have it.

    {"prompt": "Hi", "chosen": "Hello.", "rejected": "What?"}
    {"prompt": [user], "chosen": [assistant], "rejected": [assistant]}
    {"prompt": "Hi", "chosen": [user, assistant], "rejected": [user, assistant]}

`prompt` is text (one user's turn) or a list of messages. An answer is text, or a list of messages: one that begins with
an assistant's turn follows the prompt; any other is a whole conversation, and needs no `prompt`. Both answers may have
a score, as in HuggingFaceH4/ultrafeedback_binarized: `score_chosen`, `score_rejected`.
"""

from typing import Any

from bactrian.data.records import Message, Messages, Preference
from bactrian.data.sources import fields, messages
from bactrian.errors import DataError


def parse(row: dict[str, Any], where: str) -> Preference:
    """A pair, chosen first. Raises `DataError`."""
    branches = (_branch(row, "chosen", where), _branch(row, "rejected", where))
    scores = fields.scores(row, ("score_chosen", "score_rejected"), where)
    return Preference(branches, where, fields.name(row, "id", "prompt_id"), fields.name(row, "dataset"), scores)


def _branch(row: dict[str, Any], key: str, where: str) -> Messages:
    answer = fields.required(row, key, "preference", where)
    if isinstance(answer, str):
        return *_prompt(row, where), Message("assistant", fields.text(answer, key, where))
    turns = messages.parse_list(answer, key, where)
    if turns[-1].role != "assistant":
        raise DataError(
            f"{where}: {key} ends in the {turns[-1].role}'s turn, not in an answer; repair or remove the row"
        )
    if turns[0].role == "assistant":
        return *_prompt(row, where), *turns
    if isinstance(row.get("prompt"), list):
        prompt = _prompt(row, where)
        if turns[: len(prompt)] != prompt:
            raise DataError(
                f"{where}: {key} begins neither with the messages of prompt nor with an assistant's turn; "
                f"repair the row, or leave prompt out"
            )
    return turns


def _prompt(row: dict[str, Any], where: str) -> Messages:
    prompt = fields.required(row, "prompt", "preference", where)
    if isinstance(prompt, str):
        return (Message("user", fields.text(prompt, "prompt", where)),)
    return messages.parse_list(prompt, "prompt", where)
