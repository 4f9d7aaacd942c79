"""Law: hosts that share out a batch read each of its rows once among them, and know of all rows whose they are."""

import dataclasses

import numpy as np
import pytest

from bactrian.data import packing
from bactrian.data.records import Batch, Example
from bactrian.prepare import ALONE, Parts


class Counted(list):
    """Examples that count how often each was read."""

    def __init__(self, examples: list[Example]):
        super().__init__(examples)
        self.reads = [0] * len(examples)

    def __getitem__(self, index):
        self.reads[index] += 1
        return super().__getitem__(index)


@pytest.mark.parametrize("shares", [[{0}, {1}, {2}, {3}], [{0, 3}, {1, 2}], [{0, 1, 2, 3}]])
def test_every_row_is_read_by_one_host(shares: list[set[int]]):
    random = np.random.default_rng(0)
    tokens = [random.integers(1, 50, length).astype(np.int32) for length in random.integers(5, 30, 30)]
    examples = [Example(ids, np.ones(len(ids), bool), ()) for ids in tokens]
    lengths = np.array([len(ids) - 1 for ids in tokens])
    plan = packing.plan(lengths, [np.arange(30)], 64, 8, 1)
    references = -random.random((30, 1)).astype(np.float32)
    assert ALONE.owning(plan, 8) == plan
    whole = packing.batch(plan, examples, 0, references)

    parts, reads = [], np.zeros(30, int)
    for share in shares:
        owned, counted = Parts(4, 1, frozenset(share)).owning(plan, 8), Counted(examples)
        assert dataclasses.replace(owned, own=None) == plan
        parts.append(packing.batch(owned, counted, 0, references))
        reads += counted.reads
        # A microbatch has eight rows, two for each of the four parts.
        assert owned.own == {row for row in range(plan.rows) if row % 8 // 2 in share}
    assert reads.tolist() == [1] * 30
    for name in Batch._fields:
        columns = [getattr(part, name) for part in parts]
        if name in ("examples", "references"):
            assert all(np.array_equal(column, getattr(whole, name)) for column in columns)
        else:
            assert np.array_equal(sum(columns), getattr(whole, name))
