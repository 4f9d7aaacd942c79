"""One update, and the loop that calls it. Knows no objective.

An objective is a pure function of (parameters, batch) that returns sums. They are added up over microbatches and
divided once, so accumulation is exact however many rows are computed at once.
"""

import math
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from bactrian.data.records import Batch
from bactrian.errors import Diverged
from bactrian.model import rounding

Parameters = Any  # a dict, whatever is in it


class Terms(NamedTuple):
    """Sums over a batch: of the loss, of what it is the mean over, and of metrics that have the same count."""

    total: jax.Array
    count: jax.Array
    metrics: dict[str, jax.Array]


class State(NamedTuple):
    """What an update is made of. `step` counts the updates made; `frozen` are parameters that none of them changes."""

    step: jax.Array
    parameters: Parameters
    optimizer: optax.OptState
    frozen: Parameters | None = None

    @property
    def whole(self) -> Parameters:
        """The model's parameters, those that are trained and those that are not."""
        return {**(self.frozen or {}), **self.parameters}


Objective = Callable[[Parameters, Batch], Terms]
Step = Callable[[State, Batch], tuple[State, dict[str, jax.Array]]]


def start(parameters: Parameters, optimizer: optax.GradientTransformation) -> State:
    """The state before the first update."""
    return State(jnp.zeros((), jnp.int32), parameters, optimizer.init(parameters))


def make_step(objective: Objective, optimizer: optax.GradientTransformation) -> Step:
    """One update as a pure function of a state and a batch that is `split`, to be compiled with its state donated.

    Microbatches of padding alone, which come last, are skipped. Where the loss or the gradient is not finite the state
    stays as it was, its step count too.
    """

    def step(state: State, microbatches: Batch) -> tuple[State, dict[str, jax.Array]]:
        gradients, terms = _gradients(objective, state, microbatches)
        count = jnp.where(terms.count > 0, terms.count, 1)
        gradients = jax.tree.map(lambda gradient: gradient / count, gradients)
        loss = terms.total / count
        norm = optax.tree.norm(gradients)
        finite = jnp.isfinite(loss) & jnp.isfinite(norm)
        changes, optimizer_state = optimizer.update(gradients, state.optimizer, state.parameters)
        changed = State(state.step + 1, rounding.apply_updates(state.parameters, changes, state.step), optimizer_state)
        kept = jax.tree.map(lambda new, old: jnp.where(finite, new, old), changed, state._replace(frozen=None))
        metrics = {name: total / count for name, total in terms.metrics.items()}
        return kept._replace(frozen=state.frozen), {"loss": loss, **metrics, "gradient_norm": norm}

    return step


def split(batch: Batch, rows: int) -> Batch:
    """A batch as its microbatches, so many rows at a time: every column [B, …] becomes [B / rows, rows, …]."""
    return Batch(*(column.reshape(-1, rows, *column.shape[1:]) for column in batch))


def _gradients(objective: Objective, state: State, microbatches: Batch) -> tuple[Parameters, Terms]:
    def total(parameters: Parameters, microbatch: Batch):
        terms = objective(state._replace(parameters=parameters).whole, microbatch)
        return terms.total, terms

    def one(index) -> tuple[Parameters, Terms]:
        microbatch = Batch(*(column[index] for column in microbatches))
        gradients, terms = jax.grad(total, has_aux=True)(state.parameters, microbatch)
        # Those of bfloat16 parameters are of the same dtype, too coarse to be added up in.
        return jax.tree.map(lambda gradient: gradient.astype(jnp.float32), gradients), terms

    if microbatches.tokens.shape[0] == 1:
        return one(0)
    used = jnp.sum(jnp.any(microbatches.segments > 0, axis=(1, 2)))
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), jax.eval_shape(one, 0))
    return jax.lax.fori_loop(0, used, lambda index, sums: jax.tree.map(jnp.add, sums, one(index)), zeros)


class Update(NamedTuple):
    """What one update reported: its number, counted from 1, its metrics, and the seconds since the one before."""

    number: int
    metrics: dict[str, float]
    seconds: float


def train(
    step: Step,
    state: State,
    batch_at: Callable[[int], Batch],
    steps: int,
    pauses: Callable[[int], bool],
) -> Iterator[tuple[Update, State | None]]:
    """Make updates until `steps` are made, yielding each as soon as its metrics are known.

    The device is never waited for: an update is reported while the next one runs, and the next batch is made meanwhile.
    Where `pauses(number)` holds, and after the last, the loop waits for that update and yields the state with it, for
    the caller to save or to evaluate before it asks for more. Raises `Diverged` at the first update that was refused.
    """
    first = int(state.step)
    clock = time.perf_counter()
    pending: tuple[int, dict[str, jax.Array]] | None = None
    with ThreadPoolExecutor(1) as ahead:
        upcoming = ahead.submit(batch_at, first) if first < steps else None
        for index in range(first, steps):
            assert upcoming is not None
            batch = upcoming.result()
            state, metrics = step(state, batch)
            upcoming = ahead.submit(batch_at, index + 1) if index + 1 < steps else None
            if pending is not None:
                update = _finished(*pending, clock)
                clock += update.seconds
                yield update, None
            pending = (index + 1, metrics)
            if pauses(index + 1) or index + 1 == steps:
                update = _finished(*pending, clock)
                pending = None
                yield update, state
                # What the caller did with the state is not the next update's time.
                clock = time.perf_counter()


def _finished(number: int, metrics: dict[str, jax.Array], clock: float) -> Update:
    values = {name: float(value) for name, value in metrics.items()}
    for name in ("loss", "gradient_norm"):
        if not math.isfinite(values[name]):
            what = name.replace("_", " ")
            raise Diverged(f"step {number}: the {what} is {values[name]}, so the step was not made", number)
    return Update(number, values, time.perf_counter() - clock)
