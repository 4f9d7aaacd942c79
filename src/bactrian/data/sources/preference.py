"""Layout `preference`: a prompt with a better and a worse answer, as UltraFeedback's binarized sets have it.

    {"prompt": "Hi", "chosen": "Hello.", "rejected": "What?"}
    {"prompt": [user], "chosen": [assistant], "rejected": [assistant]}
    {"prompt": "Hi", "chosen": [user, assistant], "rejected": [user, assistant]}

`prompt` is text (one user's turn) or a list of messages; LLaMA-Factory's rows have `instruction` and `input`, or
`conversations`, and other sets a `question`. An answer is text, one message, or a list of messages: a list that begins
with an assistant's turn follows the prompt; any other is a whole conversation, and needs no `prompt`. Both answers may
have a score, as in HuggingFaceH4/ultrafeedback_binarized: `score_chosen`, `score_rejected`.
"""

from typing import Any

from bactrian.data.records import Message, Messages, Preference
from bactrian.data.sources import fields, messages, said
from bactrian.errors import DataError


def parse(row: dict[str, Any], where: str) -> Preference:
    """A pair, chosen first. Raises `DataError`."""
    branches = (_branch(row, "chosen", where), _branch(row, "rejected", where))
    scores = fields.scores(row, ("score_chosen", "score_rejected"), where)
    name, dataset = fields.name(row, where, "id", "prompt_id"), fields.name(row, where, "dataset")
    return Preference(branches, where, name, dataset, scores)


def _branch(row: dict[str, Any], key: str, where: str) -> Messages:
    answer = fields.required(row, key, "preference", where)
    if isinstance(answer, str):
        return *_prompt(row, where), Message("assistant", fields.text(answer, key, where))
    turns = (said.turn(answer, key, where),) if isinstance(answer, dict) else messages.parse_list(answer, key, where)
    if turns[-1].role != "assistant":
        raise DataError(
            f"{where}: {key} ends in the {turns[-1].role}'s turn, not in an answer; repair or remove the row",
            "no_answer",
        )
    if turns[0].role == "assistant":
        return *_prompt(row, where), *turns
    if isinstance(row.get("prompt"), list):
        prompt = _prompt(row, where)
        if [(turn.role, turn.content) for turn in turns[: len(prompt)]] != [(t.role, t.content) for t in prompt]:
            raise DataError(
                f"{where}: {key} begins neither with the messages of prompt nor with an assistant's turn; "
                f"repair the row, or leave prompt out",
                "contradiction",
            )
    return turns


def _prompt(row: dict[str, Any], where: str) -> Messages:
    if row.get("prompt") is None:
        for key in ("question", "instruction"):
            if row.get(key) is not None:
                text = fields.text(row[key], key, where)
                extra = row.get("input") if key == "instruction" else None
                return (Message("user", fields.below(text, extra, "input", where)),)
        if row.get("conversations") is not None:
            return said.turns(row["conversations"], "conversations", where)
    prompt = fields.required(row, "prompt", "preference", where)
    if isinstance(prompt, str):
        return (Message("user", fields.text(prompt, "prompt", where)),)
    return messages.parse_list(prompt, "prompt", where)
