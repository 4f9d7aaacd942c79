"""What of the data can be used, and an account of what cannot: rows read = rows kept + rows dropped, by reason."""

from dataclasses import dataclass, field, fields
from typing import Any

from bactrian.data.records import Conversation, Preference
from bactrian.errors import ChatError, DataError, printable

BAD_SHOWN = 20  # bad rows of one source that a ledger quotes
_COUNTS = ("dropped", "noted", "bad_kinds")


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
    """What became of the rows of one source. It adds up: `read == kept + sum(dropped.values())`.

    noted: what was counted without dropping a row, as `masked_turns` of those kept.
    bad_kinds: the rows dropped as `bad_row`, by what is wrong with them; bad_rows: what the first of them say.
    """

    read: int = 0
    kept: int = 0
    dropped: dict[str, int] = field(default_factory=dict)
    noted: dict[str, int] = field(default_factory=dict)
    bad_kinds: dict[str, int] = field(default_factory=dict)
    bad_rows: list[str] = field(default_factory=list)

    @classmethod
    def of(cls, entry: dict[str, Any]) -> "Ledger":
        """The account in a source's entry of `ledger.json`."""
        return cls(**{each.name: entry[each.name] for each in fields(cls) if each.name in entry})

    def keep(self) -> None:
        self.read += 1
        self.kept += 1

    def drop(self, reason: str) -> None:
        self.read += 1
        _count(self.dropped, reason)

    def drop_bad(self, error: DataError | ChatError) -> None:
        """A row that cannot be read, or that the chat format cannot render."""
        self.drop("bad_row")
        _count(self.bad_kinds, error.kind if isinstance(error, DataError) else "chat_format")
        if len(self.bad_rows) < BAD_SHOWN:
            self.bad_rows.append(printable(str(error)))

    def note(self, what: str, count: int = 1) -> None:
        if count:
            _count(self.noted, what, count)

    def add(self, other: "Ledger") -> None:
        """Count in what another ledger counted."""
        self.read += other.read
        self.kept += other.kept
        for mine, theirs in ((getattr(self, name), getattr(other, name)) for name in _COUNTS):
            for reason, count in theirs.items():
                _count(mine, reason, count)
        self.bad_rows += other.bad_rows[: BAD_SHOWN - len(self.bad_rows)]

    def to_json(self) -> dict[str, Any]:
        counts = {"read": self.read, "kept": self.kept, "dropped": self.dropped}
        others = {"noted": self.noted, "bad_kinds": self.bad_kinds, "bad_rows": self.bad_rows}
        return counts | {key: value for key, value in others.items() if value}

    def check(self, max_dropped: float, where: str) -> None:
        """Raise `DataError` if a larger share of the rows was dropped than `max_dropped`."""
        dropped = self.read - self.kept
        if dropped > max_dropped * self.read:
            kinds = f" ({listed(self.bad_kinds)})" if self.bad_kinds else ""
            raise DataError(
                f"{where}: {dropped} of {self.read} rows ({dropped / self.read:.1%}) cannot be used: "
                f"{listed(self.dropped)}{kinds}; repair the data, or raise max_dropped (now {max_dropped:g})"
            )


def listed(counts: dict[str, int]) -> str:
    """Counts by reason, as `3 empty_answer, 1 too_long`."""
    return ", ".join(f"{count:,} {reason}" for reason, count in sorted(counts.items()))


def _count(counts: dict[str, int], what: str, count: int = 1) -> None:
    counts[what] = counts.get(what, 0) + count
