"""Log-probabilities of a batch, for every objective, the reference, the gates and the scores."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import numpy as np

from bactrian.data.records import Batch
from bactrian.model import llama, logprobs
from bactrian.model import mesh as meshes
from bactrian.model.attention import Places
from bactrian.train.trainer import Parameters

Score = Callable[[Parameters, Batch], jax.Array]


def target_logprobs(parameters: Parameters, config: llama.Config, compute: llama.Compute, batch: Batch) -> jax.Array:
    """Each target's log-probability times its weight, float32 [B, T]."""
    learnt_BT = batch.weights > 0
    values_BT = logprobs.of_targets(parameters, config, compute, batch.tokens, _places(batch), batch.targets, learnt_BT)
    return values_BT * batch.weights


def total_logprob(parameters: Parameters, config: llama.Config, compute: llama.Compute, batch: Batch) -> jax.Array:
    """The sum of `target_logprobs`, float32, at less cost where its gradient is wanted."""
    return logprobs.total_of_targets(
        parameters, config, compute, batch.tokens, _places(batch), batch.targets, batch.weights
    )


def branch_logprobs(parameters: Parameters, config: llama.Config, compute: llama.Compute, batch: Batch) -> jax.Array:
    """Log-probability of each branch's learnt tokens, summed, float32 [B, S, K]; K is 1 for conversations."""
    values_BT = target_logprobs(parameters, config, compute, batch)
    _, segments, branches = batch.references.shape
    return logprobs.branch_sums(values_BT, _places(batch), segments, branches)


def compiled(config: llama.Config, compute: llama.Compute) -> Score:
    """`branch_logprobs` of one model's shape, compiled, of batches that this process holds."""
    score, mesh = program(config, compute), compute.mesh
    if mesh is None:
        return score
    return lambda parameters, batch: score(parameters, meshes.place(mesh, batch))


def program(config: llama.Config, compute: llama.Compute) -> Any:
    """`branch_logprobs`, jitted, of batches that lie where they are computed. Over a mesh every device returns those of
    all rows.
    """

    def score(parameters: Parameters, batch: Batch) -> jax.Array:
        return branch_logprobs(parameters, config, compute, batch)

    return jax.jit(score) if compute.mesh is None else jax.jit(score, out_shardings=meshes.sharding(compute.mesh, ()))


def of_examples(
    score: Score, parameters: Parameters, microbatches: Iterable[Batch]
) -> Iterator[tuple[int, np.ndarray]]:
    """Each example of some microbatches with the log-probabilities of its branches, float32 [K]."""
    for microbatch in microbatches:
        values_BSK = np.asarray(score(parameters, microbatch))
        for row, segment in zip(*np.nonzero(microbatch.examples >= 0), strict=True):
            yield int(microbatch.examples[row, segment]), values_BSK[row, segment]


def _places(batch: Batch) -> Places:
    return Places(batch.segments, batch.branches, batch.positions)
