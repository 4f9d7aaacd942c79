"""A beginning that many packed rows share, read once: its keys and values, and attention of what follows over them.

Few-shot examples before every question of a benchmark are such a beginning. Tokens that follow it see all of it,
beside what they would see without it; a padded prefix is the same as one that fits.

Shapes: B rows, T places, P prefix places, H query heads, G key/value heads, R = H/G, K head width,
L layers.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from bactrian.model import attention
from bactrian.model.attention import Places

_BLOCK = 128  # queries whose scores over their row are computed at once, more where a row has very many
_BLOCKS = 16  # at most, so that a long row compiles as fast as a short one
_COPIED = 64  # places of a prefix that are cheaper copied in front of every row than multiplied apart
_LOWEST = -1e30  # the score of what is not seen: finite, so that a place that sees nothing has a maximum


class Prefix(NamedTuple):
    """What was read: places 0 … length - 1 hold positions 0 … length - 1, what comes after is padding.

    keys, values: of each layer [G, P, K], of all [L, G, P, K]. length: int32 scalar.
    """

    keys: jax.Array
    values: jax.Array
    length: jax.Array


def attend(
    queries_BTHK: jax.Array,
    keys_BTGK: jax.Array,
    values_BTGK: jax.Array,
    places: Places,
    window: int | None,
    before: Prefix,
) -> jax.Array:
    """Attention of packed rows that all come after one layer's prefix, forward only; [B, T, H, K]."""
    length = queries_BTHK.shape[1]
    size = max(_BLOCK, -(-length // _BLOCKS))
    keys, values = keys_BTGK.transpose(0, 2, 1, 3), values_BTGK.transpose(0, 2, 1, 3)
    queries = _group(queries_BTHK, keys_BTGK.shape[2])
    outputs = []
    for start in range(0, length, size):
        stop = min(start + size, length)
        block, upto = (Places(*(field[:, a:b] for field in places)) for a, b in ((start, stop), (0, stop)))
        seen = attention.visible(block, upto, window, start)
        seen_before = _seen_before(block.positions, before, window)
        outputs.append(
            _attend(queries[:, :, :, start:stop], keys[:, :, :stop], values[:, :, :stop], seen, before, seen_before)
        )
    output_BGRTK = jnp.concatenate(outputs, axis=3) if len(outputs) > 1 else outputs[0]
    return output_BGRTK.transpose(0, 3, 1, 2, 4).reshape(queries_BTHK.shape)


def _seen_before(positions_BT: jax.Array, before: Prefix, window: int | None) -> jax.Array:
    """Whether each query sees each place of the prefix: bool [B, T, P]."""
    places = jnp.arange(before.keys.shape[-2])
    seen = jnp.broadcast_to(places < before.length, (*positions_BT.shape, len(places)))
    if window is not None:
        seen &= positions_BT[:, :, None] - places < window
    return seen


def _group(queries_BTHK: jax.Array, groups: int) -> jax.Array:
    """Queries scaled by 1/sqrt(K), by the key/value head they share: [B, G, R, T, K]."""
    rows, length, heads, width = queries_BTHK.shape
    scaled = (queries_BTHK * width**-0.5).transpose(0, 2, 1, 3)
    return scaled.reshape(rows, groups, heads // groups, length, width)


def _attend(queries_BGRTK, keys_BGSK, values_BGSK, seen_BTS, before: Prefix, seen_BTP) -> jax.Array:
    """One softmax over the prefix and the row; the prefix's part is one matrix product for all rows."""
    rows, groups, shared, length, width = queries_BGRTK.shape
    flat = queries_BGRTK.reshape(rows, groups, shared * length, width)
    if 0 < seen_BTP.shape[-1] <= _COPIED:

        def joined(prior_GPK, own_BGSK):
            return jnp.concatenate([jnp.broadcast_to(prior_GPK, (rows, *prior_GPK.shape)), own_BGSK], axis=2)

        keys_BGSK, values_BGSK = joined(before.keys, keys_BGSK), joined(before.values, values_BGSK)
        seen_BTS, seen_BTP = jnp.concatenate([seen_BTP, seen_BTS], axis=-1), seen_BTP[..., :0]

    def masked(scores: jax.Array, seen: jax.Array) -> jax.Array:
        by_head = scores.reshape(rows, groups, shared, length, -1)
        return jnp.where(seen[:, None, None], by_head, _LOWEST).reshape(scores.shape)

    scores = [masked(jnp.einsum("bgqk,bgsk->bgqs", flat, keys_BGSK, preferred_element_type=jnp.float32), seen_BTS)]
    values = [("bgqs,bgsk->bgqk", values_BGSK)]
    if seen_BTP.shape[-1]:
        prior = jnp.einsum("bgqk,gpk->bgqp", flat, before.keys, preferred_element_type=jnp.float32)
        scores.append(masked(prior, seen_BTP))
        values.append(("bgqs,gsk->bgqk", before.values))
    highest = functools.reduce(jnp.maximum, [jnp.max(each, axis=-1, keepdims=True) for each in scores])
    weights = [jnp.exp(each - highest) for each in scores]
    total = sum(jnp.sum(each, axis=-1, keepdims=True) for each in weights)
    mixed = functools.reduce(
        jnp.add,
        [
            jnp.einsum(product, each.astype(own.dtype), own, preferred_element_type=jnp.float32)
            for each, (product, own) in zip(weights, values, strict=True)
        ],
    )
    return (mixed / total).astype(queries_BGRTK.dtype).reshape(queries_BGRTK.shape)
