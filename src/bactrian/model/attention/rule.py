"""Who sees whom in a packed row.

A token sees another when both belong to the same segment, the other does not come after it, and the other is shared by
all branches or lies on its own branch. Padding, segment 0, sees and is seen by nobody.

Shapes: B rows, Q queries, S keys.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp


class Places(NamedTuple):
    """Where the tokens of packed rows stand: what the rule needs to know about them. int32 [B, T] each."""

    segments: jax.Array
    branches: jax.Array
    positions: jax.Array


def visible(
    queries: Places, keys: Places, window: int | None, first_query: jax.Array | int = 0, first_key: jax.Array | int = 0
) -> jax.Array:
    """Whether each query sees each key: bool [B, Q, S]. `first_query` and `first_key` are their offsets in the row."""
    query_index = first_query + jnp.arange(queries.segments.shape[1])
    key_index = first_key + jnp.arange(keys.segments.shape[1])
    along_queries = Places(*(field[:, :, None] for field in queries))
    along_keys = Places(*(field[:, None, :] for field in keys))
    return sees(along_queries, along_keys, window, query_index[:, None], key_index[None, :])


def sees(query: Places, key: Places, window: int | None, query_index: jax.Array, key_index: jax.Array) -> jax.Array:
    """Whether one sees the other, element by element; the places and the indices in the row broadcast.

    With a sliding window of w a token sees itself and the w - 1 before it, counted in positions (as Mistral does).
    """
    same_segment = (query.segments == key.segments) & (key.segments > 0)
    shared_or_own = (key.branches == 0) | (key.branches == query.branches)
    seen = same_segment & shared_or_own & (key_index <= query_index)
    if window is not None:
        seen &= query.positions - key.positions < window
    return seen
