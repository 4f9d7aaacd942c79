r"""Layout `alpaca`: an instruction, an input that may be missing, and an output, as in Stanford Alpaca.

`{"instruction": "Add.", "input": "2 and 3", "output": "5"}` is a user who says "Add.\n\n2 and 3" and an assistant who
answers "5".
"""

from typing import Any

from bactrian.data.records import Conversation, Message
from bactrian.data.sources import fields


def parse(row: dict[str, Any], where: str) -> Conversation:
    """A conversation of two turns. Raises `DataError`."""
    instruction, output = (
        fields.text(fields.required(row, key, "alpaca", where), key, where) for key in ("instruction", "output")
    )
    given = row.get("input")
    extra = "" if given is None else fields.text(given, "input", where)
    question = f"{instruction}\n\n{extra}" if extra.strip() else instruction
    return Conversation((Message("user", question), Message("assistant", output)), where)
