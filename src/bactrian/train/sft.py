"""Supervised fine-tuning: the negative log-likelihood of the learnt tokens."""

import jax.numpy as jnp

from bactrian.data.records import Batch
from bactrian.model import llama
from bactrian.train import scores
from bactrian.train.trainer import Objective, Parameters, Terms


def objective(config: llama.Config, compute: llama.Compute) -> Objective:
    """The objective whose loss is the mean over learnt tokens, weighted by the batch's weights."""

    def terms(parameters: Parameters, batch: Batch) -> Terms:
        return Terms(-scores.total_logprob(parameters, config, compute, batch), jnp.sum(batch.weights), {})

    return terms
