"""What of the data can be used, and an account of what cannot: rows read = rows kept + rows dropped, by reason."""

from dataclasses import dataclass, field
from typing import Any

from bactrian.data.records import Conversation, Preference
from bactrian.errors import DataError


def unusable(record: Conversation | Preference) -> str | None:
    """Why there is nothing to learn from a record, or None.

    empty_answer:      the last assistant's turn is blank, in any branch.
    identical_answers: two branches are the same but for blanks around the answer, so neither is the better one.
    """
    if isinstance(record, Conversation):
        answers = [turn.content for turn in record.messages if turn.role == "assistant"]
        return None if answers and answers[-1].strip() else "empty_answer"
    branches = {(branch[:-1], branch[-1].content.strip()) for branch in record.branches}
    if any(not answer for _, answer in branches):
        return "empty_answer"
    return "identical_answers" if len(branches) < len(record.branches) else None


@dataclass
class Ledger:
    """What became of the rows of one source. It adds up: `read == kept + sum(dropped.values())`."""

    read: int = 0
    kept: int = 0
    dropped: dict[str, int] = field(default_factory=dict)

    def keep(self) -> None:
        self.read += 1
        self.kept += 1

    def drop(self, reason: str) -> None:
        self.read += 1
        self.dropped[reason] = self.dropped.get(reason, 0) + 1

    def add(self, other: "Ledger") -> None:
        """Count in what another ledger counted."""
        self.read += other.read
        self.kept += other.kept
        for reason, count in other.dropped.items():
            self.dropped[reason] = self.dropped.get(reason, 0) + count

    def to_json(self) -> dict[str, Any]:
        return {"read": self.read, "kept": self.kept, "dropped": self.dropped}

    def check(self, max_dropped: float, where: str) -> None:
        """Raise `DataError` if a larger share of the rows was dropped than `max_dropped`."""
        dropped = self.read - self.kept
        if dropped > max_dropped * self.read:
            reasons = ", ".join(f"{count} {reason}" for reason, count in sorted(self.dropped.items()))
            raise DataError(
                f"{where}: {dropped} of {self.read} rows ({dropped / self.read:.1%}) cannot be used: {reasons}; "
                f"repair the data, or raise max_dropped (now {max_dropped:g})"
            )
