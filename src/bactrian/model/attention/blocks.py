"""Attention block by block, in plain XLA: block pairs that nobody sees into are never computed, forward or backward.

The softmax runs along with the blocks (Milakov and Gimelshein 2018), and the backward pass makes each block's
probabilities again from the row's log-sum-exp (Dao et al. 2022, algorithm 4), so memory grows with the length of a row
and not with its square. Work grows with what is seen: in a row of many short examples nearly all pairs are skipped.

Shapes: B rows, T places, S places of keys, H query heads, G key/value heads, R = H/G query heads that share one,
K head width, N blocks of C places, Q = R·C queries of one block and group.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from bactrian.model.attention import sparsity
from bactrian.model.attention.rule import Part, Places, Sides, padded, sides, visible
from bactrian.model.attention.sparsity import Lists

_BLOCK = 128  # places; a row is cut into blocks of this length, one that is shorter is one block
_LOWEST = -1e30  # the score of what is not seen: finite, so that a block of such scores has a maximum


class Given(NamedTuple):
    """Where queries and keys stand, block by block, [N, B, C]; and for each block of queries the blocks of keys that it
    sees into, in any of the rows."""

    sides: Sides
    lists: Lists


def given(places: Places, part: Part, window: int | None) -> Given:
    """What attention is given beside queries, keys and values."""
    lengths = min(_BLOCK, part.count), min(_BLOCK, places.segments.shape[1])
    found = sides(places, part, *lengths)
    lists = sparsity.lists(jnp.any(sparsity.seen(found, window, *lengths), axis=0))
    queries, keys = (
        Places(*(_blocked(field).transpose(1, 0, 2) for field in side)) for side in (found.queries, found.keys)
    )
    return Given(Sides(queries, keys, found.first), lists)


def attend(
    queries_BTHK: jax.Array, keys_BSGK: jax.Array, values_BSGK: jax.Array, given: Given, window: int | None
) -> jax.Array:
    """Attention over packed rows, [B, T, H, K]; zero at places that see nothing."""
    rows, length, heads, width = queries_BTHK.shape
    groups = keys_BSGK.shape[2]
    queries = _cut((queries_BTHK * width**-0.5).reshape(rows, length, groups, heads // groups, width))
    keys, values = _cut(keys_BSGK[:, :, :, None]), _cut(values_BSGK[:, :, :, None])
    mixed_NBGQK = jnp.asarray(_attend(window, queries, keys, values, given))
    blocks = mixed_NBGQK.reshape(*mixed_NBGQK.shape[:3], heads // groups, -1, width)
    return blocks.transpose(1, 0, 4, 2, 3, 5).reshape(rows, -1, heads, width)[:, :length]


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(window, queries_NBGQK, keys_NBGCK, values_NBGCK, given: Given):
    return _forward(window, queries_NBGQK, keys_NBGCK, values_NBGCK, given)[0]


def _forward(window, queries_NBGQK, keys_NBGCK, values_NBGCK, given: Given):
    sides, lists = given

    def one_query_block(index):
        queries_BGQK = queries_NBGQK[index]

        def one_pair(step, carry):
            highest, total, mixed = carry
            key_block = lists.blocks[index, step]
            scores, seen = _scores(queries_BGQK, keys_NBGCK[key_block], _seen(sides, index, key_block, window))
            higher = jnp.maximum(highest, jnp.max(scores, axis=-1))
            weights = jnp.where(seen, jnp.exp(scores - higher[..., None]), 0.0)
            fade = jnp.exp(highest - higher)
            values = values_NBGCK[key_block]
            added = jnp.einsum(
                "bgqc,bgck->bgqk", weights.astype(values.dtype), values, preferred_element_type=jnp.float32
            )
            return higher, total * fade + jnp.sum(weights, axis=-1), mixed * fade[..., None] + added

        shape = queries_BGQK.shape
        start = (jnp.full(shape[:-1], _LOWEST), jnp.zeros(shape[:-1]), jnp.zeros(shape))
        highest, total, mixed = jax.lax.fori_loop(0, lists.counts[index], one_pair, start)
        total = jnp.where(total > 0, total, 1.0)
        return (mixed / total[..., None]).astype(queries_NBGQK.dtype), highest + jnp.log(total)

    mixed_NBGQK, normalizers_NBGQ = jax.lax.map(one_query_block, jnp.arange(queries_NBGQK.shape[0]))
    # Kept by the remat policy "dots": with these two the backward pass need not come this way again.
    mixed_NBGQK = checkpoint_name(mixed_NBGQK, "attention")
    normalizers_NBGQ = checkpoint_name(normalizers_NBGQ, "attention")
    return mixed_NBGQK, (queries_NBGQK, keys_NBGCK, values_NBGCK, given, mixed_NBGQK, normalizers_NBGQ)


def _backward(window, saved, cotangent_NBGQK):
    queries_NBGQK, keys_NBGCK, values_NBGCK, (sides, lists), mixed_NBGQK, normalizers_NBGQ = saved
    # sum_c p_c dp_c, which the derivative of the softmax takes from every dp_c
    means_NBGQ = jnp.sum(mixed_NBGQK.astype(jnp.float32) * cotangent_NBGQK.astype(jnp.float32), axis=-1)

    def one_query_block(carry, index):
        queries, cotangent = queries_NBGQK[index], cotangent_NBGQK[index]

        def one_pair(step, carry):
            queries_gradient, keys_gradient, values_gradient = carry
            key_block = lists.blocks[index, step]
            keys, values = keys_NBGCK[key_block], values_NBGCK[key_block]
            scores, seen = _scores(queries, keys, _seen(sides, index, key_block, window))
            weights = jnp.where(seen, jnp.exp(scores - normalizers_NBGQ[index][..., None]), 0.0)
            slopes = jnp.einsum("bgqk,bgck->bgqc", cotangent, values, preferred_element_type=jnp.float32)
            slopes = (weights * (slopes - means_NBGQ[index][..., None])).astype(queries.dtype)
            weights = weights.astype(cotangent.dtype)
            queries_gradient += jnp.einsum("bgqc,bgck->bgqk", slopes, keys, preferred_element_type=jnp.float32)
            to_keys = jnp.einsum("bgqc,bgqk->bgck", slopes, queries, preferred_element_type=jnp.float32)
            to_values = jnp.einsum("bgqc,bgqk->bgck", weights, cotangent, preferred_element_type=jnp.float32)
            return (
                queries_gradient,
                keys_gradient.at[key_block].add(to_keys),
                values_gradient.at[key_block].add(to_values),
            )

        start = (jnp.zeros(queries.shape), *carry)
        queries_gradient, *carry = jax.lax.fori_loop(0, lists.counts[index], one_pair, start)
        return tuple(carry), queries_gradient.astype(queries.dtype)

    start = (jnp.zeros(keys_NBGCK.shape), jnp.zeros(values_NBGCK.shape))
    blocks = jnp.arange(queries_NBGQK.shape[0])
    (keys_gradient, values_gradient), queries_gradient = jax.lax.scan(one_query_block, start, blocks)
    return (
        queries_gradient,
        keys_gradient.astype(keys_NBGCK.dtype),
        values_gradient.astype(values_NBGCK.dtype),
        None,
    )


_attend.defvjp(_forward, _backward)


def _scores(queries_BGQK: jax.Array, keys_BGCK: jax.Array, seen_BCC: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Scores [B, G, Q, C] of one pair of blocks, and which of them count; the query heads of a group are alike."""
    scores = jnp.einsum("bgqk,bgck->bgqc", queries_BGQK, keys_BGCK, preferred_element_type=jnp.float32)
    by_head = (*scores.shape[:2], -1, *seen_BCC.shape[1:])
    seen = jnp.broadcast_to(seen_BCC[:, None, None], scores.reshape(by_head).shape).reshape(scores.shape)
    return jnp.where(seen, scores, _LOWEST), seen


def _seen(sides: Sides, query_block: jax.Array, key_block: jax.Array, window: int | None) -> jax.Array:
    """Who sees whom in one pair of blocks, bool [B, C, C]."""
    queries = Places(*(field[query_block] for field in sides.queries))
    keys = Places(*(field[key_block] for field in sides.keys))
    first_query = sides.first + query_block * queries.segments.shape[1]
    return visible(queries, keys, window, first_query, key_block * keys.segments.shape[1])


def _cut(x_BTGRK: jax.Array) -> jax.Array:
    """[B, T, G, R, K] → [N, B, G, R·C, K]."""
    blocks_BNCGRK = _blocked(x_BTGRK)
    cut = blocks_BNCGRK.transpose(1, 0, 3, 4, 2, 5)
    return cut.reshape(*cut.shape[:3], -1, cut.shape[-1])


def _blocked(field_BT: jax.Array) -> jax.Array:
    """[B, T, …] → [B, N, C, …]; padding fills the last block."""
    rows, length, *rest = field_BT.shape
    block = min(_BLOCK, length)
    return padded(field_BT, block).reshape(rows, -1, block, *rest)
