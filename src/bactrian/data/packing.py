"""Which examples share a row, planned before the first step; any row is a function of the plan and the corpus.

An update's examples are packed among themselves, so that a batch means what the recipe says, and their rows have one
length for the whole run: the candidate that wastes least. A pair is one segment: its shared prompt once, then each
branch. The last shared token predicts a different token on each branch, so each branch begins with its own copy of it,
at its own position.
"""

import heapq
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, Protocol

import numpy as np

from bactrian.data.records import Batch, Example
from bactrian.errors import DataError

_LENGTHS = 16  # candidate row lengths: sixteenths of the capacity
_GRAIN = 64  # row lengths that are chosen are multiples of this
_ROW_COST = 64  # what one more row costs beside its places, in places: few long rows beat many short ones
_SAMPLED_UPDATES = 200  # enough to choose a row length by


class Examples(Protocol):
    """A corpus, or any sequence of examples."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Example: ...


class Layout(NamedTuple):
    """One example as it lies in a row; all [n]. See `Batch` for what the columns are."""

    tokens: np.ndarray
    targets: np.ndarray
    learn: np.ndarray
    positions: np.ndarray
    branches: np.ndarray


@dataclass(frozen=True)
class Plan:
    """The rows of every update.

    updates: for each update its rows, for each row its examples.
    row_length: places in a row (T); rows: rows in an update's batch (B); segments: most examples in a row (S);
    branches: most branches of an example (K). own: the rows whose places this process fills, None for all of them.
    scales: laid out as `updates`, what each learnt token of an example counts in that update; None where all count 1.
    """

    updates: tuple[tuple[tuple[int, ...], ...], ...]
    row_length: int
    rows: int
    segments: int
    branches: int
    own: frozenset[int] | None = None
    scales: tuple[tuple[tuple[float, ...], ...], ...] | None = None

    def examples(self, update: int) -> list[int]:
        """The examples of one update, in the order of its rows."""
        return [example for row in self.updates[update] for example in row]


def places(length: int, starts: Sequence[int]) -> int:
    """How many places an example of `length` tokens takes in a row."""
    if not starts:
        return length - 1
    copies = len(starts) if starts[0] else 0
    return max(starts[0] - 1, 0) + length - starts[0] + copies - len(starts)


def lay_out(example: Example) -> Layout:
    """An example as the places of a row: every token that predicts another, beside what it predicts.

    Prompt `a b c`, answers `d e` and `f`:
        tokens    a b  c d  c        targets   b c  d e  f
        positions 0 1  2 3  2        branches  0 0  1 1  2
    """
    shared = example.starts[0] if example.starts else len(example.tokens)
    paths = [(example.tokens[:shared], example.learn[:shared], 0)]
    for branch in range(len(example.starts)):
        tokens, learn = example.branch(branch)
        first = max(shared - 1, 0)
        paths.append((tokens[first:], learn[first:], first))
    columns = [
        Layout(
            tokens[:-1],
            tokens[1:],
            learn[1:],
            np.arange(first, first + len(tokens) - 1, dtype=np.int32),
            np.full(len(tokens) - 1, branch, np.int32),
        )
        for branch, (tokens, learn, first) in enumerate(paths)
        if len(tokens)
    ]
    return Layout(*(np.concatenate(column) for column in zip(*columns, strict=True)))


def plan(
    lengths: np.ndarray,
    order: Sequence[np.ndarray] | np.ndarray,
    capacity: int,
    rows_multiple: int,
    branches: int,
    row_length: int | None = None,
    places_multiple: int = 1,
) -> Plan:
    """Pack every update of `order`, each an int array of examples; `lengths` are the examples' places.

    Rows have `row_length` places if it is given, else the length, up to `capacity`, that wastes least; an update has a
    multiple of `rows_multiple` rows, the last of them empty if need be. A length that is chosen is a multiple of
    `places_multiple`, if the capacity is. Raises `DataError` if an example is longer than a row can be.
    """
    longest = int(max((lengths[batch].max(initial=1) for batch in order), default=1))
    if longest > (row_length or capacity):
        raise DataError(f"an example takes {longest} places and a row has {row_length or capacity}; raise row_length")
    if row_length is None:
        grain = math.lcm(_GRAIN, places_multiple)
        row_length = _best_length(lengths, order, longest, capacity, rows_multiple, grain)
    updates = tuple(_pack(lengths, batch, row_length) for batch in order)
    most_rows = max((len(rows) for rows in updates), default=1)
    most_segments = max((len(row) for rows in updates for row in rows), default=1)
    return Plan(
        updates=updates,
        row_length=row_length,
        rows=-(-most_rows // rows_multiple) * rows_multiple,
        segments=1 << (most_segments - 1).bit_length(),
        branches=branches,
    )


def mean_of_means(plan: Plan, order: Sequence[np.ndarray] | np.ndarray, learned: np.ndarray, size: int) -> Plan:
    """The plan with the scales that make an update's loss a mean of means: over each `size` examples, as `order` drew
    them, and of those. `learned` are the examples' learnt tokens; those of an update, scaled, add up to as many.
    """
    scales = []
    for rows, drawn in zip(plan.updates, order, strict=True):
        groups = drawn.reshape(-1, size)
        counts = learned[groups].sum(axis=1)
        each = np.repeat(counts.sum() / (len(groups) * counts), size)
        of_example = dict(zip(groups.reshape(-1).tolist(), each.tolist(), strict=True))
        scales.append(tuple(tuple(of_example[example] for example in row) for row in rows))
    return replace(plan, scales=tuple(scales))


def batch(plan: Plan, corpus: Examples, update: int, references: np.ndarray | None = None) -> Batch:
    """The rows of one update. `references` float32 [examples, K] fills the batch's column of that name.

    Which examples lie where, and their references, are there for all rows; what is read of the corpus for own ones.
    """
    result = empty(plan.rows, plan.row_length, plan.segments, plan.branches)
    for row, examples in enumerate(plan.updates[update]):
        if plan.own is None or row in plan.own:
            fill(result, row, [(index, corpus[index]) for index in examples])
            if plan.scales is not None:
                result.weights[row] *= np.array([0.0, *plan.scales[update][row]], np.float32)[result.segments[row]]
        result.examples[row, : len(examples)] = examples
        if references is not None:
            result.references[row, : len(examples)] = references[list(examples)]
    return result


def empty(rows: int, row_length: int, segments: int, branches: int) -> Batch:
    """Rows of padding, to be filled."""
    integers = [np.zeros((rows, row_length), np.int32) for _ in range(5)]
    tokens, targets, positions, segment_ids, branch_ids = integers
    return Batch(
        tokens=tokens,
        targets=targets,
        weights=np.zeros((rows, row_length), np.float32),
        positions=positions,
        segments=segment_ids,
        branches=branch_ids,
        examples=np.full((rows, segments), -1, np.int32),
        references=np.zeros((rows, segments, branches), np.float32),
    )


def fill(target: Batch, row: int, examples: Sequence[tuple[int, Example]]) -> None:
    """Lay examples, each with its index, side by side in one row."""
    start = 0
    for segment, (index, example) in enumerate(examples):
        laid = lay_out(example)
        here = slice(start, start + len(laid.tokens))
        target.tokens[row, here] = laid.tokens
        target.targets[row, here] = laid.targets
        target.weights[row, here] = laid.learn
        target.positions[row, here] = laid.positions
        target.branches[row, here] = laid.branches
        target.segments[row, here] = segment + 1
        target.examples[row, segment] = index
        start = here.stop


def _best_length(
    lengths: np.ndarray,
    order: Sequence[np.ndarray] | np.ndarray,
    longest: int,
    capacity: int,
    rows_multiple: int,
    grain: int,
) -> int:
    step = max(1, len(order) // _SAMPLED_UPDATES)
    best = (np.inf, capacity)
    for part in range(1, _LENGTHS + 1):
        length = min(capacity, -(-capacity * part // (_LENGTHS * grain)) * grain)
        if length < longest:
            continue
        rows = [len(_pack(lengths, batch, length)) for batch in order[::step]]
        cost = sum(-(-count // rows_multiple) * rows_multiple * (length + _ROW_COST) for count in rows)
        best = min(best, (cost, length))
    return best[1]


def _pack(lengths: np.ndarray, batch: np.ndarray, row_length: int) -> tuple[tuple[int, ...], ...]:
    """Best fit, longest first: each example goes where least room is left after it, to the first such row."""
    own = lengths[batch]
    ordered = np.lexsort((batch, -own))
    rows: list[list[int]] = []
    waiting: dict[int, list[int]] = {}  # places left → rows that have so many, a heap
    # Bit n is set where rows with n places left wait: the least that is enough is found in one step, however many.
    rooms = 0
    for example, length in zip(batch[ordered].tolist(), own[ordered].tolist(), strict=True):
        enough = rooms >> length
        if enough:
            room = length + (enough & -enough).bit_length() - 1
            row = heapq.heappop(waiting[room])
            if not waiting[room]:
                rooms ^= 1 << room
        else:
            rows.append([])
            room, row = row_length, len(rows) - 1
        rows[row].append(example)
        left = room - length
        heapq.heappush(waiting.setdefault(left, []), row)
        rooms |= 1 << left
    return tuple(tuple(row) for row in rows)
