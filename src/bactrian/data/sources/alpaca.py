r"""Layout `alpaca`: an instruction, an input that may be missing, and an output, as in Stanford Alpaca.

`{"instruction": "Add.", "input": "2 and 3", "output": "5"}` is a user who says "Add.\n\n2 and 3" and an assistant who
answers "5".
"""

from typing import Any

from bactrian.data.records import Conversation
from bactrian.data.sources import fields


def parse(row: dict[str, Any], where: str) -> Conversation:
    """A conversation of two turns. Raises `DataError`."""
    instruction, output = fields.texts(row, ("instruction", "output"), "alpaca", where)
    return fields.exchange(fields.below(instruction, row.get("input"), "input", where), output, where)
