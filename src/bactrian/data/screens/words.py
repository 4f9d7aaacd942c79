"""Text as screens compare it: case, accents of writing and punctuation do not make two texts different."""

import re
import unicodedata
from collections.abc import Iterator, Sequence

from bactrian.data.records import Conversation, Messages, Record

_WORD = re.compile(r"[^\W_]+")
_MARK = re.compile(r"[^\w\s]|_")


def split(text: str) -> list[str]:
    """The words of a text; whatever is neither letter nor digit parts two of them: `don't` is `don`, `t`."""
    return _WORD.findall(_plain(text))


def joined(text: str) -> list[str]:
    """The words of a text without the marks in and around them: `don't` is `dont`."""
    return _MARK.sub("", _plain(text)).split()


def shingles(words: Sequence[str], size: int) -> set[str]:
    """Every run of `size` words; the text itself where it is shorter."""
    return {" ".join(words[at : at + size]) for at in range(max(1, len(words) - size + 1))}


def conversations(record: Record) -> tuple[Messages, ...]:
    """The conversations that a record holds: one, or one per branch."""
    return (record.messages,) if isinstance(record, Conversation) else record.branches


def contents(record: Record) -> Iterator[str]:
    """What each turn says; what the branches of a preference share is said once."""
    turns = (turn for messages in conversations(record) for turn in messages)
    return (turn.content for turn in dict.fromkeys(turns))


def _plain(text: str) -> str:
    return unicodedata.normalize("NFKC", text).casefold()
