"""What a judge's reply says: a verdict, or why there is none. One notion of a missing verdict for every protocol.

A request that got no reply, a refusal, a filter, a reply that is empty, truncated, no text, or says nothing that the
protocol can read: each is `Missing`, with its reason, and counts as failed.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from bactrian.errors import printable
from bactrian.evaluate.calls import Failure, Reply
from bactrian.files import documents

FILTERED = "content_filter"  # the finish reason of a reply that a filter stopped
TRUNCATED = "length"  # that of one that ran out of tokens
CUT_OFF = "truncated before"  # in every reason that more tokens would have mended
_QUOTED = 100  # characters of a reply, in a row and in a message

Value = TypeVar("Value")


@dataclass(frozen=True)
class Missing:
    """No verdict, and why; where there was a reply, how it ended and what it said."""

    reason: str
    was_asked: bool = True
    finish: str | None = None
    said: str = ""

    def as_row(self) -> dict[str, Any]:
        """Columns beside those of a benchmark's own layout."""
        row: dict[str, Any] = {"error": self.reason, "was_asked": self.was_asked}
        if self.finish is not None:
            row |= {"finish_reason": self.finish, "reply": printable(self.said, _QUOTED)}
        return row


def verdict(
    outcome: Reply | Failure, value: Callable[[Reply], Value | None], lacking: Callable[[Reply], str]
) -> Value | Missing:
    """What `value` reads in a reply. Where it reads nothing, `lacking` says what the reply lacks."""
    if isinstance(outcome, Failure):
        return Missing(outcome.reason, outcome.was_asked)
    reason = _unreadable(outcome)
    if reason is None:
        found = value(outcome)
        if found is not None:
            return found
        reason = lacking(outcome)
    return Missing(reason, finish=outcome.finish, said=outcome.refusal or outcome.text)


def lacking_in_text(reply: Reply, what: str) -> str:
    """Why a text holds no verdict: it is empty or truncated, or else `what`."""
    if reply.finish == TRUNCATED:
        return f"the reply was {CUT_OFF} its verdict"
    return what if reply.text.strip() else "the reply is empty"


def clean(text: str) -> str:
    """A reply's text as a file can hold it: halves of surrogate pairs, which are no characters, are replaced."""
    return text.encode("utf-8", "replace").decode()


def _unreadable(reply: Reply) -> str | None:
    if reply.finish == FILTERED:
        return "a content filter stopped the reply"
    if reply.refusal is not None:
        return "the judge refused"
    if reply.fault is not None:
        early = f"; it was {CUT_OFF} it said anything" if reply.finish == TRUNCATED and not reply.text else ""
        return reply.fault + early
    return None if documents.is_text(reply.text) else "the reply holds half of a surrogate pair, which is no character"
