"""Contexts and their continuations, packed to be scored: each context once, with a branch for each continuation.

A context's last token predicts the first token of every continuation, so that place is asked about all of them; a
continuation of n tokens takes n - 1 places of its own. Of a question of four letters nothing but the context is read.

    context a b c, continuations `d e` and `f`
        tokens    a b c  d      positions 0 1 2  3      branches  0 0 0  1
        asked     at c for d and f, at d for e
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from bactrian.data import packing, sharing

_LENGTHS = tuple(base << shift for shift in range(9) for base in (64, 80, 96, 112))  # of rows
_ATTENTION_FREE = 2700.0  # places of a row that take twice as long as those of the shortest, measured on a CPU
_BATCH_COST = 20  # places that could be read in the time that a batch takes beside its places
_SMALLEST_CLASS = 8  # segments up to so many places, as a power of two, share rows whatever their lengths
_FEWEST_ASKED = 16


@dataclass(frozen=True)
class Request:
    """One context and its continuations, int32 each; no two of the continuations are the same, none is empty."""

    context: np.ndarray
    continuations: tuple[np.ndarray, ...]


class Asked(NamedTuple):
    """Where the log-probabilities of one token are found: the request, its continuation, the question, the column."""

    request: int
    continuation: int
    question: int
    column: int


@dataclass(frozen=True)
class Rows:
    """A batch of packed rows and what is asked of it.

    tokens, segments, branches, positions: int32 [B, T]; positions count from the end of the shared beginning.
    places: int32 [Q], through all rows; targets: int32 [Q, A]; `count` of the questions are meant.
    """

    tokens: np.ndarray
    segments: np.ndarray
    branches: np.ndarray
    positions: np.ndarray
    places: np.ndarray
    targets: np.ndarray
    count: int
    asked: list[Asked]


class Batches(NamedTuple):
    """Batches that come after the same tokens, int32 [P], maybe none."""

    beginning: np.ndarray
    rows: list[Rows]


class _Segment(NamedTuple):
    """A context without its shared beginning, and some of its request's continuations."""

    request: int
    context: np.ndarray
    continuations: tuple[int, ...]
    length: int


def batches(requests: Sequence[Request], at_once: int) -> list[Batches]:
    """All requests, in batches of about `at_once` places, a request in one, or in more if it would fill them."""
    found = []
    # A group of its own wastes half a batch, in the mean.
    for group in sharing.groups([request.context for request in requests], at_once // 2):
        segments = [
            segment for index in group.members for segment in _segments(index, requests[index], group.shared, at_once)
        ]
        rows = []
        for alike in _by_size(segments):
            rows += [_fill(batch, requests, length, at_once) for length, batch in _pack(alike, at_once)]
        found.append(Batches(requests[group.members[0]].context[: group.shared], rows))
    return found


def _segments(index: int, request: Request, shared: int, at_once: int) -> list[_Segment]:
    """The request as one segment; as several if it would fill a batch."""
    context = request.context[shared:]
    found, own, length = [], [], len(context)
    for number, continuation in enumerate(request.continuations):
        added = len(continuation) - 1
        if own and length + added > at_once:
            found.append(_Segment(index, context, tuple(own), length))
            own, length = [], len(context)
        own.append(number)
        length += added
    return [*found, _Segment(index, context, tuple(own), length)]


def _by_size(segments: list[_Segment]) -> list[list[_Segment]]:
    """Short ones apart from long ones, so that a long one does not make everybody's rows long."""
    classes: dict[int, list[_Segment]] = {}
    for segment in segments:
        classes.setdefault(max(_SMALLEST_CLASS, (segment.length - 1).bit_length()), []).append(segment)
    return [classes[size] for size in sorted(classes, reverse=True)]


def _pack(segments: list[_Segment], at_once: int) -> list[tuple[int, list[list[_Segment]]]]:
    """Batches of rows, each row a list of segments, with their row length: the one that costs least."""
    lengths = np.array([segment.length for segment in segments])
    everything = [np.arange(len(segments))]
    longest = int(lengths.max())
    fitting = [length for length in _LENGTHS if longest <= length <= max(4 * longest, _LENGTHS[0])]
    best: tuple[float, int, tuple[tuple[int, ...], ...]] | None = None
    for length in fitting or [-(-longest // 1024) * 1024]:
        rows = packing.plan(lengths, everything, length, 1, 1, row_length=length).updates[0]
        batch_count = -(-len(rows) // max(1, at_once // length))
        cost = len(rows) * length * (1 + length / _ATTENTION_FREE) + _BATCH_COST * batch_count
        if best is None or cost < best[0]:
            best = cost, length, rows
    assert best is not None
    _, length, rows = best
    count = max(1, at_once // length)
    filled = [[segments[index] for index in row] for row in rows]
    return [(length, filled[start : start + count]) for start in range(0, len(filled), count)]


def _fill(rows: list[list[_Segment]], requests: Sequence[Request], length: int, at_once: int) -> Rows:
    height = min(_power_of_two(len(rows)), max(1, at_once // length))
    tokens, segments, branches, positions = (np.zeros((height, length), np.int32) for _ in range(4))
    questions: list[tuple[int, list[int]]] = []
    asked: list[Asked] = []
    for row, members in enumerate(rows):
        at = 0
        for number, segment in enumerate(members, 1):
            end = at + segment.length
            segments[row, at:end] = number
            known = len(segment.context)
            tokens[row, at : at + known] = segment.context
            positions[row, at : at + known] = np.arange(known)
            firsts: dict[int, int] = {}
            first_question = len(questions)
            questions.append((row * length + at + known - 1, []))
            at += known
            for branch, number_of in enumerate(segment.continuations, 1):
                continuation = requests[segment.request].continuations[number_of]
                column = firsts.setdefault(int(continuation[0]), len(firsts))
                asked.append(Asked(segment.request, number_of, first_question, column))
                own = slice(at, at + len(continuation) - 1)
                tokens[row, own] = continuation[:-1]
                branches[row, own] = branch
                positions[row, own] = np.arange(known, known + len(continuation) - 1)
                for offset, target in enumerate(continuation[1:]):
                    asked.append(Asked(segment.request, number_of, len(questions), 0))
                    questions.append((row * length + at + offset, [int(target)]))
                at = own.stop
            questions[first_question][1].extend(firsts)
    capacity = max(_FEWEST_ASKED, _power_of_two(len(questions)))
    width = _power_of_two(max(len(targets) for _, targets in questions))
    places, wanted = np.zeros(capacity, np.int32), np.zeros((capacity, width), np.int32)
    for index, (place, targets) in enumerate(questions):
        places[index] = place
        wanted[index, : len(targets)] = targets
    return Rows(tokens, segments, branches, positions, places, wanted, len(questions), asked)


def _power_of_two(count: int) -> int:
    return 1 << (count - 1).bit_length()
