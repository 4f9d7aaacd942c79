"""Which blocks of packed rows see into which, so that the rest is never computed.

It is told from the extremes of each block (its first and last segment, and so on) and never misses a pair of blocks
in which somebody is seen. In rows laid out as packing does, segment by segment and branch by branch, it names hardly
a pair too many.

Shapes: B rows, T places, N blocks of queries, M blocks of keys.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from bactrian.model.attention.rule import Places


class Lists(NamedTuple):
    """For each block those it has to do with: `blocks` int32 [..., N, M] names them, the first `counts` [..., N]."""

    blocks: jax.Array
    counts: jax.Array


class _Range(NamedTuple):
    """The least and the greatest of something in each block, [B, N]; the least is the greater where there is none."""

    least: jax.Array
    greatest: jax.Array

    def meets(self, other: "_Range") -> jax.Array:
        """Whether the ranges of two blocks overlap: bool [B, N, M]."""
        before = self.least[:, :, None] <= other.greatest[:, None, :]
        return before & (other.least[:, None, :] <= self.greatest[:, :, None])


def seen(places: Places, window: int | None, query_block: int, key_block: int) -> jax.Array:
    """Whether a block of queries sees into a block of keys, of these lengths: bool [B, N, M]; both divide T."""
    lengths = (window, query_block, key_block)
    return seen_within_branches(places, *lengths) | seen_shared(places, *lengths)


def seen_within_branches(places: Places, window: int | None, query_block: int, key_block: int) -> jax.Array:
    """The same of what lies on the query's own branch, or is shared as the query is."""
    used_BT, codes_BT = places.segments > 0, codes(places)
    own_BNM = _range(codes_BT, used_BT, query_block).meets(_range(codes_BT, used_BT, key_block))
    return own_BNM & _near(places, window, query_block, key_block)


def seen_shared(places: Places, window: int | None, query_block: int, key_block: int) -> jax.Array:
    """The same of what all branches share, seen from a branch."""
    used_BT = places.segments > 0
    queries = _range(places.segments, used_BT & (places.branches > 0), query_block)
    keys = _range(places.segments, used_BT & (places.branches == 0), key_block)
    return queries.meets(keys) & _near(places, window, query_block, key_block)


def _near(places: Places, window: int | None, query_block: int, key_block: int) -> jax.Array:
    """Whether a block of keys begins before a block of queries ends, and reaches into its window: bool [B, N, M]."""
    length = places.segments.shape[1]
    ends_N, starts_M = jnp.arange(query_block, length + 1, query_block), jnp.arange(0, length, key_block)
    before_BNM = (starts_M[None, :] < ends_N[:, None])[None]
    if window is None:
        return before_BNM
    used_BT = places.segments > 0
    first, last = _range(places.positions, used_BT, query_block).least, _range(places.positions, used_BT, key_block)
    return before_BNM & (first[:, :, None] - last.greatest[:, None, :] < window)


def codes(places: Places) -> jax.Array:
    """A number for each branch of each segment, int32 [B, T]; in order as segments are, and branches in them."""
    return places.segments * (jnp.max(places.branches) + 1) + places.branches


def lists(seen_NM: jax.Array) -> Lists:
    """For each block of the last axis but one, those of the last that are marked, in order."""
    return Lists(jnp.argsort(~seen_NM, axis=-1, stable=True).astype(jnp.int32), jnp.sum(seen_NM, axis=-1))


def _range(field_BT: jax.Array, counted_BT: jax.Array, block: int) -> _Range:
    field_BNC, counted_BNC = (each.reshape(each.shape[0], -1, block) for each in (field_BT, counted_BT))
    most = jnp.iinfo(field_BT.dtype).max // 2  # halved: differences of two must not overflow
    least = jnp.min(jnp.where(counted_BNC, field_BNC, most), axis=-1)
    return _Range(least, jnp.max(jnp.where(counted_BNC, field_BNC, -most), axis=-1))
