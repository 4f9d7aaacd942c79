"""The attention rule, in one function, and the ways to compute it.

In a packed row a token sees another when both belong to the same segment, the other does not come after it, and the
other is shared by all branches or lies on its own branch. Implementations differ in speed alone: each equals `dense`.

Shapes: B rows, T places, H query heads, G key/value heads, R = H/G query heads that share one, K head width.
"""

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

Implementation = Literal["blocked", "dense"]

_BLOCKS = 16  # at most this many query blocks are unrolled, so that a long row compiles as fast as a short one
_SMALLEST_BLOCK = 128
_SAVED_ROW = 1024  # rows up to this length keep their probabilities for the backward pass; longer ones recompute them


class Places(NamedTuple):
    """Where the tokens of packed rows stand: what the rule needs to know about them. int32 [B, T] each."""

    segments: jax.Array
    branches: jax.Array
    positions: jax.Array

    def between(self, start: int, stop: int) -> "Places":
        return Places(*(field[:, start:stop] for field in self))


def visible(queries: Places, keys: Places, first_query: int, window: int | None) -> jax.Array:
    """Whether each query sees each key: bool [B, queries, keys]. `first_query` is the queries' offset in the row.

    With a sliding window of w a token sees itself and the w - 1 before it, counted in positions (as Mistral does).
    """
    same_segment = queries.segments[:, :, None] == keys.segments[:, None, :]
    shared_or_own = (keys.branches[:, None, :] == 0) | (keys.branches[:, None, :] == queries.branches[:, :, None])
    query_index = first_query + jnp.arange(queries.segments.shape[1])
    not_after = jnp.arange(keys.segments.shape[1])[None, :] <= query_index[:, None]
    seen = same_segment & shared_or_own & not_after
    if window is not None:
        seen &= queries.positions[:, :, None] - keys.positions[:, None, :] < window
    return seen


def attend(
    queries_BTHK: jax.Array,
    keys_BTGK: jax.Array,
    values_BTGK: jax.Array,
    places: Places,
    window: int | None = None,
    implementation: Implementation = "blocked",
) -> jax.Array:
    """Attention over packed rows under the branch rule; returns [B, T, H, K] in the queries' dtype.

    `dense` scores every pair of places. `blocked` takes the queries a block at a time and scores only the keys that
    are not after the block.
    """
    length = queries_BTHK.shape[1]
    block = length if implementation == "dense" else _block_length(length)
    queries = _group(queries_BTHK, keys_BTGK.shape[2])
    keys, values = keys_BTGK.transpose(0, 2, 1, 3), values_BTGK.transpose(0, 2, 1, 3)
    one_block = _attend_block if length <= _SAVED_ROW else jax.checkpoint(_attend_block)
    outputs = []
    for start in range(0, length, block):
        stop = min(start + block, length)
        seen = visible(places.between(start, stop), places.between(0, stop), start, window)
        outputs.append(one_block(queries[:, :, :, start:stop], keys[:, :, :stop], values[:, :, :stop], seen))
    output_BGRTK = jnp.concatenate(outputs, axis=3) if len(outputs) > 1 else outputs[0]
    return output_BGRTK.transpose(0, 3, 1, 2, 4).reshape(queries_BTHK.shape)


def attend_cached(
    queries_BTHK: jax.Array, keys_BGSK: jax.Array, values_BGSK: jax.Array, positions_BT: jax.Array, window: int | None
) -> jax.Array:
    """Attention of new tokens over a cache of S places, place i holding the key of position i; [B, T, H, K]."""
    key_positions = jnp.arange(keys_BGSK.shape[2])
    seen = key_positions[None, None, :] <= positions_BT[:, :, None]
    if window is not None:
        seen &= positions_BT[:, :, None] - key_positions[None, None, :] < window
    output_BGRTK = _attend_block(_group(queries_BTHK, keys_BGSK.shape[1]), keys_BGSK, values_BGSK, seen)
    return output_BGRTK.transpose(0, 3, 1, 2, 4).reshape(queries_BTHK.shape)


def _block_length(length: int) -> int:
    return max(_SMALLEST_BLOCK, -(-length // _BLOCKS))


def _group(queries_BTHK: jax.Array, groups: int) -> jax.Array:
    """Queries scaled by 1/sqrt(K), heads before places, grouped by the key/value head they share: [B, G, R, T, K]."""
    rows, length, heads, width = queries_BTHK.shape
    scaled = (queries_BTHK * width**-0.5).transpose(0, 2, 1, 3)
    return scaled.reshape(rows, groups, heads // groups, length, width)


def _attend_block(queries_BGRTK: jax.Array, keys_BGSK: jax.Array, values_BGSK: jax.Array, seen_BTS: jax.Array):
    rows, groups, shared, length, width = queries_BGRTK.shape
    # The query heads of a group are more rows of one matrix product.
    flat = queries_BGRTK.reshape(rows, groups, shared * length, width)
    scores = jnp.einsum("bgqk,bgsk->bgqs", flat, keys_BGSK, preferred_element_type=jnp.float32)
    scores = scores.reshape(rows, groups, shared, length, -1)
    scores = jnp.where(seen_BTS[:, None, None], scores, jnp.finfo(jnp.float32).min)
    probabilities = jax.nn.softmax(scores, axis=-1).astype(values_BGSK.dtype)
    probabilities = probabilities.reshape(rows, groups, shared * length, -1)
    return jnp.einsum("bgqs,bgsk->bgqk", probabilities, values_BGSK).reshape(queries_BGRTK.shape)
