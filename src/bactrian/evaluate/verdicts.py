"""Whether judgments are enough to make a score of, and what is to be said of those that failed."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

from bactrian import progress
from bactrian.errors import JudgeError, printable
from bactrian.evaluate import reading
from bactrian.evaluate.artifacts import Folder
from bactrian.evaluate.endpoint import Endpoint
from bactrian.evaluate.judge import AnyJudge

Row = dict[str, Any]

_MOST_FAILED = 0.1  # share of the judgments
_QUOTED = 60  # characters of a reply, in a message


def check(rows: Sequence[Row], folder: Folder, judge: AnyJudge) -> None:
    """Raise `JudgeError` where the budget left some unasked, or so many failed that the rest are another benchmark."""
    kept = f"; the others are in {folder.file('judgments.jsonl')}"
    unasked = [row for row in rows if row.get("was_asked") is False]
    if unasked:
        raise JudgeError(
            f"{len(unasked)} of {len(rows)} judgments were not asked for: {unasked[0]['error']}{kept}, and the same "
            f"command with a larger budget goes on"
        )
    failed = [row for row in rows if "error" in row]
    enough(failed, len(rows), kept + _remedy(failed, judge))


def enough(failed: Sequence[Row], total: int, more: str, prefix: str = "") -> None:
    """Raise `JudgeError` where so many of all judgments failed that the rest are another benchmark.

    A failed row has the reason as its `error`, and where there was a reply what it said, and its finish reason.
    """
    if len(failed) > _MOST_FAILED * total:
        raise JudgeError(
            f"{prefix}{len(failed)} of {total} judgments failed ({why(failed)}), too many for a score, which allows "
            f"one in {1 / _MOST_FAILED:.0f}{more}"
        )


def tell_of_failures(rows: Sequence[Row], judge: AnyJudge | None = None) -> None:
    """Say how many judgments are in no mean."""
    failed = [row for row in rows if "error" in row]
    if failed:
        progress.say(
            f"warning: {len(failed)} of {len(rows)} judgments failed ({why(failed)}) and are in no mean"
            f"{_remedy(failed, judge)}"
        )


def why(failed: Sequence[Row]) -> str:
    """The commonest reason, with one of the replies that it is about and how that ended."""
    reasons = Counter(str(row["error"]) for row in failed)
    reason, times = reasons.most_common(1)[0]
    row = next(row for row in failed if str(row["error"]) == reason)
    words = reason if len(reasons) == 1 else f"{times}: {reason}"
    if row.get("reply") or row.get("finish_reason"):
        words += f'; one reply: "{printable(str(row.get("reply") or ""), _QUOTED)}"'
    if row.get("finish_reason"):
        words += f", finish reason {printable(str(row['finish_reason']), _QUOTED)}"
    return words


def note(failed: int, limit: int | None) -> str | None:
    """What a figure's reader must know: that some judgments failed, or that not all was asked."""
    notes = [f"the first {limit} questions alone"] if limit else []
    notes += [f"{failed} judgments failed"] if failed else []
    return "; ".join(notes) or None


def _remedy(failed: Sequence[Row], judge: AnyJudge | None) -> str:
    """How they can be asked for again: requests that got no reply always are, replies are kept as they are."""
    if not isinstance(judge, Endpoint):
        return ""
    if 2 * sum(reading.CUT_OFF in str(row["error"]) for row in failed) > len(failed):
        return "; give the judge more tokens, with --judge-max-completion"
    with_reply = sum("finish_reason" in row for row in failed)
    if not with_reply:
        return "; the same command asks for them again"
    if with_reply < len(failed):
        return "; the same command asks again where there was no reply, and with a larger --reasks for the others"
    return "; these replies are kept, and the same command with a larger --reasks asks for others"
