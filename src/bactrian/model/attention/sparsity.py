"""Which blocks of packed rows see into which, so that the rest is never computed.

It is told from the extremes of each block (its first and last segment, and so on) and never misses a pair of blocks
in which somebody is seen. In rows laid out as packing does, segment by segment and branch by branch, it names hardly
a pair too many.

Shapes: B rows, T places (of queries and of keys, which may be more), N blocks of queries, M blocks of keys.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from bactrian.model.attention.rule import Sides


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


def seen(sides: Sides, window: int | None, query_block: int, key_block: int) -> jax.Array:
    """Whether a block of queries sees into a block of keys: bool [B, N, M]; the sides are padded to these lengths."""
    lengths = (window, query_block, key_block)
    return seen_within_branches(sides, *lengths) | seen_shared(sides, *lengths)


def seen_within_branches(sides: Sides, window: int | None, query_block: int, key_block: int) -> jax.Array:
    """The same of what lies on the query's own branch, or is shared as the query is."""
    codes_BT, keys_codes_BT = codes(sides)
    queries = _range(codes_BT, sides.queries.segments > 0, query_block)
    keys = _range(keys_codes_BT, sides.keys.segments > 0, key_block)
    return queries.meets(keys) & _near(sides, window, query_block, key_block)


def seen_shared(sides: Sides, window: int | None, query_block: int, key_block: int) -> jax.Array:
    """The same of what all branches share, seen from a branch."""
    (segments_BT, branches_BT, _), (keys_segments_BT, keys_branches_BT, _), _ = sides
    queries = _range(segments_BT, (segments_BT > 0) & (branches_BT > 0), query_block)
    keys = _range(keys_segments_BT, (keys_segments_BT > 0) & (keys_branches_BT == 0), key_block)
    return queries.meets(keys) & _near(sides, window, query_block, key_block)


def _near(sides: Sides, window: int | None, query_block: int, key_block: int) -> jax.Array:
    """Whether a block of keys does not begin after the last of a block of queries, and reaches into its window."""
    queries, keys, first = sides
    used_BT = queries.segments > 0
    index_BT = jnp.broadcast_to(first + jnp.arange(used_BT.shape[1]), used_BT.shape)
    starts_M = jnp.arange(0, keys.segments.shape[1], key_block)
    before_BNM = starts_M <= _range(index_BT, used_BT, query_block).greatest[:, :, None]
    if window is None:
        return before_BNM
    first_BN = _range(queries.positions, used_BT, query_block).least
    last_BM = _range(keys.positions, keys.segments > 0, key_block).greatest
    return before_BNM & (first_BN[:, :, None] - last_BM[:, None, :] < window)


def codes(sides: Sides) -> tuple[jax.Array, jax.Array]:
    """A number for each branch of each segment, int32 [B, T]; in order as segments are, and branches in them.

    Those of queries and those of keys.
    """
    branches = jnp.max(sides.keys.branches) + 1
    queries_BT, keys_BT = (side.segments * branches + side.branches for side in (sides.queries, sides.keys))
    return queries_BT, keys_BT


def lists(seen_NM: jax.Array) -> Lists:
    """For each block of the last axis but one, those of the last that are marked, in order."""
    return Lists(jnp.argsort(~seen_NM, axis=-1, stable=True).astype(jnp.int32), jnp.sum(seen_NM, axis=-1))


def _range(field_BT: jax.Array, counted_BT: jax.Array, block: int) -> _Range:
    field_BNC, counted_BNC = (each.reshape(each.shape[0], -1, block) for each in (field_BT, counted_BT))
    most = jnp.iinfo(field_BT.dtype).max // 2  # halved: differences of two must not overflow
    least = jnp.min(jnp.where(counted_BNC, field_BNC, most), axis=-1)
    return _Range(least, jnp.max(jnp.where(counted_BNC, field_BNC, -most), axis=-1))
