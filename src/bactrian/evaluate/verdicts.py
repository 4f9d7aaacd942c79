"""Whether judgments are enough to make a score of, and what is to be said of those that failed."""

from collections.abc import Sequence
from typing import Any

from bactrian import progress
from bactrian.errors import JudgeError
from bactrian.evaluate.artifacts import Folder
from bactrian.evaluate.judge import AnyJudge, Replay

Row = dict[str, Any]

_MOST_FAILED = 0.1  # share of the judgments


def check(rows: Sequence[Row], folder: Folder, judge: AnyJudge) -> None:
    """Raise `JudgeError` where the budget left some unasked, or so many failed that the rest are another benchmark."""
    kept = f"the others are in {folder.file('judgments.jsonl')}"
    unasked = [row for row in rows if row.get("was_asked") is False]
    if unasked:
        raise JudgeError(
            f"{len(unasked)} of {len(rows)} judgments were not asked for: {unasked[0]['error']}; {kept}, and the same "
            f"command with a larger budget goes on"
        )
    failed = [row for row in rows if "error" in row]
    if len(failed) > _MOST_FAILED * len(rows):
        raise JudgeError(
            f"{len(failed)} of {len(rows)} judgments failed ({failed[0]['error']}), too many for a score; {kept}"
            f"{_remedy(judge)}"
        )


def tell_of_failures(rows: Sequence[Row], judge: AnyJudge) -> None:
    """Say how many judgments are in no mean."""
    failed = [row for row in rows if "error" in row]
    if failed:
        progress.say(
            f"warning: {len(failed)} of {len(rows)} judgments failed ({failed[0]['error']}) and are in no mean"
            f"{_remedy(judge)}"
        )


def note(failed: int, limit: int | None) -> str | None:
    """What a figure's reader must know: that some judgments failed, or that not all was asked."""
    notes = [f"the first {limit} questions alone"] if limit else []
    notes += [f"{failed} judgments failed"] if failed else []
    return "; ".join(notes) or None


def _remedy(judge: AnyJudge) -> str:
    return "" if isinstance(judge, Replay) else "; the same command asks for them again"
