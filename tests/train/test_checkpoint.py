"""Laws: what is restored is the state as it was when it was saved, whatever training did meanwhile; the last few are
kept, and the best if asked for."""

from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bactrian.model import rounding
from bactrian.recipe import Optimizer
from bactrian.train import optimizer, trainer
from bactrian.train.checkpoint import Checkpoints
from bactrian.train.trainer import State

SHAPES = {"embedding": (2_000, 256), "layers": {"up": (4, 256, 512)}, "norm": (256,)}
ADAM = optax.adam(0.1)


def fresh(seed: int) -> State:
    """A state of some megabytes, so that writing it takes longer than making the next steps."""
    flat, tree = jax.tree.flatten(SHAPES, is_leaf=lambda node: isinstance(node, tuple))
    keys = jax.random.split(jax.random.key(seed), len(flat))
    weights = [jax.random.normal(key, shape) for key, shape in zip(keys, flat, strict=True)]
    return trainer.start(jax.tree.unflatten(tree, weights), ADAM)


@pytest.fixture(scope="module")
def step() -> Callable[[State], State]:
    """Changes every number of a state, in the state's own memory."""

    def change(state: State) -> State:
        changes, optimizer = ADAM.update(state.parameters, state.optimizer)
        return State(state.step + 1, optax.apply_updates(state.parameters, changes), optimizer)

    return jax.jit(change, donate_argnums=0)


def contents(state: State) -> list[bytes]:
    return [np.array(leaf).tobytes() for leaf in jax.tree.leaves(state)]


def test_the_next_steps_do_not_reach_what_is_being_saved(tmp_path: Path, step):
    checkpoints = Checkpoints(tmp_path / "steps", keep_last=3, keep_best=False)
    first = fresh(0)
    state = step(first)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(first))  # a step takes the memory of the state it is given
    saved: dict[int, list[bytes]] = {}
    for number in (1, 2, 3):
        # Bytes by way of a copy on the device: a view of the state's memory would keep it from being donated.
        saved[number] = contents(jax.tree.map(jnp.copy, state))
        checkpoints.save(number, state, None)
        for _ in range(4):
            state = step(state)
        jax.block_until_ready(state)
    checkpoints.close()

    again = Checkpoints(tmp_path / "steps", keep_last=3, keep_best=False)
    assert again.latest() == 3
    for number, expected in saved.items():
        restored = again.restore(number, fresh(1))
        assert contents(restored) == expected
        assert int(restored.step) == 1 + 4 * (number - 1)
    again.close()


def test_training_goes_on_from_what_is_restored_as_if_it_had_not_stopped(tmp_path: Path, step):
    checkpoints = Checkpoints(tmp_path / "steps", keep_last=1, keep_best=False)
    state = step(step(fresh(0)))
    checkpoints.save(2, state, None)
    state = step(step(state))
    checkpoints.close()
    again = Checkpoints(tmp_path / "steps", keep_last=1, keep_best=False)
    restored = again.restore(2, fresh(9))
    again.close()
    assert jax.tree.structure(restored) == jax.tree.structure(state)
    assert contents(step(step(restored))) == contents(state)


def test_a_state_that_takes_less_memory_is_restored_as_it_was(tmp_path: Path):
    chain = optimizer.chain(Optimizer(learning_rate=1e-3, moments="int8"), 10)

    @jax.jit
    def change(state: State) -> State:
        gradients = jax.tree.map(lambda leaf: jnp.sin(1e3 * leaf.astype(jnp.float32)), state.parameters)
        changes, moved = chain.update(gradients, state.optimizer, state.parameters)
        return State(state.step + 1, rounding.apply_updates(state.parameters, changes, state.step), moved)

    def begun(seed: int) -> State:
        weights = jax.random.normal(jax.random.key(seed), (64, 128), jnp.bfloat16)
        return trainer.start({"up": weights, "norm": weights[0]}, chain)

    checkpoints = Checkpoints(tmp_path / "steps", keep_last=1, keep_best=False)
    state = change(change(begun(0)))
    checkpoints.save(2, state, None)
    checkpoints.close()
    again = Checkpoints(tmp_path / "steps", keep_last=1, keep_best=False)
    restored = again.restore(2, begun(1))
    again.close()
    assert {str(leaf.dtype) for leaf in jax.tree.leaves(restored)} == {"bfloat16", "int8", "uint8", "float32", "int32"}
    assert contents(restored) == contents(state)
    assert contents(change(restored)) == contents(change(state))


def small(number: int) -> State:
    return State(jnp.asarray(number), {"weight": jnp.full(3, float(number))}, ())


def kept(folder: Path) -> list[int]:
    return sorted(int(path.name) for path in folder.iterdir() if path.name.isdecimal())


def test_the_last_few_are_kept(tmp_path: Path):
    checkpoints = Checkpoints(tmp_path / "steps", keep_last=2, keep_best=False)
    assert checkpoints.latest() is None
    for number in (3, 6, 9, 12):
        checkpoints.save(number, small(number), None)
    checkpoints.close()
    assert kept(tmp_path / "steps") == [9, 12]


@pytest.mark.parametrize("reopened", [False, True])
def test_the_best_is_kept_beside_the_last(tmp_path: Path, reopened: bool):
    folder = tmp_path / "steps"
    checkpoints = Checkpoints(folder, keep_last=1, keep_best=True)
    for number, loss in [(1, 0.9), (2, 0.5), (3, 0.7), (4, 0.6)]:
        checkpoints.save(number, small(number), loss)
        if reopened:
            checkpoints.close()
            checkpoints = Checkpoints(folder, keep_last=1, keep_best=True)
    assert checkpoints.best() == 2 and checkpoints.latest() == 4
    assert float(checkpoints.restore(2, small(0)).parameters["weight"][0]) == 2
    checkpoints.close()
    assert kept(folder) == [2, 4]


def test_a_better_one_takes_the_place_of_the_best(tmp_path: Path):
    checkpoints = Checkpoints(tmp_path / "steps", keep_last=1, keep_best=True)
    for number, loss in [(1, 0.5), (2, 0.9), (3, 0.4)]:
        checkpoints.save(number, small(number), loss)
    checkpoints.close()
    assert kept(tmp_path / "steps") == [3]
