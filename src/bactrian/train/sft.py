"""Supervised fine-tuning: the negative log-likelihood of the learnt tokens."""

import jax.numpy as jnp

from bactrian.data.records import Batch
from bactrian.model import llama, logprobs
from bactrian.model.attention import Places
from bactrian.train.trainer import Objective, Parameters, Terms


def objective(config: llama.Config, compute: llama.Compute) -> Objective:
    """The objective whose loss is the mean over learnt tokens, weighted by the batch's weights."""

    def terms(parameters: Parameters, batch: Batch) -> Terms:
        places = Places(batch.segments, batch.branches, batch.positions)
        total = logprobs.total_of_targets(
            parameters, config, compute, batch.tokens, places, batch.targets, batch.weights
        )
        return Terms(-total, jnp.sum(batch.weights), {})

    return terms
