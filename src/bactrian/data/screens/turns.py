"""Screen `turns`: what is no well-formed conversation.

A conversation may begin with a system message, which may be blank; then users and assistants take turns, the user
first, and an assistant has the last word. What follows is the name under which the ledger counts what is dropped.

malformed_turn:  text that holds characters no text has: NUL and other control characters
wrong_order:     a system message that is not first, an assistant before any user, two turns of one role in a row
no_answer:       no assistant's turn, or the last turn is a user's
empty_turn:      a user's or an assistant's turn is blank
"""

import re

from bactrian.data.records import Messages, Record
from bactrian.data.screens import words

# Tab, line ends, form feed and escape (colours of a terminal, pasted) are found in good data.
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0e-\x1a\x1c-\x1f\x7f]")


def check(record: Record) -> str | None:
    """The first thing wrong with the turns of a record, or None."""
    return next((fault for turns in words.conversations(record) if (fault := _fault(turns))), None)


def _fault(messages: Messages) -> str | None:
    if any(_CONTROL.search(message.content) for message in messages):
        return "malformed_turn"
    turns = messages[1:] if messages and messages[0].role == "system" else messages
    if any(turn.role != ("user", "assistant")[index % 2] for index, turn in enumerate(turns)):
        return "wrong_order"
    if not turns or turns[-1].role != "assistant":
        return "no_answer"
    return "empty_turn" if any(not turn.content.strip() for turn in turns) else None
