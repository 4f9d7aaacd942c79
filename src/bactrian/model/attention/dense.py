"""Every query against every key: the plain form that the others are held against.

Shapes: B rows, T places, H query heads, G key/value heads, R = H/G query heads that share one, K head width.
"""

import jax
import jax.numpy as jnp

from bactrian.model.attention.rule import Places, visible


def attend(
    queries_BTHK: jax.Array, keys_BTGK: jax.Array, values_BTGK: jax.Array, places: Places, window: int | None
) -> jax.Array:
    """Attention over packed rows, [B, T, H, K]; zero at places that see nothing."""
    rows, length, heads, width = queries_BTHK.shape
    groups = keys_BTGK.shape[2]
    queries = (queries_BTHK * width**-0.5).reshape(rows, length, groups, heads // groups, width)
    seen_BTT = visible(places, places, window)
    scores = jnp.einsum("bqgrk,bsgk->bgrqs", queries, keys_BTGK, preferred_element_type=jnp.float32)
    scores = jnp.where(seen_BTT[:, None, None], scores, jnp.finfo(jnp.float32).min)
    probabilities = jax.nn.softmax(scores, axis=-1).astype(values_BTGK.dtype)
    mixed_BTHK = jnp.einsum("bgrqs,bsgk->bqgrk", probabilities, values_BTGK).reshape(queries_BTHK.shape)
    return jnp.where(jnp.any(seen_BTT, axis=-1)[:, :, None, None], mixed_BTHK, 0)
