"""Attention on TPUs: JAX's splash attention, twice, for it knows segments and not branches.

Once within each branch of each segment, once from branches to the prompt that they share. The two are merged by their
log-sum-exp; each one's backward pass, given the merged output and log-sum-exp, makes its own share of the gradients of
the whole (the derivative of a softmax needs nothing else of the rest). On a CPU the kernels are interpreted, for tests.

All rows lie one after another as one, so that a batch is one call whose lists of blocks lead each row into itself.

Shapes: B rows, T places, S places of keys, H query heads, G key/value heads, K head width, P places of all rows,
N blocks of a row.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as kernels
from jax.experimental.pallas.ops.tpu.splash_attention.splash_attention_kernel import SegmentIds
from jax.experimental.pallas.ops.tpu.splash_attention.splash_attention_mask_info import MaskInfo

from bactrian.model.attention import sparsity
from bactrian.model.attention.interpretation import kernel
from bactrian.model.attention.rule import Part, Places, padded, sides

_LANES = 128  # of a TPU's vector unit: blocks are multiples of it
_LARGEST_BLOCK = 512
_UNSEEN = kernels.DEFAULT_MASK_VALUE
_NO_QUERY, _NO_KEY = -1, -2  # ids that nothing equals


class Mask(NamedTuple):
    """What one of the calls sees: ids that must be equal, and the blocks that queries, and keys, have to do with."""

    ids: SegmentIds
    of_queries: MaskInfo
    of_keys: MaskInfo


class Masks(NamedTuple):
    """Both calls, and whether the second is needed: not in rows of conversations alone, which have no branches."""

    own: Mask
    shared: Mask
    has_branches: jax.Array


@dataclass(frozen=True)
class _Before:
    """The part of the rule that splash works out from indices: not after the query, and inside its window."""

    window: int | None

    def __call__(self, queries: jax.Array, keys: jax.Array) -> jax.Array:
        seen = keys <= queries
        return seen if self.window is None else seen & (queries - keys < self.window)


def masks(places: Places, part: Part, window: int | None) -> Masks:
    """What the two calls see in these rows, padded up to whole blocks."""
    blocks = _block(part.count), _block(places.segments.shape[1])
    queries, keys, _ = found = sides(places, part, *blocks)
    queries_codes_BT, codes_BS = sparsity.codes(found)
    rows, length = codes_BS.shape
    index_BS = jnp.arange(rows * length, dtype=jnp.int32).reshape(rows, length)
    # Where a branch's query would stand if its branch came right after the prompt: a window counts positions.
    first_BS = jax.lax.cummax(jnp.where(keys.segments != jnp.roll(keys.segments, 1, axis=1), index_BS % length, 0), 1)
    straight_BS = keys.positions + jnp.take_along_axis(index_BS - keys.positions, first_BS, axis=1)

    def mask(ids: tuple[jax.Array, jax.Array], sequence_BS: jax.Array, seen_BNM: jax.Array) -> Mask:
        # Every row has ids of its own; 0 is of what neither sees nor is seen.
        row_B1 = jnp.arange(rows)[:, None] * (jnp.max(codes_BS) + 1)
        apart = (jnp.where(side > 0, side + row_B1, none) for side, none in zip(ids, (_NO_QUERY, _NO_KEY), strict=True))
        sequence_BT = padded(part.of(sequence_BS), blocks[0])
        return Mask(
            SegmentIds(*(side.reshape(-1) for side in apart)),
            _info(seen_BNM, sequence_BT, of_keys=False),
            _info(seen_BNM, sequence_BT, of_keys=True),
        )

    own = queries_codes_BT * (queries.segments > 0), codes_BS * (keys.segments > 0)
    shared = queries.segments * (queries.branches > 0), keys.segments * (keys.branches == 0)
    return Masks(
        mask(own, index_BS, sparsity.seen_within_branches(found, window, *blocks)),
        mask(shared, straight_BS, sparsity.seen_shared(found, window, *blocks)),
        jnp.any(shared[0] > 0),
    )


def attend(
    queries_BTHK: jax.Array, keys_BSGK: jax.Array, values_BSGK: jax.Array, masks: Masks, window: int | None
) -> jax.Array:
    """Attention over packed rows, [B, T, H, K]; zero at places that see nothing."""
    rows, length, heads, width = queries_BTHK.shape
    blocks = _block(length), _block(keys_BSGK.shape[1])
    arrays = zip((queries_BTHK * width**-0.5, keys_BSGK, values_BSGK), (blocks[0], blocks[1], blocks[1]), strict=True)
    whole = (padded(x, block) for x, block in arrays)
    flat = [x.transpose(2, 0, 1, 3).reshape(x.shape[2], -1, width) for x in whole]
    mixed_HPK = jnp.asarray(_attend((*blocks, window), *flat, masks))
    return mixed_HPK.reshape(heads, rows, -1, width)[:, :, :length].transpose(1, 2, 0, 3)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(form, queries_HPK, keys_GPK, values_GPK, masks: Masks):
    return _forward(form, queries_HPK, keys_GPK, values_GPK, masks)[0]


def _forward(form, queries_HPK, keys_GPK, values_GPK, masks: Masks):
    given = queries_HPK, keys_GPK, values_GPK

    def own_alone():
        return _merged([_call(form, masks.own, *given)])

    def both():
        return _merged([_call(form, masks.own, *given), _call(form, masks.shared, *given)])

    mixed_HPK, normalizers_HP = jax.lax.cond(masks.has_branches, both, own_alone)
    # Kept by the remat policy "dots": with these two the backward pass need not come this way again.
    mixed_HPK = checkpoint_name(mixed_HPK, "attention")
    normalizers_HP = checkpoint_name(normalizers_HP, "attention")
    return mixed_HPK, (*given, masks, mixed_HPK, normalizers_HP)


def _backward(form, saved, cotangent_HPK):
    *given, masks, mixed_HPK, normalizers_HP = saved
    given = (*given, mixed_HPK, normalizers_HP, cotangent_HPK)

    def own_alone():
        return _gradients(form, masks.own, *given)

    def both():
        return jax.tree.map(jnp.add, own_alone(), _gradients(form, masks.shared, *given))

    return *jax.lax.cond(masks.has_branches, both, own_alone), None


_attend.defvjp(_forward, _backward)


def _call(form, mask: Mask, queries_HPK, keys_GPK, values_GPK) -> tuple[jax.Array, jax.Array]:
    """One call's weighted mean of values [H, P, K] and log-sum-exp of scores [H, P]."""

    def run(interpret: bool):
        splash = kernels.SplashAttentionKernel(
            mask.of_queries,
            None,
            None,
            **_settings(form, interpret),
            save_residuals=True,
            residual_checkpoint_name=None,
        )
        return lambda *arrays: splash(*arrays)

    mixed_HPK, (normalizers_HP,) = kernel(run)(queries_HPK, keys_GPK, values_GPK, mask.ids)
    return mixed_HPK, normalizers_HP


def _merged(calls: list[tuple[jax.Array, jax.Array]]) -> tuple[jax.Array, jax.Array]:
    """The weighted mean and the log-sum-exp of what the calls saw together; 0 where that is nothing."""
    normalizers = [jnp.maximum(normalizers_HP, _UNSEEN / 2) for _, normalizers_HP in calls]
    together_HP = jax.nn.logsumexp(jnp.stack(normalizers), axis=0)
    together_HP = jnp.where(together_HP > _UNSEEN / 4, together_HP, 0.0)
    sum_HPK = jnp.zeros(calls[0][0].shape, jnp.float32)
    for (mixed_HPK, _), normalizers_HP in zip(calls, normalizers, strict=True):
        share_HP1 = jnp.exp(normalizers_HP - together_HP)[..., None]
        # Where a call saw nothing, what it says is no number.
        sum_HPK += jnp.where(share_HP1 > 0, share_HP1 * mixed_HPK, 0.0)
    return sum_HPK.astype(calls[0][0].dtype), together_HP


def _gradients(form, mask: Mask, *given: jax.Array) -> tuple[jax.Array, ...]:
    """One call's share of the gradients of queries, keys and values, given what both calls made together.

    `given` are queries, keys, values, the merged mean of values, its log-sum-exp and the mean's cotangent.
    """

    def run(interpret: bool):
        def backward(ids, queries, keys, values, mixed, normalizers, cotangent):
            saved = (queries, keys, values, ids, None, mixed, normalizers, mask.of_queries, mask.of_keys)
            # Splash's own way back, which has no public name: its forward pass keeps the log-sum-exp of its call alone.
            found = kernels._splash_attention_bwd(
                save_residuals=False,
                residual_checkpoint_name=None,
                res=saved,
                do=cotangent,
                **_settings(form, interpret),
            )
            return found[3:6]

        return backward

    return kernel(run)(mask.ids, *given)


def _settings(form, interpret: bool) -> dict[str, Any]:
    query_block, key_block, window = form
    # Of queries, and of keys that are fetched and that are computed with at once, in each of the three kernels.
    blocks: Any = [query_block, key_block, key_block] * 2 + [query_block, key_block]
    return {
        "mask_value": _UNSEEN,
        "is_mqa": False,
        "block_sizes": kernels.BlockSizes(*blocks),
        "mask_function": _Before(window),
        "attn_logits_soft_cap": None,
        "interpret": interpret,
    }


def _info(seen_BNM: jax.Array, sequence_BT: jax.Array, of_keys: bool) -> MaskInfo:
    """Each block's list in splash's form, of all rows one after another; past its end a list repeats its last block.

    It names blocks of the other side, of which a row has as many as the list is wide.
    """
    lists = sparsity.lists(seen_BNM.transpose(0, 2, 1) if of_keys else seen_BNM)
    rows, _, width = lists.blocks.shape
    step, counts = jnp.arange(width), lists.counts[:, :, None]
    blocks = jnp.take_along_axis(lists.blocks, jnp.minimum(step, jnp.maximum(counts - 1, 0)), axis=2)
    blocks = blocks + jnp.arange(rows)[:, None, None] * width
    order = (0, 2, 1) if of_keys else (0, 1, 2)
    fields: Any = [each.reshape(1, -1, width).transpose(order).astype(jnp.int32) for each in (blocks, step < counts)]
    sequence: Any = sequence_BT.reshape(-1)
    return MaskInfo(fields[0], None, fields[1], None, sequence)


def _block(length: int) -> int:
    return min(_LARGEST_BLOCK, length + -length % _LANES)
