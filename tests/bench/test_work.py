"""What a step has to compute, counted from examples, is what its rows hold."""

from dataclasses import replace

import numpy as np
import pytest

from bactrian.data import packing
from bactrian.data.records import Example
from bactrian.model import llama
from bactrian.model.attention import Places, visible


def examples(branches: int) -> list[Example]:
    random = np.random.default_rng(branches)
    made = []
    for _ in range(7):
        shared, own = int(random.integers(0 if branches else 4, 30)), random.integers(2, 20, branches).tolist()
        starts = tuple(shared + sum(own[:branch]) for branch in range(branches))
        count = shared + sum(own)
        made.append(Example(np.arange(count, dtype=np.int32), random.random(count) < 0.5, starts))
    return made


@pytest.mark.parametrize("branches", [0, 2, 3])
def test_counts_are_those_of_packed_rows(branches: int):
    import work

    given = examples(branches)
    lengths = np.array([packing.places(len(each.tokens), each.starts) for each in given])
    plan = packing.plan(lengths, [np.arange(len(given))], 128, 1, max(1, branches))
    batch = packing.batch(plan, given, 0)
    places = Places(batch.segments, batch.branches, batch.positions)
    counted = work.of_examples(given)
    assert counted.tokens == (batch.segments > 0).sum()
    assert counted.learned == (batch.weights > 0).sum()
    assert counted.seen == visible(places, places, None).sum()


def test_flops_are_six_per_matrix_element_and_token_and_attention():
    import work

    config = llama.Config(100, 32, 64, 3, 4, 2, 8, 64, 1e-5, 1e4)
    layer = 32 * 32 + 2 * 32 * 16 + 32 * 32 + 3 * 32 * 64  # q, k and v, o, the MLP
    assert work.Work(10, 0, 0).flops(config) == 6 * 3 * layer * 10
    assert work.Work(0, 10, 0).flops(config) == 6 * 100 * 32 * 10
    # Scores and their use, a multiplication and an addition each, forward, and twice that backward.
    assert work.Work(0, 0, 10).flops(config) == 3 * (2 + 2) * 3 * 32 * 10
    # Frozen weights have no gradient; the adapters beside them have.
    frozen = replace(config, lora=llama.Lora(5, 5.0, ("q_proj", "up_proj")))
    adapters = 3 * 5 * (32 + 32 + 32 + 64)
    assert work.Work(10, 0, 0).flops(frozen) == (4 * 3 * layer + 6 * adapters) * 10
    assert work.Work(0, 10, 0).flops(frozen) == 4 * 100 * 32 * 10
    assert work.Work(0, 0, 10).flops(frozen) == work.Work(0, 0, 10).flops(config)


def test_the_rate_is_that_of_this_process():
    import work

    assert 1e8 < work.jax_rate("float32", 256) < 1e14
