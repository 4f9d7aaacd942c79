"""Log-probabilities of chosen tokens, without ever holding the logits of all of them.

Only learnt tokens are computed: each row's are brought to its front, and chunks are taken from there until none is
left. `selected` gives each token's log-probability; its backward pass makes a chunk's logits once more. `total` gives
their weighted sum, whose gradient is known as soon as the logits are: they are made once.

Over a mesh each device computes its own rows and places, and of the logits those of its own part of the vocabulary.

Shapes: B rows, T places, D hidden width, V vocabulary, S segments in a row, K branches in a segment, C chunk.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from bactrian.model import llama, shards
from bactrian.model.attention import Places
from bactrian.model.shards import Share

_CHUNK_BYTES = 1 << 26  # of float32 logits held at once
_NEVER = -1e30  # the logit of a token that pads the vocabulary
_GIVEN = (shards.HIDDEN, ("vocab", "embed"), shards.ROWS, shards.ROWS)  # to `selected` and `total` over a mesh


class Split(NamedTuple):
    """The mesh axis over which a vocabulary of `tokens` lies, in equal parts of which the last may be padded."""

    axis: str
    tokens: int


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
    share = llama.share(config, compute.mesh)

    def part(hidden_BTD, weight_VD, targets_BT, learnt_BT) -> jax.Array:
        hidden_BTD, weight_VD, split = _fetched(share, hidden_BTD, weight_VD)
        return selected(hidden_BTD, weight_VD, targets_BT, learnt_BT, split=split)

    run = share.run(part, _GIVEN, shards.ROWS)
    return run(hidden_BTD, llama.unembedding(parameters), targets_BT, learnt_BT)


def total_of_targets(
    parameters: llama.Parameters,
    config: llama.Config,
    compute: llama.Compute,
    tokens_BT: jax.Array,
    places: Places,
    targets_BT: jax.Array,
    weights_BT: jax.Array,
) -> jax.Array:
    """Sum over all places of the target's log-probability times its weight, float32."""
    hidden_BTD = llama.forward(parameters, config, tokens_BT, places, compute)
    share = llama.share(config, compute.mesh)

    def part(hidden_BTD, weight_VD, targets_BT, weights_BT) -> jax.Array:
        hidden_BTD, weight_VD, split = _fetched(share, hidden_BTD, weight_VD)
        return share.sum_over_rows(total(hidden_BTD, weight_VD, targets_BT, weights_BT, split=split))

    return share.run(part, _GIVEN, ())(hidden_BTD, llama.unembedding(parameters), targets_BT, weights_BT)


def _fetched(share: Share, hidden_BTD, weight_VD) -> tuple[jax.Array, jax.Array, Split | None]:
    axis = share.vocabulary_axis()
    split = None if axis is None else Split(axis, share.counts["vocab"])
    return share.places_before(hidden_BTD), share.fetch(weight_VD, ("vocab", "embed"), hidden_BTD.dtype), split


def branch_sums(values_BT: jax.Array, places: Places, segments: int, branches: int) -> jax.Array:
    """Sum over each branch of each segment, float32 [B, S, K]; what branches share counts in each of them."""
    segment_ids = jnp.arange(1, segments + 1)
    branch_ids = jnp.arange(1, branches + 1)
    in_segment_BTS = places.segments[:, :, None] == segment_ids
    in_branch_BTK = (places.branches[:, :, None] == branch_ids) | (places.branches[:, :, None] == 0)
    member_BTSK = in_segment_BTS[:, :, :, None] & in_branch_BTK[:, :, None, :]
    return jnp.sum(jnp.where(member_BTSK, values_BT[:, :, None, None], 0.0), axis=1)


def selected(
    hidden_BTD: jax.Array,
    weight_VD: jax.Array,
    targets_BT: jax.Array,
    learnt_BT: jax.Array,
    chunk: int | None = None,
    split: Split | None = None,
) -> jax.Array:
    """log softmax(hidden · weightᵀ)[target] at learnt places, 0 elsewhere; float32 [B, T].

    `chunk` places of every row are computed at once; by default as many as hold `_CHUNK_BYTES` of logits.
    """
    order_BT, front = _learnt_first(hidden_BTD, weight_VD, targets_BT, learnt_BT, chunk)
    logprobs = jnp.asarray(_leading(front.chunk, split, front.hidden_BTD, weight_VD, front.targets_BT, front.learnt_B))
    return jnp.take_along_axis(logprobs[:, : order_BT.shape[1]], jnp.argsort(order_BT, axis=1), axis=1)


def total(
    hidden_BTD: jax.Array,
    weight_VD: jax.Array,
    targets_BT: jax.Array,
    weights_BT: jax.Array,
    chunk: int | None = None,
    split: Split | None = None,
) -> jax.Array:
    """The sum of `selected` times `weights_BT`, float32; places of weight 0 are not computed."""
    order_BT, front = _learnt_first(hidden_BTD, weight_VD, targets_BT, weights_BT != 0, chunk)
    ordered = jnp.take_along_axis(weights_BT.astype(jnp.float32), order_BT, axis=1)
    scales_BT = jnp.pad(ordered, ((0, 0), (0, front.targets_BT.shape[1] - ordered.shape[1])))
    given = (front.hidden_BTD, weight_VD, front.targets_BT, front.learnt_B, scales_BT)
    return jnp.asarray(_leading_total(front.chunk, split, *given))


class _Front(NamedTuple):
    """Rows whose learnt places come first, `learnt_B` of them, and T a multiple of the chunk."""

    chunk: int
    hidden_BTD: jax.Array
    targets_BT: jax.Array
    learnt_B: jax.Array


def _learnt_first(hidden_BTD, weight_VD, targets_BT, learnt_BT, chunk: int | None) -> tuple[jax.Array, _Front]:
    """The order that brings learnt places to the front, and the rows in it."""
    rows, length = targets_BT.shape
    if chunk is None:
        chunk = max(1, _CHUNK_BYTES // (4 * rows * weight_VD.shape[0]))
    chunk = min(chunk, length)
    order_BT = jnp.argsort(~learnt_BT, axis=1, stable=True)
    padding = -length % chunk
    hidden = jnp.pad(jnp.take_along_axis(hidden_BTD, order_BT[:, :, None], axis=1), ((0, 0), (0, padding), (0, 0)))
    targets = jnp.pad(jnp.take_along_axis(targets_BT, order_BT, axis=1), ((0, 0), (0, padding)))
    return order_BT, _Front(chunk, hidden, targets, jnp.sum(learnt_BT, axis=1))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _leading(chunk: int, split: Split | None, hidden_BTD, weight_VD, targets_BT, learnt_B):
    """`selected` of rows whose learnt places come first, `learnt_B` of them; T a multiple of the chunk."""
    return _leading_forward(chunk, split, hidden_BTD, weight_VD, targets_BT, learnt_B)[0]


class _Saved(NamedTuple):
    hidden_BTD: jax.Array
    weight_VD: jax.Array
    targets_BT: jax.Array
    learnt_B: jax.Array
    normalizers_BT: jax.Array


def _leading_forward(chunk: int, split: Split | None, hidden_BTD, weight_VD, targets_BT, learnt_B):
    def one_chunk(index, carry):
        logprobs_BT, normalizers_BT = carry
        start = index * chunk
        logits_BCV = _chunk_logits(hidden_BTD, weight_VD, start, chunk, split)
        chosen_BC, normalizer_BC = _chosen(logits_BCV, _slice(targets_BT, start, chunk), split)
        logprob_BC = jnp.where(_is_learnt(learnt_B, start, chunk), chosen_BC - normalizer_BC, 0.0)
        return _update(logprobs_BT, logprob_BC, start), _update(normalizers_BT, normalizer_BC, start)

    zeros = jnp.zeros(targets_BT.shape, jnp.float32)
    logprobs_BT, normalizers_BT = jax.lax.fori_loop(0, _chunks(learnt_B, chunk, split), one_chunk, (zeros, zeros))
    return logprobs_BT, _Saved(hidden_BTD, weight_VD, targets_BT, learnt_B, normalizers_BT)


def _leading_backward(chunk: int, split: Split | None, saved: _Saved, cotangent_BT: jax.Array):
    hidden_BTD, weight_VD, targets_BT, learnt_B, normalizers_BT = saved
    cotangent_BT = _summed(cotangent_BT, split)

    def one_chunk(index, carry):
        start = index * chunk
        logits_BCV = _chunk_logits(hidden_BTD, weight_VD, start, chunk, split)
        scales_BC = jnp.where(_is_learnt(learnt_B, start, chunk), _slice(cotangent_BT, start, chunk), 0.0)
        targets_BC, normalizer_BC = _slice(targets_BT, start, chunk), _slice(normalizers_BT, start, chunk)
        slopes_BCV = _slopes(logits_BCV, normalizer_BC, targets_BC, scales_BC, split)
        return _add_gradients(carry, slopes_BCV.astype(hidden_BTD.dtype), hidden_BTD, weight_VD, start)

    gradients = jax.lax.fori_loop(0, _chunks(learnt_B, chunk, split), one_chunk, _no_gradients(hidden_BTD, weight_VD))
    return gradients.hidden_BTD, gradients.weight_DV.T.astype(weight_VD.dtype), None, None


_leading.defvjp(_leading_forward, _leading_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _leading_total(chunk: int, split: Split | None, hidden_BTD, weight_VD, targets_BT, learnt_B, scales_BT):
    """`total` of rows whose learnt places come first; where no gradient is wanted, none is made."""
    logprobs_BT = _leading_forward(chunk, split, hidden_BTD, weight_VD, targets_BT, learnt_B)[0]
    return jnp.sum(logprobs_BT * scales_BT)


def _total_forward(chunk: int, split: Split | None, hidden_BTD, weight_VD, targets_BT, learnt_B, scales_BT):
    def one_chunk(index, carry):
        total, gradients = carry
        start = index * chunk
        logits_BCV = _chunk_logits(hidden_BTD, weight_VD, start, chunk, split)
        targets_BC, scales_BC = _slice(targets_BT, start, chunk), _slice(scales_BT, start, chunk)
        chosen_BC, normalizer_BC = _chosen(logits_BCV, targets_BC, split)
        total += jnp.sum(scales_BC * (chosen_BC - normalizer_BC))
        slopes_BCV = _slopes(logits_BCV, normalizer_BC, targets_BC, scales_BC, split)
        return total, _add_gradients(gradients, slopes_BCV.astype(hidden_BTD.dtype), hidden_BTD, weight_VD, start)

    start = (jnp.zeros(()), _no_gradients(hidden_BTD, weight_VD))
    return jax.lax.fori_loop(0, _chunks(learnt_B, chunk, split), one_chunk, start)


def _total_backward(chunk: int, split: Split | None, gradients: "_Gradients", cotangent: jax.Array):
    cotangent = _summed(cotangent, split)
    hidden_BTD = (cotangent * gradients.hidden_BTD).astype(gradients.hidden_BTD.dtype)
    # The weight's gradient is summed in float32 and given in the dtype that the hidden states have.
    return hidden_BTD, (cotangent * gradients.weight_DV).T.astype(hidden_BTD.dtype), None, None, None


_leading_total.defvjp(_total_forward, _total_backward)


class _Gradients(NamedTuple):
    """Of the hidden states, and of the unembedding in float32."""

    hidden_BTD: jax.Array
    weight_DV: jax.Array


def _no_gradients(hidden_BTD: jax.Array, weight_VD: jax.Array) -> _Gradients:
    return _Gradients(jnp.zeros_like(hidden_BTD), jnp.zeros(weight_VD.shape[::-1], jnp.float32))


def _add_gradients(gradients: _Gradients, slopes_BCV, hidden_BTD, weight_VD, start) -> _Gradients:
    """What one chunk's slopes, the derivatives with respect to its logits, add to the gradients."""
    hidden_gradient = _update(gradients.hidden_BTD, jnp.einsum("bcv,vd->bcd", slopes_BCV, weight_VD), start)
    # One 2-D product with the short side first: on XLA's CPU backend nearly twice as fast as "bcv,bcd->vd".
    chunk_ND = _slice(hidden_BTD, start, slopes_BCV.shape[1]).reshape(-1, hidden_BTD.shape[-1])
    slopes_NV = slopes_BCV.reshape(-1, slopes_BCV.shape[-1])
    added_DV = jnp.einsum("nd,nv->dv", chunk_ND, slopes_NV, preferred_element_type=jnp.float32)
    return _Gradients(hidden_gradient, gradients.weight_DV + added_DV)


def _chosen(logits_BCV: jax.Array, targets_BC: jax.Array, split: Split | None) -> tuple[jax.Array, jax.Array]:
    """Logit of each target, and the log of the sum of all exponentials."""
    if split is None:
        chosen_BC = jnp.take_along_axis(logits_BCV, targets_BC[:, :, None], axis=2)[:, :, 0]
        return chosen_BC, jax.nn.logsumexp(logits_BCV, axis=-1)
    own_BC, is_own_BC = shards.own_tokens(targets_BC, logits_BCV.shape[2], split.axis)
    chosen_BC = jnp.take_along_axis(logits_BCV, own_BC[:, :, None], axis=2)[:, :, 0]
    highest_BC = jax.lax.pmax(jnp.max(logits_BCV, axis=-1), split.axis)
    totals_BC = jnp.sum(jnp.exp(logits_BCV - highest_BC[:, :, None]), axis=-1)
    chosen_BC, totals_BC = jax.lax.psum((jnp.where(is_own_BC, chosen_BC, 0.0), totals_BC), split.axis)
    return chosen_BC, highest_BC + jnp.log(totals_BC)


def _slopes(
    logits_BCV: jax.Array, normalizer_BC: jax.Array, targets_BC: jax.Array, scales_BC: jax.Array, split: Split | None
) -> jax.Array:
    """d (scale · log softmax(z)[target]) / dz = scale · (onehot(target) - softmax(z))"""
    rows, places = jnp.indices(targets_BC.shape, sparse=True)
    slopes_BCV = -scales_BC[:, :, None] * jnp.exp(logits_BCV - normalizer_BC[:, :, None])
    if split is not None:
        targets_BC, is_own_BC = shards.own_tokens(targets_BC, logits_BCV.shape[2], split.axis)
        scales_BC = jnp.where(is_own_BC, scales_BC, 0.0)
    return slopes_BCV.at[rows, places, targets_BC].add(scales_BC)


def _summed(cotangent: jax.Array, split: Split | None) -> jax.Array:
    # A result that is the same on all devices of an axis has a cotangent that is theirs together.
    return cotangent if split is None else jax.lax.psum(cotangent, split.axis)


def _chunks(learnt_B: jax.Array, chunk: int, split: Split | None) -> jax.Array:
    most = jnp.max(learnt_B)
    if split is not None:
        # The devices that share a vocabulary meet in every chunk; all devices of the mesh take as many.
        most = jax.lax.pmax(most, shards.AXES)
    return (most + chunk - 1) // chunk


def _chunk_logits(
    hidden_BTD: jax.Array, weight_VD: jax.Array, start: jax.Array, chunk: int, split: Split | None
) -> jax.Array:
    product = functools.partial(jnp.einsum, "bcd,vd->bcv", preferred_element_type=jnp.float32)
    logits_BCV = product(_slice(hidden_BTD, start, chunk), weight_VD)
    if split is None or split.tokens == weight_VD.shape[0] * jax.lax.axis_size(split.axis):
        return logits_BCV
    token_V = jax.lax.axis_index(split.axis) * weight_VD.shape[0] + jnp.arange(weight_VD.shape[0])
    return jnp.where(token_V < split.tokens, logits_BCV, _NEVER)


def _is_learnt(learnt_B: jax.Array, start: jax.Array, chunk: int) -> jax.Array:
    return start + jnp.arange(chunk)[None, :] < learnt_B[:, None]


def _slice(array: jax.Array, start: jax.Array, chunk: int) -> jax.Array:
    return jax.lax.dynamic_slice_in_dim(array, start, chunk, axis=1)


def _update(array: jax.Array, part: jax.Array, start: jax.Array) -> jax.Array:
    return jax.lax.dynamic_update_slice_in_dim(array, part, start, axis=1)
