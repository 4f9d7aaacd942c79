"""Every query against every key: the plain form that the others are held against.

Shapes: B rows, T places of queries, S of keys, H query heads, G key/value heads, R = H/G query heads that share one,
K head width.
"""

import jax
import jax.numpy as jnp

from bactrian.model.attention.rule import Sides, visible


def attend(
    queries_BTHK: jax.Array, keys_BSGK: jax.Array, values_BSGK: jax.Array, sides: Sides, window: int | None
) -> jax.Array:
    """Attention over packed rows, [B, T, H, K]; zero at places that see nothing."""
    rows, length, heads, width = queries_BTHK.shape
    groups = keys_BSGK.shape[2]
    queries = (queries_BTHK * width**-0.5).reshape(rows, length, groups, heads // groups, width)
    seen_BTS = visible(sides.queries, sides.keys, window, sides.first)
    scores = jnp.einsum("bqgrk,bsgk->bgrqs", queries, keys_BSGK, preferred_element_type=jnp.float32)
    scores = jnp.where(seen_BTS[:, None, None], scores, jnp.finfo(jnp.float32).min)
    probabilities = jax.nn.softmax(scores, axis=-1).astype(values_BSGK.dtype)
    mixed_BTHK = jnp.einsum("bgrqs,bsgk->bqgrk", probabilities, values_BSGK).reshape(queries_BTHK.shape)
    return jnp.where(jnp.any(seen_BTS, axis=-1)[:, :, None, None], mixed_BTHK, 0)
