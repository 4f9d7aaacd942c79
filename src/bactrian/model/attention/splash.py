"""Attention on TPUs: JAX's splash attention, twice, for it knows segments and not branches.

Once within each branch of each segment, once from branches to the prompt that they share. The two are merged by their
log-sum-exp; each one's backward pass, given the merged output and log-sum-exp, makes its own share of the gradients of
the whole (the derivative of a softmax needs nothing else of the rest). On a CPU the kernels are interpreted, for tests.

All rows lie one after another as one, so that a batch is one call whose lists of blocks lead each row into itself.

Shapes: B rows, T places, H query heads, G key/value heads, K head width, P = B·T places of all rows, N blocks of a row.
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
from bactrian.model.attention.rule import Places

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


def padded(places: Places) -> Places:
    """The places with padding up to whole blocks."""
    return Places(*(_padded(field) for field in places))


def masks(places: Places, window: int | None) -> Masks:
    """What the two calls see in these padded rows."""
    rows, length = places.segments.shape
    block = _block(length)
    used_BT, codes_BT = places.segments > 0, sparsity.codes(places)
    index_BT = jnp.arange(rows * length, dtype=jnp.int32).reshape(rows, length)
    # Where a branch's query would stand if its branch came right after the prompt: a window counts positions.
    first_BT = jax.lax.cummax(
        jnp.where(places.segments != jnp.roll(places.segments, 1, axis=1), index_BT % length, 0), 1
    )
    offset_BT = jnp.take_along_axis(index_BT - places.positions, first_BT, axis=1)
    straight_BT = places.positions + offset_BT

    def mask(queries_BT, keys_BT, ids_BT, sequence_BT, seen_BNN) -> Mask:
        ids_BT = ids_BT + jnp.arange(rows)[:, None] * (jnp.max(codes_BT) + 1)
        ids = (jnp.where(queries_BT, ids_BT, _NO_QUERY), jnp.where(keys_BT, ids_BT, _NO_KEY))
        return Mask(
            SegmentIds(*(side.reshape(-1) for side in ids)),
            _info(seen_BNN, sequence_BT, of_keys=False),
            _info(seen_BNN, sequence_BT, of_keys=True),
        )

    branch_BT, shared_BT = used_BT & (places.branches > 0), used_BT & (places.branches == 0)
    own_seen = sparsity.seen_within_branches(places, window, block, block)
    shared_seen = sparsity.seen_shared(places, window, block, block)
    own = mask(used_BT, used_BT, codes_BT, index_BT, own_seen)
    shared = mask(branch_BT, shared_BT, places.segments, straight_BT, shared_seen)
    return Masks(own, shared, jnp.any(branch_BT))


def attend(
    queries_BTHK: jax.Array, keys_BTGK: jax.Array, values_BTGK: jax.Array, masks: Masks, window: int | None
) -> jax.Array:
    """Attention over packed rows, [B, T, H, K]; zero at places that see nothing. `masks` are of padded rows."""
    rows, length, heads, width = queries_BTHK.shape
    block = _block(length)
    padded = (_padded(x) for x in (queries_BTHK * width**-0.5, keys_BTGK, values_BTGK))
    flat = [x.transpose(2, 0, 1, 3).reshape(x.shape[2], -1, width) for x in padded]
    mixed_HPK = jnp.asarray(_attend((block, window), *flat, masks))
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
    block, window = form

    def run(interpret: bool):
        splash = kernels.SplashAttentionKernel(
            mask.of_queries,
            None,
            None,
            **_settings(block, window, interpret),
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
    block, window = form

    def run(interpret: bool):
        def backward(ids, queries, keys, values, mixed, normalizers, cotangent):
            saved = (queries, keys, values, ids, None, mixed, normalizers, mask.of_queries, mask.of_keys)
            # Splash's own way back, which has no public name: its forward pass keeps the log-sum-exp of its call alone.
            found = kernels._splash_attention_bwd(
                save_residuals=False,
                residual_checkpoint_name=None,
                res=saved,
                do=cotangent,
                **_settings(block, window, interpret),
            )
            return found[3:6]

        return backward

    return kernel(run)(mask.ids, *given)


def _settings(block: int, window: int | None, interpret: bool) -> dict[str, Any]:
    blocks: Any = [block] * 8  # of queries and of keys, in each of the three kernels
    return {
        "mask_value": _UNSEEN,
        "is_mqa": False,
        "block_sizes": kernels.BlockSizes(*blocks),
        "mask_function": _Before(window),
        "attn_logits_soft_cap": None,
        "interpret": interpret,
    }


def _info(seen_BNN: jax.Array, sequence_BT: jax.Array, of_keys: bool) -> MaskInfo:
    """Each block's list in splash's form, of all rows one after another; past its end a list repeats its last block."""
    lists = sparsity.lists(seen_BNN.transpose(0, 2, 1) if of_keys else seen_BNN)
    rows, count, width = lists.blocks.shape
    step, counts = jnp.arange(width), lists.counts[:, :, None]
    blocks = jnp.take_along_axis(lists.blocks, jnp.minimum(step, jnp.maximum(counts - 1, 0)), axis=2)
    blocks = blocks + jnp.arange(rows)[:, None, None] * count
    order = (0, 2, 1) if of_keys else (0, 1, 2)
    fields: Any = [each.reshape(1, -1, width).transpose(order).astype(jnp.int32) for each in (blocks, step < counts)]
    sequence: Any = sequence_BT.reshape(-1)
    return MaskInfo(fields[0], None, fields[1], None, sequence)


def _block(length: int) -> int:
    return min(_LARGEST_BLOCK, length + -length % _LANES)


def _padded(x_BT: jax.Array) -> jax.Array:
    missing = -x_BT.shape[1] % _block(x_BT.shape[1])
    return jnp.pad(x_BT, ((0, 0), (0, missing), *[(0, 0)] * (x_BT.ndim - 2)))
