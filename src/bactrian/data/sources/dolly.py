"""Layout `dolly`: databricks-dolly-15k, `{"instruction": "…", "context": "", "response": "…", "category": "open_qa"}`.

Read so by allenai/open-instruct, scripts/data/sft_v1_v2/reformat_datasets.py (convert_dolly_data). The context stands
below the instruction.
"""

from typing import Any

from bactrian.data.records import Conversation
from bactrian.data.sources import fields


def parse(row: dict[str, Any], where: str) -> Conversation:
    """A conversation of two turns. Raises `DataError`."""
    instruction, response = fields.texts(row, ("instruction", "response"), "dolly", where)
    return fields.exchange(fields.below(instruction, row.get("context"), "context", where), response, where)
