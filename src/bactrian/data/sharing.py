"""Which sequences of tokens begin alike for long enough that their beginning is worth reading once.

Sequences are sorted, so that those with a common beginning are neighbours; the tree of common beginnings is walked
once, from the leaves up, and at each node it is decided whether what hangs below it becomes a group of its own.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import NamedTuple

import numpy as np

_SHORTEST = 8  # tokens; a shorter beginning costs more to look back at than it saves


class Group(NamedTuple):
    """Sequences, by their index, of which the first `shared` tokens are the same; none is shared as a whole."""

    shared: int
    members: list[int]


@dataclass
class _Node:
    """A common beginning of `depth` tokens, and the sequences below it that have no group of their own."""

    depth: int
    members: list[int] = field(default_factory=list)


def groups(sequences: Sequence[np.ndarray], overhead: int) -> list[Group]:
    """Every sequence in one group, such that few tokens are read.

    A group of its own costs as much as reading `overhead` tokens; within it the common beginning is read once. Each
    sequence keeps at least its last token. Members are in the order of `sequences`.
    """
    order = sorted(range(len(sequences)), key=lambda index: sequences[index].astype(">u4").tobytes())
    common = [_common(sequences[a], sequences[b]) for a, b in pairwise(order)]
    stack, found = [_Node(0)], []

    def close(depth: int) -> None:
        """End the nodes that are deeper; each becomes a group if that saves more than its parent would."""
        while stack[-1].depth > depth:
            node = stack.pop()
            if stack[-1].depth < depth:
                stack.append(_Node(depth))
            count = len(node.members)
            alone, above = node.depth * (count - 1) - overhead, stack[-1].depth * count
            if node.depth >= _SHORTEST and alone > above:
                found.append(Group(node.depth, sorted(node.members)))
            else:
                stack[-1].members += node.members

    for place, index in enumerate(order):
        close(common[place - 1] if place else 0)
        after = common[place] if place < len(common) else 0
        if after > stack[-1].depth:
            stack.append(_Node(after))
        stack[-1].members.append(index)
    close(0)
    return found + [Group(0, sorted(stack[0].members))] * bool(stack[0].members)


def _common(first: np.ndarray, second: np.ndarray) -> int:
    """How many tokens both begin with, short of all of either."""
    length = min(len(first), len(second)) - 1
    differs = np.flatnonzero(first[:length] != second[:length])
    return int(differs[0]) if differs.size else max(length, 0)
