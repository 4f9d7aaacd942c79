"""Every query against every key: the plain form that the others are held against, and the one that decoding uses.

Shapes: B rows, T places, H query heads, G key/value heads, R = H/G query heads that share one, K head width, S keys.
"""

import jax
import jax.numpy as jnp

from bactrian.model.attention.rule import Places, visible


def attend(
    queries_BTHK: jax.Array, keys_BTGK: jax.Array, values_BTGK: jax.Array, places: Places, window: int | None
) -> jax.Array:
    """Attention over packed rows, [B, T, H, K]; zero at places that see nothing."""
    keys, values = keys_BTGK.transpose(0, 2, 1, 3), values_BTGK.transpose(0, 2, 1, 3)
    seen_BTS = visible(places, places, window)
    mixed_BTHK = _attend(queries_BTHK, keys, values, seen_BTS)
    return jnp.where(jnp.any(seen_BTS, axis=-1)[:, :, None, None], mixed_BTHK, 0)


def attend_cached(
    queries_BTHK: jax.Array, keys_BGSK: jax.Array, values_BGSK: jax.Array, positions_BT: jax.Array, window: int | None
) -> jax.Array:
    """Attention of new tokens over a cache of S places, place i holding the key of position i; [B, T, H, K]."""
    key_positions = jnp.arange(keys_BGSK.shape[2])
    seen = key_positions[None, None, :] <= positions_BT[:, :, None]
    if window is not None:
        seen &= positions_BT[:, :, None] - key_positions[None, None, :] < window
    return _attend(queries_BTHK, keys_BGSK, values_BGSK, seen)


def _attend(queries_BTHK: jax.Array, keys_BGSK: jax.Array, values_BGSK: jax.Array, seen_BTS: jax.Array) -> jax.Array:
    rows, length, heads, width = queries_BTHK.shape
    groups = keys_BGSK.shape[1]
    # The query heads of a group are more rows of one matrix product.
    scaled = (queries_BTHK * width**-0.5).transpose(0, 2, 1, 3).reshape(rows, groups, -1, width)
    scores = jnp.einsum("bgqk,bgsk->bgqs", scaled, keys_BGSK, preferred_element_type=jnp.float32)
    scores = scores.reshape(rows, groups, heads // groups, length, -1)
    scores = jnp.where(seen_BTS[:, None, None], scores, jnp.finfo(jnp.float32).min)
    probabilities = jax.nn.softmax(scores, axis=-1).astype(values_BGSK.dtype)
    mixed = jnp.einsum("bgqs,bgsk->bgqk", probabilities.reshape(rows, groups, -1, scores.shape[-1]), values_BGSK)
    return mixed.reshape(rows, heads, length, width).transpose(0, 2, 1, 3)
