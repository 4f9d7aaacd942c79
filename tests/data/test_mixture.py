"""Laws: each epoch is a permutation, and the order is a function of the seed alone."""

import numpy as np
import pytest

from bactrian.data import mixture


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
