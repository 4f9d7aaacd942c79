"""Attention on GPUs: our own flash kernel for the branch rule, in Pallas, compiled by Triton.

Each program holds one block of one side and goes over the blocks of the other that it has to do with. The
softmax runs along with them (Dao et al. 2022, algorithm 1, in powers of two), and the backward pass makes the
probabilities again from each query's log-sum-exp: one kernel for queries, one for keys and values, so that no program
writes where another does. On a CPU the kernels are interpreted, for tests.

Shapes: B rows, T places of queries, S of keys, H query heads, G key/value heads, R = H/G query heads that share one,
K head width, W places of a program's own block, C of one that it goes over (as many), N blocks.
"""

import math
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

from bactrian.model.attention import sparsity
from bactrian.model.attention.interpretation import kernel
from bactrian.model.attention.rule import Part, Places, Sides, padded, sees, sides
from bactrian.model.attention.sparsity import Lists

_BLOCK = 64  # places: measured on an H200 for heads of 128 the fastest of those of 32, 64 and 128
_LOWEST = -1e30  # the score of what is not seen: finite, so that a block of such scores has a maximum
_LOG2_E = math.log2(math.e)


class Given(NamedTuple):
    """Where queries and keys stand, padded up to whole blocks, the first query's index as an array of one; and for each
    block of queries the blocks of keys that it sees into, and for keys the queries that do."""

    sides: Sides
    of_queries: Lists
    of_keys: Lists


def given(places: Places, part: Part, window: int | None) -> Given:
    """What attention is given beside queries, keys and values."""
    found = sides(places, part, _BLOCK, _BLOCK)
    seen_BNM = sparsity.seen(found, window, _BLOCK, _BLOCK)
    lists = sparsity.lists(seen_BNM), sparsity.lists(seen_BNM.transpose(0, 2, 1))
    return Given(found._replace(first=found.first[None]), *lists)


def attend(
    queries_BTHK: jax.Array, keys_BSGK: jax.Array, values_BSGK: jax.Array, given: Given, window: int | None
) -> jax.Array:
    """Attention over packed rows, [B, T, H, K]; zero at places that see nothing."""
    _, length, _, width = queries_BTHK.shape
    # Triton's products are of powers of two, and at least 16.
    missing = max(16, pl.next_power_of_2(width)) - width
    arrays = (queries_BTHK, keys_BSGK, values_BSGK)
    wide = (jnp.pad(padded(x, _BLOCK), ((0, 0), (0, 0), (0, 0), (0, missing))) for x in arrays)
    return jnp.asarray(_attend((window, width**-0.5), *wide, given))[:, :length, :, :width]


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(form, queries_BTHK, keys_BSGK, values_BSGK, given: Given):
    return _forward(form, queries_BTHK, keys_BSGK, values_BSGK, given)[0]


def _forward(form, queries_BTHK, keys_BSGK, values_BSGK, given: Given):
    rows, length, heads, width = queries_BTHK.shape
    own, whole = _own_block(width), _whole_row(keys_BSGK, heads)
    mixed_BTHK, normalizers_BHT = _run(
        partial(_forward_kernel, *form),
        "branch_attention_forward",
        grid=(length // _BLOCK, rows, heads),
        in_specs=[_sides_of_row(given.sides), _lists_of(given.of_queries), own, whole, whole],
        out_specs=[own, _normalizers_of_block()],
        out_shape=[
            jax.ShapeDtypeStruct(queries_BTHK.shape, queries_BTHK.dtype),
            jax.ShapeDtypeStruct((rows, heads, length), jnp.float32),
        ],
    )(given.sides, given.of_queries, queries_BTHK, keys_BSGK, values_BSGK)
    # Kept by the remat policy "dots": with these two the backward pass need not come this way again.
    mixed_BTHK = checkpoint_name(mixed_BTHK, "attention")
    normalizers_BHT = checkpoint_name(normalizers_BHT, "attention")
    return mixed_BTHK, (queries_BTHK, keys_BSGK, values_BSGK, given, mixed_BTHK, normalizers_BHT)


def _forward_kernel(window, scale, sides, lists, queries, keys, values, mixed, normalizers):
    index = pl.program_id(0)
    queries_WK = queries[...]

    def one_block(step, carry):
        highest_W, total_W, mixed_WK = carry
        block = lists.blocks[step]
        scores_WC = _scores(window, scale, sides, (index, queries_WK), (block, _other(keys, block)))
        higher_W = jnp.maximum(highest_W, jnp.max(scores_WC, axis=1))
        weights_WC = jnp.exp2(scores_WC - _finite(higher_W)[:, None])
        fade_W = jnp.exp2(highest_W - higher_W)
        values_CK = _other(values, block)
        added_WK = triton.dot(weights_WC.astype(values_CK.dtype), values_CK)
        return higher_W, total_W * fade_W + jnp.sum(weights_WC, axis=1), mixed_WK * fade_W[:, None] + added_WK

    start = (jnp.full(_BLOCK, _LOWEST), jnp.zeros(_BLOCK), jnp.zeros(queries_WK.shape, jnp.float32))
    highest_W, total_W, mixed_WK = jax.lax.fori_loop(0, lists.counts[index], one_block, start)
    total_W = jnp.where(total_W > 0, total_W, 1.0)
    mixed[...] = (mixed_WK / total_W[:, None]).astype(mixed.dtype)
    normalizers[...] = _finite(highest_W) + jnp.log2(total_W)


def _backward(form, saved, cotangent_BTHK):
    queries_BTHK, keys_BSGK, values_BSGK, given, mixed_BTHK, normalizers_BHT = saved
    rows, length, heads, width = queries_BTHK.shape
    keys_length, groups = keys_BSGK.shape[1:3]
    # sum_c p_c dp_c, which the derivative of the softmax takes from every dp_c
    means_BHT = jnp.einsum("bthk,bthk->bht", mixed_BTHK, cotangent_BTHK, preferred_element_type=jnp.float32)
    own, whole, of_row = _own_block(width), _whole_row(keys_BSGK, heads), _sides_of_row(given.sides)
    to_queries_BTHK = _run(
        partial(_queries_kernel, *form),
        "branch_attention_to_queries",
        grid=(length // _BLOCK, rows, heads),
        in_specs=[of_row, _lists_of(given.of_queries), own, whole, whole, own, *[_normalizers_of_block()] * 2],
        out_specs=own,
        out_shape=jax.ShapeDtypeStruct(queries_BTHK.shape, queries_BTHK.dtype),
    )(given.sides, given.of_queries, queries_BTHK, keys_BSGK, values_BSGK, cotangent_BTHK, normalizers_BHT, means_BHT)

    # One group's query heads beside each other: a program goes over all of them.
    queries, cotangent = (x.reshape(rows, length, groups, -1, width) for x in (queries_BTHK, cotangent_BTHK))
    normalizers, means = (x.reshape(rows, groups, -1, length) for x in (normalizers_BHT, means_BHT))
    of_group = pl.BlockSpec((None, length, None, heads // groups, width), lambda i, b, g: (b, 0, g, 0, 0))
    sums_of_group = pl.BlockSpec((None, None, heads // groups, length), lambda i, b, g: (b, g, 0, 0))
    to_keys_BSGK, to_values_BSGK = _run(
        partial(_keys_kernel, *form),
        "branch_attention_to_keys",
        grid=(keys_length // _BLOCK, rows, groups),
        in_specs=[of_row, _lists_of(given.of_keys), of_group, own, own, of_group, sums_of_group, sums_of_group],
        out_specs=[own, own],
        out_shape=[jax.ShapeDtypeStruct(x.shape, x.dtype) for x in (keys_BSGK, values_BSGK)],
    )(given.sides, given.of_keys, queries, keys_BSGK, values_BSGK, cotangent, normalizers, means)
    return to_queries_BTHK, to_keys_BSGK, to_values_BSGK, None


_attend.defvjp(_forward, _backward)


def _queries_kernel(window, scale, sides, lists, queries, keys, values, cotangent, normalizers, means, to_queries):
    index = pl.program_id(0)
    queries_WK, cotangent_WK = queries[...], cotangent[...]
    normalizers_W, means_W = normalizers[...], means[...]

    def one_block(step, sum_WK):
        block = lists.blocks[step]
        keys_CK = _other(keys, block)
        scores_WC = _scores(window, scale, sides, (index, queries_WK), (block, keys_CK))
        weights_WC = jnp.exp2(scores_WC - normalizers_W[:, None])
        slopes_WC = weights_WC * (triton.dot(cotangent_WK, _other(values, block).T) - means_W[:, None])
        return sum_WK + triton.dot(slopes_WC.astype(keys_CK.dtype), keys_CK)

    start = jnp.zeros(queries_WK.shape, jnp.float32)
    sum_WK = jax.lax.fori_loop(0, lists.counts[index], one_block, start)
    to_queries[...] = (sum_WK * scale).astype(to_queries.dtype)


def _keys_kernel(window, scale, sides, lists, queries, keys, values, cotangent, normalizers, means, to_keys, to_values):
    index = pl.program_id(0)
    keys_WK, values_WK = keys[...], values[...]

    def one_head(head, carry):
        def one_block(step, carry):
            keys_sum_WK, values_sum_WK = carry
            block = lists.blocks[step]
            here = pl.ds(block * _BLOCK, _BLOCK)
            queries_CK, cotangent_CK = queries[here, head, :], cotangent[here, head, :]
            scores_WC = _scores(window, scale, sides, (index, keys_WK), (block, queries_CK), other_sees=True)
            weights_WC = jnp.exp2(scores_WC - normalizers[head, here][None, :])
            slopes_WC = weights_WC * (triton.dot(values_WK, cotangent_CK.T) - means[head, here][None, :])
            keys_sum_WK += triton.dot(slopes_WC.astype(queries_CK.dtype), queries_CK)
            values_sum_WK += triton.dot(weights_WC.astype(cotangent_CK.dtype), cotangent_CK)
            return keys_sum_WK, values_sum_WK

        return jax.lax.fori_loop(0, lists.counts[index], one_block, carry)

    start = (jnp.zeros(keys_WK.shape, jnp.float32), jnp.zeros(keys_WK.shape, jnp.float32))
    keys_sum_WK, values_sum_WK = jax.lax.fori_loop(0, queries.shape[1], one_head, start)
    to_keys[...] = (keys_sum_WK * scale).astype(to_keys.dtype)
    to_values[...] = values_sum_WK.astype(to_values.dtype)


def _scores(window, scale, sides, own, other, other_sees: bool = False) -> jax.Array:
    """Scores [W, C] of one pair of blocks, in powers of two. Each is its number and its contents, queries or keys."""

    def along(axis: int, places, first, number):
        here = pl.ds(number * _BLOCK, _BLOCK)
        fields = (first + number * _BLOCK + jnp.arange(_BLOCK), *(field[here] for field in places))
        index, *place = (jnp.expand_dims(field, 1 - axis) for field in fields)
        return Places(*place), index

    queries, keys = (other, own) if other_sees else (own, other)
    query, query_index = along(int(other_sees), sides.queries, sides.first, queries[0])
    key, key_index = along(int(not other_sees), sides.keys, 0, keys[0])
    seen_WC = sees(query, key, window, query_index, key_index)
    return jnp.where(seen_WC, triton.dot(own[1], other[1].T) * (scale * _LOG2_E), _LOWEST)


def _finite(highest: jax.Array) -> jax.Array:
    """The maximum to be taken from scores: 0 where nothing is seen, so that what is not seen weighs nothing."""
    return jnp.where(highest > _LOWEST, highest, 0.0)


def _other(rows, block) -> jax.Array:
    return rows[pl.ds(block * _BLOCK, _BLOCK), :]


def _run(body, name: str, **arguments):
    compiler = triton.CompilerParams(num_warps=4, num_stages=2)

    def program(sides, *rest):
        body(sides._replace(first=sides.first[0]), *rest)

    return kernel(
        lambda interpret: pl.pallas_call(program, name=name, interpret=interpret, compiler_params=compiler, **arguments)
    )


def _own_block(width: int) -> pl.BlockSpec:
    return pl.BlockSpec((None, _BLOCK, None, width), lambda i, b, h: (b, i, h, 0))


def _whole_row(keys_BSGK: jax.Array, heads: int) -> pl.BlockSpec:
    _, length, groups, width = keys_BSGK.shape
    return pl.BlockSpec((None, length, None, width), lambda i, b, h: (b, 0, h // (heads // groups), 0))


def _normalizers_of_block() -> pl.BlockSpec:
    return pl.BlockSpec((None, None, _BLOCK), lambda i, b, h: (b, h, i))


def _sides_of_row(sides: Sides) -> Sides:
    def places(side: Places) -> Places:
        specs: Any = [pl.BlockSpec((None, side.segments.shape[1]), lambda i, b, h: (b, 0))] * 3
        return Places(*specs)

    first: Any = pl.BlockSpec((1,), lambda i, b, h: (0,))
    return Sides(places(sides.queries), places(sides.keys), first)


def _lists_of(lists: Lists) -> Lists:
    _, count, others = lists.blocks.shape
    blocks: Any = pl.BlockSpec((None, None, others), lambda i, b, h: (b, i, 0))
    counts: Any = pl.BlockSpec((None, count), lambda i, b, h: (b, 0))
    return Lists(blocks, counts)
