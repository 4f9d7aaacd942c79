"""The very steps of a run with abstract arrays: an update, a microbatch of the reference pass, a token of decoding."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, SingleDeviceSharding

from bactrian.data import packing
from bactrian.inference import engine, sampling
from bactrian.model import decoding, llama, lora
from bactrian.model import mesh as meshes
from bactrian.plan.targets import Target
from bactrian.plan.workload import Workload
from bactrian.recipe import Recipe
from bactrian.stage import Computation, objective_of
from bactrian.train import optimizer, scores, trainer

Kind = Literal["train", "reference", "decode"]
KEPT = "parameters of training"  # which lie there while others, made of them, are decoded with
_PROMPT = 512  # places of the cache for a prompt


@dataclass(frozen=True)
class Job:
    """One step to compile: of which recipe and workload, for which target and mesh."""

    kind: Kind
    recipe: Recipe
    workload: Workload
    target: Target
    sizes: dict[str, int]


class Step(NamedTuple):
    """A step ready to compile, the bytes of its arguments on one device, and which attention is in it."""

    lowered: Any
    arguments: dict[str, int]
    attention: str


class _Place(NamedTuple):
    """Where a run has its arrays: split over the mesh, or without one on the only device."""

    mesh: Mesh | None
    devices: Any

    def __call__(self, tree: Any, shardings: Callable[[Mesh], Any]) -> Any:
        """The tree's shapes, lying there; `shardings` makes those of a mesh."""
        if self.mesh is None:
            only = SingleDeviceSharding(self.devices[0])
            return jax.tree.map(partial(_abstract, sharding=only), tree)
        return jax.tree.map(_abstract, tree, shardings(self.mesh))


def lower(job: Job, devices: Any) -> Step:
    """A job's step, as a run on these devices makes it."""
    config, mesh = job.workload.config, meshes.make(job.sizes, devices)
    place = _Place(mesh, devices)
    computation = Computation.of(job.recipe.model, config, mesh, device=devices[0])
    parameters = jax.eval_shape(partial(llama.init, config, dtype=job.recipe.model.parameters), jax.random.key(0))
    parameters = place(parameters, lambda mesh: meshes.of_parameters(mesh, config))
    make = {"train": _update, "reference": _score, "decode": _decode}[job.kind]
    return make(job, computation, parameters, place)


def _update(job: Job, computation: Computation, parameters: Any, place: _Place) -> Step:
    """One update, of a state and a batch split into microbatches."""
    settings = job.recipe.stages()[job.workload.name]
    chain = optimizer.chain(settings.optimizer, job.workload.updates)
    computation = computation.adapted(job.workload.adapters)
    trained, frozen = parameters, None
    if job.workload.adapters is not None:
        trained, frozen = jax.eval_shape(partial(lora.start, computation.config), jax.random.key(0)), parameters
    state = jax.eval_shape(partial(trainer.start, optimizer=chain), trained)._replace(frozen=frozen)
    state = place(state, lambda mesh: meshes.of_state(mesh, computation.config, state))
    batch = _batch(job, place, trainer.split)
    step: Any = computation.step(objective_of(settings, computation), chain, state)
    sizes = {
        "parameters": _bytes(state.whole),
        "optimizer": _bytes((state.step, state.optimizer)),
        "batch": _bytes(batch),
    }
    return Step(step.lower(state, batch), sizes, computation.compute.attention)


def _score(job: Job, computation: Computation, parameters: Any, place: _Place) -> Step:
    """One microbatch of the reference pass, and of scores of held-out data."""
    batch = _batch(job, place, lambda batch, rows: type(batch)(*(column[:rows] for column in batch)))
    step = scores.program(job.workload.config, computation.compute)
    sizes = {"parameters": _bytes(parameters), "batch": _bytes(batch)}
    return Step(step.lower(parameters, batch), sizes, computation.compute.attention)


def _decode(job: Job, computation: Computation, parameters: Any, place: _Place) -> Step:
    """One token of every row, over a cache with room for a prompt and an answer of the recipe's length."""
    config, compute = job.workload.config, computation.compute
    places = _PROMPT + job.recipe.evaluation.max_tokens
    count = engine.whole_parts(engine.MAX_ROWS, compute.mesh)
    # A run casts them and turns every matrix; the float32 ones stay.
    cast = jax.eval_shape(partial(decoding.lay_out, dtype=compute.dtype), parameters)
    cast = place(cast, lambda mesh: meshes.of_decoding(mesh, config))
    cache = jax.eval_shape(partial(decoding.empty_cache, config, count, places, compute.dtype))
    cache = place(cache, lambda mesh: jax.tree.map(lambda _: meshes.of_cache(mesh, config, count), cache))
    rows = jax.eval_shape(
        lambda: engine.Rows(
            jnp.zeros(count, jnp.int32),
            jnp.zeros(count, jnp.int32),
            jnp.zeros((count, 2), jnp.uint32),
        )
    )
    knobs = jax.eval_shape(lambda: sampling.Knobs(jnp.float32(1), jnp.int32(0), jnp.float32(1)))
    step = engine.step.lower(cast, config, cache, rows, places - 1, knobs, "greedy", None, compute.mesh)
    return Step(step, {"parameters": _bytes(cast), KEPT: _bytes(parameters), "cache": _bytes(cache)}, "cached")


def _batch(job: Job, place: _Place, part: Callable[..., Any]) -> Any:
    """What one call is given of an update's rows."""
    plan = job.workload.plan
    rows = packing.empty(plan.rows, plan.row_length, plan.segments, plan.branches)
    batch = jax.eval_shape(partial(part, rows=job.workload.microbatch_rows), rows)
    return place(batch, lambda mesh: meshes.of_batch(mesh, batch))


def _abstract(leaf: Any, sharding: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


def _bytes(tree: Any) -> int:
    """Of abstract arrays, on one device."""
    return sum(
        int(np.prod(leaf.sharding.shard_shape(leaf.shape))) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree)
    )
