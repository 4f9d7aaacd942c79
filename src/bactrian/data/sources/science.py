"""Layout `science`: Tulu's science tasks, `{"dataset": "qasper_truncated_4000", "input": "…", "output": "…"}`.

Written by allenai/open-instruct, scripts/data/sft_v1_v2/prepare_science_data.py, and read so by reformat_datasets.py
beside it (convert_science_data), where the data set of a row is `science.` and its own.
"""

from dataclasses import replace
from typing import Any

from bactrian.data.records import Conversation
from bactrian.data.sources import fields


def parse(row: dict[str, Any], where: str) -> Conversation:
    """A conversation of two turns. Raises `DataError`."""
    dataset, question, answer = fields.texts(row, ("dataset", "input", "output"), "science", where)
    return replace(fields.exchange(question, answer, where), dataset=f"science.{dataset}")
