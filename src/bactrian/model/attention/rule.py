"""Who sees whom in a packed row.

A token sees another when both belong to the same segment, the other does not come after it, and the other is shared by
all branches or lies on its own branch. Padding, segment 0, sees and is seen by nobody.

Shapes: B rows, T places, Q queries, S keys.
"""

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp


class Places(NamedTuple):
    """Where the tokens of packed rows stand: what the rule needs to know about them. int32 [B, T] each."""

    segments: jax.Array
    branches: jax.Array
    positions: jax.Array


@dataclass(frozen=True)
class Part:
    """The places of every row whose queries are asked for: so many of them, from the first on, which may be traced."""

    first: jax.Array | int
    count: int

    def of(self, field_BT: jax.Array) -> jax.Array:
        """What stands in these places."""
        if self.count == field_BT.shape[1]:
            return field_BT
        return jax.lax.dynamic_slice_in_dim(field_BT, self.first, self.count, axis=1)


class Sides(NamedTuple):
    """Where queries stand, and keys, which are those of whole rows; and the first query's index in its row, int32."""

    queries: Places
    keys: Places
    first: jax.Array


def sides(places: Places, part: Part, query_block: int = 1, key_block: int = 1) -> Sides:
    """Queries of a part of these rows, and keys of all, both with padding up to whole blocks."""
    queries = Places(*(padded(part.of(field), query_block) for field in places))
    return Sides(queries, Places(*(padded(field, key_block) for field in places)), jnp.asarray(part.first, jnp.int32))


def padded(x_BT: jax.Array, block: int) -> jax.Array:
    """[B, T, …] with zeros, which are padding, up to whole blocks of places."""
    return jnp.pad(x_BT, ((0, 0), (0, -x_BT.shape[1] % block), *[(0, 0)] * (x_BT.ndim - 2)))


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
