"""Layout `open_orca`: Open-Orca's rows, `{"id": "niv.1", "system_prompt": "…", "question": "…", "response": "…"}`.

Read so by allenai/open-instruct, scripts/data/sft_v1_v2/reformat_datasets.py (convert_open_orca_data). The system
prompt stays a system message, even where it is empty.
"""

from typing import Any

from bactrian.data.records import Conversation, Message
from bactrian.data.sources import fields


def parse(row: dict[str, Any], where: str) -> Conversation:
    """A conversation of three turns. Raises `DataError`."""
    keys = ("system_prompt", "question", "response")
    system, question, response = fields.texts(row, keys, "open_orca", where)
    turns = (Message("system", system), Message("user", question), Message("assistant", response))
    return Conversation(turns, where, fields.name(row, where, "id"))
