"""Layout `hard_coded`: what an assistant says of itself, `{"Prompt": "Who are you?", "Output": "I am {model_name}."}`.

The columns are those of Tulu's sheet, read by allenai/open-instruct, scripts/data/sft_v1_v2/reformat_datasets.py
(convert_hard_coded_data). `{model_name}` and `{developers}` are filled in, wherever they stand.
"""

from typing import Any

from bactrian.data.records import Conversation
from bactrian.data.sources import fields


def parse(row: dict[str, Any], where: str, names: dict[str, str]) -> Conversation:
    """A conversation of two turns. Raises `DataError`."""
    prompt, output = fields.texts(row, ("Prompt", "Output"), "hard_coded", where)
    for key, name in names.items():
        prompt, output = (text.replace("{" + key + "}", name) for text in (prompt, output))
    return fields.exchange(prompt, output, where)
