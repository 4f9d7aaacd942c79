"""Log-probabilities of tokens that were asked for, and whether each is the likeliest; forward only.

Logits are made for the places that are asked about, a chunk of them at a time, and are gone when the chunk is read.

Shapes: B rows, T places, N = B·T, Q questions (places to read), A tokens asked about at one place, C chunk, D hidden
width, V vocabulary.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from bactrian.model import llama
from bactrian.model.attention import Places
from bactrian.model.prefix import Prefix

_CHUNK_BYTES = 1 << 25  # of float32 logits held at once


class Questions(NamedTuple):
    """Which places of packed rows are read, and which tokens' log-probabilities are wanted there.

    places: int32 [Q], counted through all rows; tokens: int32 [Q, A]; count: how many of the Q are meant, from the
    first.
    """

    places: jax.Array
    tokens: jax.Array
    count: jax.Array


class Answers(NamedTuple):
    """logprobs: float32 [Q, A]; likeliest: bool [Q, A], whether no other token is likelier."""

    logprobs: jax.Array
    likeliest: jax.Array


def of_rows(
    parameters: llama.Parameters,
    config: llama.Config,
    compute: llama.Compute,
    tokens_BT: jax.Array,
    places: Places,
    questions: Questions,
    before: Prefix | None = None,
) -> Answers:
    """What packed rows say, all of them after the prefix if there is one; `places.positions` count from its end."""
    if before is not None:
        places = places._replace(positions=places.positions + before.length)
    hidden_BTD = llama.forward(parameters, config, tokens_BT, places, compute, before)
    weight_VD = llama.unembedding(parameters).astype(hidden_BTD.dtype)
    return read(hidden_BTD.reshape(-1, hidden_BTD.shape[-1]), weight_VD, questions)


def read(hidden_ND: jax.Array, weight_VD: jax.Array, questions: Questions, chunk: int | None = None) -> Answers:
    """log softmax(hidden · weightᵀ) of the tokens asked about; `chunk` questions are answered at once."""
    asked = questions.places.shape[0]
    chunk = min(asked, chunk or max(8, _CHUNK_BYTES // (4 * weight_VD.shape[0])))
    padding = -asked % chunk
    places = jnp.pad(questions.places, (0, padding))
    tokens = jnp.pad(questions.tokens, ((0, padding), (0, 0)))

    def one_chunk(index, answers: Answers) -> Answers:
        start = index * chunk
        hidden_CD = hidden_ND[jax.lax.dynamic_slice_in_dim(places, start, chunk)]
        logits_CV = jnp.einsum("cd,vd->cv", hidden_CD, weight_VD, preferred_element_type=jnp.float32)
        wanted_CA = jnp.take_along_axis(logits_CV, jax.lax.dynamic_slice_in_dim(tokens, start, chunk), axis=1)
        highest_C1 = jnp.max(logits_CV, axis=1, keepdims=True)
        normalizer_C1 = highest_C1 + jnp.log(jnp.sum(jnp.exp(logits_CV - highest_C1), axis=1, keepdims=True))
        found = Answers(wanted_CA - normalizer_C1, wanted_CA == highest_C1)
        return Answers(
            *(
                jax.lax.dynamic_update_slice_in_dim(all, part, start, axis=0)
                for all, part in zip(answers, found, strict=True)
            )
        )

    empty = Answers(jnp.zeros(tokens.shape, jnp.float32), jnp.zeros(tokens.shape, bool))
    answers = jax.lax.fori_loop(0, (questions.count + chunk - 1) // chunk, one_chunk, empty)
    return Answers(answers.logprobs[:asked], answers.likeliest[:asked])
