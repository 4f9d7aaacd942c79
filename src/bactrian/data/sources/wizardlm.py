"""Layout `wizardlm`: WizardLM's Evol-Instruct V2, whole rounds of human and gpt.

    {"idx": "eJvX3", "conversations": [{"from": "human", "value": "…"}, {"from": "gpt", "value": "…"}]}

Read so by allenai/open-instruct, scripts/data/sft_v1_v2/reformat_datasets.py (convert_wizardlm_data).
"""

from typing import Any

from bactrian.data.records import Conversation, Message, Role
from bactrian.data.sources import fields
from bactrian.errors import DataError

_ROLES: dict[str, Role] = {"human": "user", "gpt": "assistant"}


def parse(row: dict[str, Any], where: str) -> Conversation:
    """A conversation in which human and gpt take turns. Raises `DataError`."""
    said = fields.said(row, "wizardlm", where)
    for index, (speaker, _) in enumerate(said):
        if speaker != ("human", "gpt")[index % 2]:
            place, what = f"conversations[{index}].from", repr(fields.shown(speaker))
            raise DataError(f"{where}: {place} is {what}, out of turn; repair or remove the row")
    if not said or len(said) % 2:
        raise DataError(f"{where}: conversations has {len(said)} turns, no whole number of rounds; repair the row")
    return Conversation(tuple(Message(_ROLES[who], text) for who, text in said), where, fields.name(row, where, "idx"))
