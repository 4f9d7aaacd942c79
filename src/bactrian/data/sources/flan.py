r"""Layout `flan`: FLAN v2 and its chain-of-thought part, as sampled for Tulu.

    {"inputs": "Q: Is it raining?\nA:", "targets": "No."}

Other keys are left alone. Read so by allenai/open-instruct, scripts/data/sft_v1_v2/reformat_datasets.py
(convert_flan_v2_data, convert_cot_data). As there, a prompt gets a line end unless it has one or asks with a colon.
"""

from typing import Any

from bactrian.data.records import Conversation
from bactrian.data.sources import fields


def parse(row: dict[str, Any], where: str) -> Conversation:
    """A conversation of two turns. Raises `DataError`."""
    prompt, answer = fields.texts(row, ("inputs", "targets"), "flan", where)
    if not prompt.endswith("\n") and not prompt.rstrip().endswith(":"):
        prompt += "\n"
    return fields.exchange(prompt, answer, where)
