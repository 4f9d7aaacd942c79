r"""Layout `hh`: pairs of transcripts, as in Anthropic's hh-rlhf.

    {"chosen": "\n\nHuman: Hi\n\nAssistant: Hello.", "rejected": "\n\nHuman: Hi\n\nAssistant: What?"}

A speaker's name counts only after an empty line; "Human:" anywhere else is text. The one space after the colon belongs
to the transcript, any other to the text. Two turns of one speaker in a row stay two turns.
"""

import re
from typing import Any

from bactrian.data.records import Message, Messages, Preference, Role
from bactrian.data.sources import fields
from bactrian.errors import DataError

_SPEAKER = re.compile(r"\n\n(Human|Assistant):")
_ROLES: dict[str, Role] = {"Human": "user", "Assistant": "assistant"}


def parse(row: dict[str, Any], where: str) -> Preference:
    """A pair, chosen first. Raises `DataError`."""
    return Preference((_turns(row, "chosen", where), _turns(row, "rejected", where)), where)


def _turns(row: dict[str, Any], key: str, where: str) -> Messages:
    transcript = fields.text(fields.required(row, key, "hh", where), key, where)
    # What stands before the first speaker, then a speaker and what they say, by turns.
    before, *pieces = _SPEAKER.split(transcript)
    if before or not pieces or pieces[0] != "Human":
        raise DataError(f"{where}: {key} does not begin with '\\n\\nHuman:'; repair or remove the row")
    if pieces[-2] != "Assistant":
        raise DataError(f"{where}: {key} does not end in an assistant's turn; repair or remove the row")
    return tuple(
        Message(_ROLES[speaker], words.removeprefix(" "))
        for speaker, words in zip(pieces[::2], pieces[1::2], strict=True)
    )
