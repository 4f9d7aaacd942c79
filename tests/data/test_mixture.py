"""Laws: each epoch is a permutation, and the order is a function of the seed alone; a source gives what it is asked."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bactrian.data import mixture
from bactrian.data.mixture import Part
from bactrian.errors import DataError


@pytest.mark.parametrize(
    ("examples", "batch_size", "epochs", "updates"),
    [
        (326_154, 128, 2, 5_096),  # Tulu 2's SFT
        (61_966, 32, 3, 5_808),  # its DPO
        (7, 8, 3, 0),
        (8, 8, 1, 1),
    ],
)
def test_updates_are_those_of_the_recipes(examples: int, batch_size: int, epochs: int, updates: int):
    order = mixture.order(examples, batch_size, epochs, seed=0)
    assert order.shape == (updates, batch_size) and order.dtype == np.int32


def test_an_epoch_is_a_permutation_less_what_fills_no_batch():
    order = mixture.order(60, 5, 3, seed=7).reshape(3, 60)
    assert (np.sort(order, axis=1) == np.arange(60)).all()
    assert not np.array_equal(order[0], order[1]) and not np.array_equal(order[1], order[2])

    for epoch in mixture.order(63, 5, 4, seed=7).reshape(4, 60):
        assert len(set(epoch.tolist())) == 60 and epoch.min() >= 0 and epoch.max() < 63


def test_the_order_is_a_function_of_the_seed_and_a_longer_one_begins_like_a_shorter():
    order = mixture.order(100, 8, 3, seed=1)
    assert np.array_equal(order, mixture.order(100, 8, 3, seed=1))
    assert np.array_equal(order[:12], mixture.order(100, 8, 1, seed=1))
    assert not np.array_equal(order, mixture.order(100, 8, 3, seed=2))
    # Seeds beside each other share no epoch.
    epochs = [tuple(epoch.tolist()) for seed in (1, 2, 3) for epoch in mixture.order(96, 8, 3, seed).reshape(3, 96)]
    assert len(set(epochs)) == 9


def test_sources_give_what_is_asked():
    assert mixture.amounts([Part("a", 10), Part("b", 7, count=3)]) == [10, 3]
    assert mixture.amounts([Part("a", 10, epochs=2.5), Part("b", 7, epochs=0.5), Part("c", 1, epochs=0.1)]) == [
        25,
        4,
        1,
    ]
    assert mixture.amounts([Part("a", 10, count=25, repeat=True)]) == [25]
    with pytest.raises(DataError, match="a: 11 records are wanted and it has 10; ask for fewer, or set repeat = true"):
        mixture.amounts([Part("a", 10, count=11)])


def test_proportions_are_of_the_size_or_of_the_largest_without_repeats():
    parts = [Part("a", 10, proportion=0.25), Part("b", 60, proportion=0.75)]
    assert mixture.amounts(parts) == [10, 30]
    assert mixture.amounts(parts, size=8) == [2, 6]
    with pytest.raises(DataError, match="a: 20 records are wanted and it has 10"):
        mixture.amounts(parts, size=80)
    assert mixture.amounts([parts[0]._replace(repeat=True), parts[1]], size=80) == [20, 60]


def test_a_temperature_makes_sources_more_equal():
    parts = [Part("a", 100), Part("b", 10_000)]
    assert mixture.amounts(parts, temperature=1.0) == [100, 10_000]
    assert mixture.amounts(parts, size=1010, temperature=1.0) == [10, 1000]
    assert mixture.amounts(parts, size=1100, temperature=2.0) == [100, 1000]
    assert mixture.amounts(parts, temperature=2.0) == [100, 1000]


@given(st.lists(st.integers(1, 500), min_size=1, max_size=6), st.floats(0.2, 20), st.integers(1, 300))
def test_amounts_add_up_to_the_size(records: list[int], temperature: float, size: int):
    parts = [Part("x", count, repeat=True) for count in records]
    assert sum(mixture.amounts(parts, size, temperature)) == size
    within = mixture.amounts([part._replace(repeat=False) for part in parts], None, temperature)
    assert all(amount <= count for amount, count in zip(within, records, strict=True))


def test_what_is_drawn_is_a_function_of_the_seed_and_comes_equally_often():
    drawn = mixture.draw(100, 30, [1, 0])
    assert len(set(drawn.tolist())) == 30 and (np.diff(drawn) > 0).all() and drawn.max() < 100
    assert np.array_equal(drawn, mixture.draw(100, 30, [1, 0]))
    assert not np.array_equal(drawn, mixture.draw(100, 30, [2, 0]))
    counts = np.bincount(mixture.draw(10, 34, [0, 0]), minlength=10)
    assert counts.sum() == 34 and set(counts.tolist()) == {3, 4}
    assert mixture.draw(5, 5, [0, 0]).tolist() == [0, 1, 2, 3, 4]
