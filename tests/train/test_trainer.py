"""Laws: k microbatches equal one batch, padding changes nothing, a step that is not finite is not made."""

import re
from collections.abc import Sequence
from functools import partial
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bactrian.data import packing
from bactrian.data.records import Batch, Example
from bactrian.errors import Diverged
from bactrian.model import llama
from bactrian.recipe import Model, Optimizer
from bactrian.stage import Computation
from bactrian.train import moments, optimizer, preference, sft, trainer
from bactrian.train.trainer import Objective, State, Step, Terms

KEEP = optax.GradientTransformation(lambda params: params, lambda updates, state, params=None: (updates, updates))


def batch_of(examples: Sequence[Example], row_length: int, rows_multiple: int) -> Batch:
    lengths = np.array([packing.places(len(each.tokens), each.starts) for each in examples])
    branches = max(1, *(len(each.starts) for each in examples))
    plan = packing.plan(lengths, [np.arange(len(examples))], row_length, rows_multiple, branches, row_length)
    references = -np.arange(1, 1 + len(examples) * branches, dtype=np.float32).reshape(-1, branches)
    return packing.batch(plan, examples, 0, references)


def exact(parameters, batch: Batch) -> Terms:
    """Sums of small whole numbers: they are exact in float32, whatever their order."""
    values = parameters["table"][batch.tokens] * batch.weights
    return Terms(jnp.sum(values), jnp.sum(batch.weights), {"first": jnp.sum(values[:, 0])})


def measured(objective: Objective, parameters, batch: Batch, rows: int):
    step = jax.jit(trainer.make_step(objective, KEEP))
    state, metrics = step(trainer.start(parameters, KEEP), trainer.split(batch, rows))
    return state.optimizer, metrics


def assert_identical(found, expected) -> None:
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert np.asarray(one).tobytes() == np.asarray(other).tobytes()


def test_microbatches_are_one_batch_exactly(conversations: list[Example]):
    batch = batch_of(conversations, 40, 12)
    assert batch.tokens.shape[0] == 12 and (batch.segments > 0).any(axis=1).sum() not in (1, 12)
    # A count that is a power of two, so that dividing by it is exact too.
    extra = int(batch.weights.sum()) - 64
    batch.weights.flat[np.flatnonzero(batch.weights)[:extra]] = 0
    parameters = {"table": jnp.arange(50, dtype=jnp.float32)}
    expected = measured(exact, parameters, batch, 12)
    for rows in (1, 2, 3, 4, 6):
        assert_identical(measured(exact, parameters, batch, rows), expected)


@pytest.mark.parametrize("name", ["sft", "dpo"])
def test_microbatches_of_a_model_are_one_batch(
    name: str, config: llama.Config, parameters, conversations: list[Example], pairs: list[Example]
):
    compute = llama.Compute()
    objective = sft.objective(config, compute) if name == "sft" else preference.objective(config, compute, 0.1)
    batch = batch_of(conversations if name == "sft" else pairs, 48, 4)
    whole_gradients, whole = measured(objective, parameters, batch, len(batch.tokens))
    gradients, metrics = measured(objective, parameters, batch, len(batch.tokens) // 4)
    for key, value in whole.items():
        np.testing.assert_allclose(metrics[key], value, rtol=1e-5)
    for found, expected in zip(jax.tree.leaves(gradients), jax.tree.leaves(whole_gradients), strict=True):
        assert np.linalg.norm(found - expected) <= 1e-5 * np.linalg.norm(expected)


@pytest.mark.slow
def test_less_memory_learns_as_well(
    config: llama.Config, parameters, conversations: list[Example], monkeypatch: pytest.MonkeyPatch
):
    """Fifty updates on one batch, each of which moves a bfloat16 parameter by less than its spacing."""
    monkeypatch.setattr(moments, "_SMALLEST", 0)  # no leaf of so small a model is large
    steps = 50
    batch = trainer.split(batch_of(conversations, 48, 4), 4)

    def losses(kept_as: str, moments_as: Any) -> np.ndarray:
        settings = Optimizer(learning_rate=1e-3, warmup_ratio=0.1, moments=moments_as)
        chain = optimizer.chain(settings, steps)
        step = jax.jit(trainer.make_step(sft.objective(config, llama.Compute()), chain), donate_argnums=0)
        state = trainer.start(jax.tree.map(lambda leaf: jnp.array(leaf, kept_as), parameters), chain)
        found = []
        for _ in range(steps):
            state, metrics = step(state, batch)
            found.append(float(metrics["loss"]))
        assert {leaf.dtype for leaf in jax.tree.leaves(state.parameters)} == {jnp.dtype(kept_as)}
        assert (jnp.dtype("int8") in {leaf.dtype for leaf in jax.tree.leaves(state)}) == (moments_as == "int8")
        return np.array(found)

    full = losses("float32", "float32")
    learned = full[0] - full[-1]
    assert learned > 0.3
    assert np.abs(losses("bfloat16", "int8") - full).max() < 0.03 * learned


@pytest.mark.parametrize("stage", ["sft", "dpo"])
def test_what_is_frozen_stays_and_no_gradient_of_it_is_computed(
    stage: str, config: llama.Config, parameters, conversations: list[Example], pairs: list[Example]
):
    """Read in what XLA has compiled: no product has the shape of a matrix of the model, as its gradient would."""
    batch = trainer.split(batch_of(conversations if stage == "sft" else pairs, 48, 4), 4)
    targets = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    alone = Computation.of(Model(source="", compute_dtype="float32"), config)
    matrices = {spec.shape[-2:] for name, spec in llama.specs(config)["layers"].items() if name.endswith("_proj")}
    matrices.add((config.hidden_size, config.vocab_size))  # which its gradient is added up in, turned

    def updated(computation: Computation) -> tuple[State, State, set[tuple[int, ...]]]:
        compute = computation.compute
        objective = sft.objective if stage == "sft" else partial(preference.objective, beta=0.1)
        chain = optax.adam(1e-2)
        state = computation.start(jax.tree.map(jnp.copy, parameters), chain, jax.random.key(0))
        before = jax.tree.map(np.array, state)
        step: Any = computation.step(objective(computation.config, compute), chain, state)
        text = step.lower(state, batch).compile().as_text()
        made = {tuple(map(int, shape.split(","))) for shape in re.findall(r"= f32\[([\d,]+)\]\S* dot\(", text)}
        return before, step(state, batch)[0], made

    before, after, made = updated(alone.adapted(llama.Lora(3, 6.0, targets)))
    assert_identical(jax.tree.map(np.array, after.frozen), before.frozen)
    assert_identical(before.frozen, jax.tree.map(np.array, parameters))
    assert not made & matrices
    # A alone has no gradient yet: it is multiplied by B, which is zero.
    moved = {
        name for name, value in after.parameters["adapters"].items() if (value != before.whole["adapters"][name]).any()
    }
    assert moved == {f"{target}_b" for target in targets}
    adam: Any = after.optimizer
    assert jax.tree.structure(adam[0].mu) == jax.tree.structure(after.parameters)
    assert matrices <= updated(alone)[2], "the reading finds them where they are"


def test_rows_of_padding_change_nothing(pairs: list[Example]):
    table = {"table": jnp.asarray(np.random.default_rng(0).normal(size=50), jnp.float32)}
    batch = batch_of(pairs, 48, 2)
    padding = packing.empty(6, 48, batch.examples.shape[1], 2)
    more = Batch(*(np.concatenate([column, rest]) for column, rest in zip(batch, padding, strict=True)))
    assert_identical(measured(exact, table, more, 2), measured(exact, table, batch, 2))


def test_a_batch_of_padding_alone_is_no_division_by_zero():
    _, metrics = measured(exact, {"table": jnp.ones(50)}, packing.empty(2, 16, 1, 1), 1)
    assert float(metrics["loss"]) == 0 and float(metrics["gradient_norm"]) == 0


def fragile(parameters, batch: Batch) -> Terms:
    """Token 1 makes the loss infinite, token 2 its gradient alone, token 3 makes the loss no number."""
    weight = parameters["weight"]
    token = batch.tokens[0, 0]
    steep = jnp.sqrt(jnp.where(token == 2, 0.0 * weight[0], 1.0))
    odd = jnp.select([token == 1, token == 3], [jnp.inf, jnp.nan], 0.0)
    loss = jnp.sum((weight - batch.tokens[0, 1]) ** 2) + steep + odd
    return Terms(loss, jnp.ones(()), {"seen": token.astype(jnp.float32)})


def fragile_step() -> tuple[Step, State]:
    adam = optax.adam(0.1)
    step = jax.jit(trainer.make_step(fragile, adam), donate_argnums=0)
    return step, trainer.start({"weight": jnp.asarray([1.0, 2.0, 3.0])}, adam)


def saying(token: int, target: int = 5) -> Batch:
    batch = packing.empty(1, 8, 1, 1)
    batch.tokens[0, :2] = token, target
    batch.segments[0, :2] = 1
    return trainer.split(batch, 1)


@pytest.mark.parametrize(("token", "unfit"), [(1, "loss"), (2, "gradient_norm"), (3, "loss")])
def test_a_step_that_is_not_finite_leaves_the_state_bit_for_bit(token: int, unfit: str):
    step, state = fragile_step()
    for _ in range(3):
        state, metrics = step(state, saying(0))
        assert np.isfinite(metrics["loss"])
    before = jax.tree.map(np.array, state)
    state, metrics = step(state, saying(token))
    assert not np.isfinite(metrics[unfit])
    assert_identical(jax.tree.map(np.array, state), before)
    assert int(state.step) == 3
    state, metrics = step(state, saying(0))
    assert int(state.step) == 4 and np.isfinite(metrics["loss"])


def no_pauses(number: int) -> bool:
    return False


@pytest.mark.parametrize("pauses", [no_pauses, lambda number: True, lambda number: number == 6])
@pytest.mark.parametrize("token", [1, 2, 3])
def test_training_stops_at_the_step_that_was_refused(pauses, token: int):
    step, state = fragile_step()
    reported = []
    with pytest.raises(Diverged, match=r"step 7: the .* is (inf|nan), so the step was not made") as caught:
        for update, _ in trainer.train(step, state, lambda index: saying(token if index == 6 else 0), 20, pauses):
            reported.append(update.number)
    assert caught.value.number == 7
    assert reported == [1, 2, 3, 4, 5, 6]


def test_updates_are_reported_in_order_and_pauses_come_with_their_state():
    step, state = fragile_step()
    asked, reported, paused = [], [], {}

    def batch_at(index: int) -> Batch:
        asked.append(index)
        return saying(0, target=index)

    for update, given in trainer.train(step, state, batch_at, 10, lambda number: number in (4, 5)):
        reported.append(update.number)
        if given is not None:
            paused[update.number] = np.array(given.parameters["weight"])
            assert int(given.step) == update.number
    assert asked == list(range(10)) and reported == list(range(1, 11)) and list(paused) == [4, 5, 10]

    step, state = fragile_step()
    for index in range(10):
        state, _ = step(state, saying(0, target=index))
        if index + 1 in paused:
            assert np.array_equal(state.parameters["weight"], paused[index + 1])


class Unfinished:
    """A number that a device is still at; whoever looks at it waits."""

    def __init__(self, name: str, said: list[str]):
        self.name, self.said = name, said

    def __float__(self) -> float:
        self.said.append(f"wait for {self.name}")
        return 1.0

    def block_until_ready(self) -> "Unfinished":
        float(self)
        return self


def test_the_device_has_the_next_update_before_the_host_looks_at_the_last():
    said: list[str] = []

    def step(state: State, batch: Any) -> Any:
        said.append(f"begin {batch}")
        metrics = {name: Unfinished(str(batch), said) for name in ("loss", "gradient_norm")}
        return state, metrics

    def batch_at(index: int) -> Any:
        return index + 1

    state: Any = SimpleNamespace(step=0)
    assert len(list(trainer.train(step, state, batch_at, 4, no_pauses))) == 4
    assert list(dict.fromkeys(said)) == [
        "begin 1",
        "begin 2",
        "wait for 1",
        "begin 3",
        "wait for 2",
        "begin 4",
        "wait for 3",
        "wait for 4",
    ]


def test_training_goes_on_where_the_state_is():
    step, state = fragile_step()
    for index in range(4):
        state, _ = step(state, saying(0, target=index))
    asked = []
    updates = trainer.train(step, state, lambda index: asked.append(index) or saying(0), 7, no_pauses)
    assert [update.number for update, _ in updates] == [5, 6, 7] and asked == [4, 5, 6]
    step, state = fragile_step()
    assert list(trainer.train(step, state, lambda index: saying(0), 0, no_pauses)) == []


def test_what_goes_wrong_with_a_batch_is_raised_in_the_loop():
    step, state = fragile_step()

    def batch_at(index: int) -> Batch:
        if index == 2:
            raise OSError("the disk is gone")
        return saying(0)

    with pytest.raises(OSError, match="the disk is gone"):
        list(trainer.train(step, state, batch_at, 5, no_pauses))
