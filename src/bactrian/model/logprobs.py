"""Log-probabilities of chosen tokens, without ever holding the logits of all of them.

Only learnt tokens are computed: each row's are brought to its front, and chunks are taken from there until none is
left. The backward pass makes a chunk's logits once more and uses them at once.

Shapes: B rows, T places, D hidden width, V vocabulary, S segments in a row, K branches in a segment, C chunk.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from bactrian.model import llama
from bactrian.model.attention import Places

_CHUNK_BYTES = 1 << 26  # of float32 logits held at once


def of_targets(
    parameters: llama.Parameters,
    config: llama.Config,
    compute: llama.Compute,
    tokens_BT: jax.Array,
    places: Places,
    targets_BT: jax.Array,
    learnt_BT: jax.Array,
) -> jax.Array:
    """Log-probability of each place's target, float32 [B, T]; 0 where `learnt_BT` is false."""
    hidden_BTD = llama.forward(parameters, config, tokens_BT, places, compute)
    weight_VD = llama.unembedding(parameters).astype(hidden_BTD.dtype)
    return selected(hidden_BTD, weight_VD, targets_BT, learnt_BT)


def branch_sums(values_BT: jax.Array, places: Places, segments: int, branches: int) -> jax.Array:
    """Sum over each branch of each segment, float32 [B, S, K]; what branches share counts in each of them."""
    segment_ids = jnp.arange(1, segments + 1)
    branch_ids = jnp.arange(1, branches + 1)
    in_segment_BTS = places.segments[:, :, None] == segment_ids
    in_branch_BTK = (places.branches[:, :, None] == branch_ids) | (places.branches[:, :, None] == 0)
    member_BTSK = in_segment_BTS[:, :, :, None] & in_branch_BTK[:, :, None, :]
    return jnp.sum(jnp.where(member_BTSK, values_BT[:, :, None, None], 0.0), axis=1)


def selected(
    hidden_BTD: jax.Array, weight_VD: jax.Array, targets_BT: jax.Array, learnt_BT: jax.Array, chunk: int | None = None
) -> jax.Array:
    """log softmax(hidden · weightᵀ)[target] at learnt places, 0 elsewhere; float32 [B, T].

    `chunk` places of every row are computed at once; by default as many as hold `_CHUNK_BYTES` of logits.
    """
    rows, length = targets_BT.shape
    if chunk is None:
        chunk = max(1, _CHUNK_BYTES // (4 * rows * weight_VD.shape[0]))
    chunk = min(chunk, length)
    order_BT = jnp.argsort(~learnt_BT, axis=1, stable=True)
    padding = -length % chunk
    hidden = jnp.pad(jnp.take_along_axis(hidden_BTD, order_BT[:, :, None], axis=1), ((0, 0), (0, padding), (0, 0)))
    targets = jnp.pad(jnp.take_along_axis(targets_BT, order_BT, axis=1), ((0, 0), (0, padding)))
    learnt_B = jnp.sum(learnt_BT, axis=1)
    logprobs = jnp.asarray(_leading(chunk, hidden, weight_VD, targets, learnt_B))
    return jnp.take_along_axis(logprobs[:, :length], jnp.argsort(order_BT, axis=1), axis=1)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _leading(chunk: int, hidden_BTD: jax.Array, weight_VD: jax.Array, targets_BT: jax.Array, learnt_B: jax.Array):
    """`selected` of rows whose learnt places come first, `learnt_B` of them; T a multiple of the chunk."""
    return _leading_forward(chunk, hidden_BTD, weight_VD, targets_BT, learnt_B)[0]


class _Saved(NamedTuple):
    hidden_BTD: jax.Array
    weight_VD: jax.Array
    targets_BT: jax.Array
    learnt_B: jax.Array
    normalizers_BT: jax.Array


def _leading_forward(chunk: int, hidden_BTD, weight_VD, targets_BT, learnt_B):
    def one_chunk(index, carry):
        logprobs_BT, normalizers_BT = carry
        start = index * chunk
        logits_BCV = _chunk_logits(hidden_BTD, weight_VD, start, chunk)
        normalizer_BC = jax.nn.logsumexp(logits_BCV, axis=-1)
        targets_BC = _slice(targets_BT, start, chunk)
        chosen_BC = jnp.take_along_axis(logits_BCV, targets_BC[:, :, None], axis=2)[:, :, 0]
        logprob_BC = jnp.where(_is_learnt(learnt_B, start, chunk), chosen_BC - normalizer_BC, 0.0)
        return _update(logprobs_BT, logprob_BC, start), _update(normalizers_BT, normalizer_BC, start)

    zeros = jnp.zeros(targets_BT.shape, jnp.float32)
    logprobs_BT, normalizers_BT = jax.lax.fori_loop(0, _chunks(learnt_B, chunk), one_chunk, (zeros, zeros))
    return logprobs_BT, _Saved(hidden_BTD, weight_VD, targets_BT, learnt_B, normalizers_BT)


def _leading_backward(chunk: int, saved: _Saved, cotangent_BT: jax.Array):
    hidden_BTD, weight_VD, targets_BT, learnt_B, normalizers_BT = saved
    rows = jnp.arange(hidden_BTD.shape[0])[:, None]

    def one_chunk(index, carry):
        hidden_gradient, weight_gradient_DV = carry
        start = index * chunk
        logits_BCV = _chunk_logits(hidden_BTD, weight_VD, start, chunk)
        scale_BC = jnp.where(_is_learnt(learnt_B, start, chunk), _slice(cotangent_BT, start, chunk), 0.0)
        # d log softmax(z)[target] / dz = onehot(target) - softmax(z)
        gradient_BCV = -scale_BC[:, :, None] * jnp.exp(logits_BCV - _slice(normalizers_BT, start, chunk)[:, :, None])
        gradient_BCV = gradient_BCV.at[rows, jnp.arange(chunk)[None, :], _slice(targets_BT, start, chunk)].add(scale_BC)
        gradient_BCV = gradient_BCV.astype(hidden_BTD.dtype)
        hidden_gradient = _update(hidden_gradient, jnp.einsum("bcv,vd->bcd", gradient_BCV, weight_VD), start)
        # One 2-D product with the short side first: on XLA's CPU backend nearly twice as fast as "bcv,bcd->vd".
        chunk_ND = _slice(hidden_BTD, start, chunk).reshape(-1, hidden_BTD.shape[-1])
        gradient_NV = gradient_BCV.reshape(-1, gradient_BCV.shape[-1])
        added_DV = jnp.einsum("nd,nv->dv", chunk_ND, gradient_NV, preferred_element_type=jnp.float32)
        return hidden_gradient, weight_gradient_DV + added_DV

    start = (jnp.zeros_like(hidden_BTD), jnp.zeros(weight_VD.shape[::-1], jnp.float32))
    hidden_gradient, weight_gradient_DV = jax.lax.fori_loop(0, _chunks(learnt_B, chunk), one_chunk, start)
    return hidden_gradient, weight_gradient_DV.T.astype(weight_VD.dtype), None, None


_leading.defvjp(_leading_forward, _leading_backward)


def _chunks(learnt_B: jax.Array, chunk: int) -> jax.Array:
    return (jnp.max(learnt_B) + chunk - 1) // chunk


def _chunk_logits(hidden_BTD: jax.Array, weight_VD: jax.Array, start: jax.Array, chunk: int) -> jax.Array:
    return jnp.einsum("bcd,vd->bcv", _slice(hidden_BTD, start, chunk), weight_VD, preferred_element_type=jnp.float32)


def _is_learnt(learnt_B: jax.Array, start: jax.Array, chunk: int) -> jax.Array:
    return start + jnp.arange(chunk)[None, :] < learnt_B[:, None]


def _slice(array: jax.Array, start: jax.Array, chunk: int) -> jax.Array:
    return jax.lax.dynamic_slice_in_dim(array, start, chunk, axis=1)


def _update(array: jax.Array, part: jax.Array, start: jax.Array) -> jax.Array:
    return jax.lax.dynamic_update_slice_in_dim(array, part, start, axis=1)
