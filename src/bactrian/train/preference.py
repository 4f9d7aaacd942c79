"""Objectives of the DPO family, each a small function of the branches' log-probabilities."""

import jax
import jax.numpy as jnp
import numpy as np

from bactrian.data.records import Batch
from bactrian.model import llama
from bactrian.train import scores
from bactrian.train.trainer import Objective, Parameters, Terms

Logprobs = jax.Array | np.ndarray  # of branches, [..., K]


def dpo(policy_BSK: Logprobs, reference_BSK: Logprobs, beta: float) -> tuple[jax.Array, jax.Array]:
    """Loss and reward margin of each pair, [B, S] (Rafailov et al. 2023, equation 7); branch 0 is the chosen one.

    reward = beta · (log pi - log ref); margin = the chosen's reward - the rejected's; loss = -log sigmoid(margin).
    """
    rewards_BSK = beta * (jnp.asarray(policy_BSK) - reference_BSK)
    margins_BS = rewards_BSK[..., 0] - rewards_BSK[..., 1]
    return -jax.nn.log_sigmoid(margins_BS), margins_BS


def objective(config: llama.Config, compute: llama.Compute, beta: float) -> Objective:
    """The objective whose loss is DPO's mean over pairs."""

    def terms(parameters: Parameters, batch: Batch) -> Terms:
        policy_BSK = scores.branch_logprobs(parameters, config, compute, batch)
        losses_BS, margins_BS = dpo(policy_BSK, batch.references, beta)
        pairs_BS = batch.examples >= 0

        def total(values_BS: jax.Array) -> jax.Array:
            return jnp.sum(jnp.where(pairs_BS, values_BS, 0.0))

        metrics = {
            "accuracy": total((margins_BS > 0).astype(jnp.float32)),
            "margin": total(margins_BS),
            "chosen_logprob": total(policy_BSK[..., 0]),
            "rejected_logprob": total(policy_BSK[..., 1]),
        }
        return Terms(total(losses_BS), jnp.sum(pairs_BS), metrics)

    return terms
