"""All records of a build at once, as columns of numbers: what is screened out, what is drawn, and the account of it."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bactrian import progress
from bactrian.data import mixture
from bactrian.data.build import screening, shards, store
from bactrian.data.build.recipe import Build
from bactrian.data.chat import Chat
from bactrian.data.mixture import Part
from bactrian.data.sources.kinds import Share
from bactrian.errors import DataError

_BAD_SHOWN = 10  # errors of one source that the ledger quotes
_SHUFFLE = 2**32  # what seeds the order of the whole; sources are seeded by their numbers, which are smaller


@dataclass
class Records:
    """The records of one source, in its order, and the rows that became none.

    places:  int64 [n, 4]: source, chunk, offset and length in the store.
    reasons: int16 [n]: why a screen drops a record, as an index into `names`; -1 where none does.
    times:   int64 [n]: how often a record is drawn.
    dropped: what became no record, by reason; bad: some of the errors, bad_kinds: all of them by what is wrong;
    noted: what parsers counted beside.
    kinds:   what the records are, of `store.KINDS`.
    """

    places: np.ndarray
    reasons: np.ndarray
    names: list[str]
    times: np.ndarray
    rows: int
    dropped: dict[str, int]
    bad: list[str]
    bad_kinds: dict[str, int]
    noted: dict[str, int]
    kinds: set[str]

    @property
    def written(self) -> np.ndarray:
        """How often each record is written, int64 [n]."""
        return np.where(self.reasons < 0, self.times, 0)

    def drop(self, index: int, reason: str) -> None:
        if reason not in self.names:
            self.names.append(reason)
        self.reasons[index] = self.names.index(reason)

    def ledger(self, early: bool) -> dict[str, Any]:
        """The account of the records; `early`: whether they were drawn before they were screened."""
        dropped = dict(self.dropped)
        seen = self.times > 0 if early else np.ones(len(self.times), bool)
        for number, name in enumerate(self.names):
            count = int(((self.reasons == number) & seen).sum())
            if count:
                dropped[name] = dropped.get(name, 0) + count
        left = int((~seen).sum() if early else ((self.reasons < 0) & (self.times == 0)).sum())
        if left:
            dropped["not_drawn"] = left
        kept, written = int((self.written > 0).sum()), int(self.written.sum())
        read = len(self.times) + sum(self.dropped.values())
        entry = {"rows": self.rows, "read": read, "kept": kept, "dropped": dropped}
        return {**entry, "repeated": written - kept, "written": written, "noted": self.noted}


def gather(recipe: Build, parts: Path, chunks: Sequence[int]) -> list[Records]:
    """The records of every source, from the store. Raises `DataError` where a source has none."""
    gathered = []
    for source, section in enumerate(recipe.sources):
        records = _gather(parts, source, chunks[source])
        if not len(records.times):
            reasons = ", ".join(f"{count} {reason}" for reason, count in sorted(records.dropped.items()))
            first = f"; the first: {records.bad[0]}" if records.bad else ""
            raise DataError(f"{section.path}: no row of it can be used ({reasons}){first}")
        gathered.append(records)
    return gathered


def kind(recipe: Build, records: Sequence[Records]) -> str:
    """What the records are, all together. Raises `DataError` where conversations and preferences come together."""
    kinds = {name for each in records for name in each.kinds}
    if "conversations" in kinds and len(kinds) > 1:
        of = {each.name: sorted(found.kinds)[0] for each, found in zip(recipe.sources, records, strict=True)}
        talks = next(name for name, what in of.items() if what == "conversations")
        other = next((name for name, what in of.items() if what != "conversations"), talks)
        raise DataError(
            f"{talks} has conversations and {other} preferences, which cannot be one data set; build them apart"
        )
    return next(name for name in reversed(store.KINDS) if name in kinds)


def masks(records: Sequence[Records]) -> bool:
    """Whether some assistant's turn is masked."""
    return any("masked_turns" in each.noted for each in records)


def _gather(parts: Path, source: int, chunks: int) -> Records:
    places: list[np.ndarray] = [np.zeros((0, 4), np.int64)]
    reasons: list[int] = []
    names: list[str] = []
    dropped: dict[str, int] = {}
    noted: dict[str, int] = {}
    bad: list[str] = []
    kinds: set[str] = set()
    rows = 0
    bad_kinds: dict[str, int] = {}
    for chunk in range(chunks):
        index = store.index(parts, source, chunk)
        lengths = np.array(index.lengths, np.int64)
        place = np.empty((len(lengths), 4), np.int64)
        place[:, 0], place[:, 1] = source, chunk
        place[:, 2], place[:, 3] = lengths.cumsum() - lengths, lengths
        places.append(place)
        for reason in index.reasons:
            if reason is not None and reason not in names:
                names.append(reason)
            reasons.append(-1 if reason is None else names.index(reason))
        for sums, counts in ((dropped, index.dropped), (noted, index.noted), (bad_kinds, index.bad_kinds)):
            for what, count in counts.items():
                sums[what] = sums.get(what, 0) + count
        bad += index.bad[: _BAD_SHOWN - len(bad)]
        kinds.update(index.kinds)
        rows += index.rows
    whole = np.concatenate(places)
    codes, times = np.array(reasons, np.int16), np.ones(len(whole), np.int64)
    return Records(whole, codes, names, times, rows, dropped, bad, bad_kinds, noted, kinds)


def screen_and_draw(recipe: Build, chat: Chat | None, records: Sequence[Records], parts: Path) -> None:
    """Apply the screens that must see records in order, and draw what the mixture wants, in the recipe's sequence."""
    everything = [np.arange(len(each.times)) for each in records]
    if recipe.mixture.draw == "before_screens":
        _draw(recipe, records, everything)
        _screen(recipe, chat, records, parts)
    else:
        _screen(recipe, chat, records, parts)
        _draw(recipe, records, [np.flatnonzero(each.reasons < 0) for each in records])


def mix(recipe: Build, records: Sequence[Records]) -> np.ndarray:
    """The places of the rows of the data set, int64 [rows, 4], in their order. Raises `DataError` if there is none."""
    rows = np.concatenate([np.repeat(each.places, each.written, axis=0) for each in records])
    if not len(rows):
        raise DataError(f"{recipe.name}: no record is left after the screens; loosen them")
    if recipe.mixture.shuffle:
        rows = rows[np.random.default_rng([recipe.seed, _SHUFFLE]).permutation(len(rows))]
    return rows


def ledger(recipe: Build, records: Sequence[Records], done: Sequence[shards.Done], counted: bool) -> dict[str, Any]:
    """What became of every record, by source. `counted`: whether there was a tokenizer to count tokens with."""
    entries = []
    for number, (source, each) in enumerate(zip(recipe.sources, records, strict=True)):
        entry = {"name": source.name, "path": source.path, "format": source.format}
        entry |= {"licence": source.licence, **each.ledger(recipe.mixture.draw == "before_screens")}
        entry["tokens"] = sum(shard.tokens.get(number, 0) for shard in done) if counted else None
        entry["learned_tokens"] = sum(shard.learned.get(number, 0) for shard in done) if counted else None
        if each.bad:
            entry["bad_rows"], entry["bad_kinds"] = each.bad, each.bad_kinds
        entries.append(entry)
    sums = {"read": 0, "kept": 0, "written": 0}
    totals: dict[str, Any] = {key: sum(entry[key] for entry in entries) for key in sums}
    for key in ("tokens", "learned_tokens"):
        totals[key] = sum(entry[key] for entry in entries) if counted else None
    return {"sources": entries, **totals}


def _draw(recipe: Build, records: Sequence[Records], choices: Sequence[np.ndarray]) -> None:
    parts = [_part(source, len(choice)) for source, choice in zip(recipe.sources, choices, strict=True)]
    wanted = mixture.amounts(parts, recipe.mixture.size, recipe.mixture.temperature)
    for number, (each, choice, amount) in enumerate(zip(records, choices, wanted, strict=True)):
        each.times[:] = 0
        if amount:
            drawn = choice[mixture.draw(len(choice), amount, [recipe.seed, number])]
            np.add.at(each.times, drawn, 1)


def _part(source: Share, records: int) -> Part:
    if not records:
        raise DataError(f"{source.path}: no record of it is left after the screens; loosen them, or take it out")
    return Part(source.name, records, source.count, source.proportion, source.epochs, source.repeat)


def _screen(recipe: Build, chat: Chat | None, records: Sequence[Records], parts: Path) -> None:
    """The screens that remember, on what is kept and drawn so far, source by source, row by row."""
    screens = [screening.make(section, chat) for section in recipe.screens if section.in_order]
    if not screens:
        return
    total = sum(int((each.written > 0).sum()) for each in records)
    seen = 0
    with progress.bar("screening", total) as bar, store.Reader(parts) as reader:
        for source, each in zip(recipe.sources, records, strict=True):
            for index in np.flatnonzero(each.written > 0).tolist() if source.screened else ():
                record = reader.record(*each.places[index].tolist())
                reason = next((why for screen in screens if (why := screen(record)) is not None), None)
                if reason is not None:
                    each.drop(index, reason)
                seen += 1
                if seen % 1000 == 0:
                    bar.to(seen, total)
