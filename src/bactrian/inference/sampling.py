"""The next token from logits: greedily, or drawn after temperature, top-k and top-p in that order.

What each filter keeps is what Hugging Face's warper of the same name keeps. Neither sorts: on a CPU one sort of 49,152
logits takes a third of a decoding step of a small model, a search for the cut a fiftieth.

Shapes: B rows, V vocabulary.
"""

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

Mode = Literal["greedy", "plain", "filtered"]


class Knobs(NamedTuple):
    """The numbers of a draw, as arrays, so that new ones need no new program."""

    temperature: jax.Array  # float32
    top_k: jax.Array  # int32, 0 keeps all
    top_p: jax.Array  # float32, 1 keeps all


def choose(logits_BV: jax.Array, keys_B: jax.Array, knobs: Knobs, mode: Mode) -> jax.Array:
    """One token per row, int32 [B]. Each row draws with its own key, so it does not depend on the others."""
    if mode == "greedy":
        return jnp.argmax(logits_BV, axis=-1).astype(jnp.int32)
    logits_BV = logits_BV / knobs.temperature
    if mode == "filtered":
        logits_BV = keep_top_p(keep_top_k(logits_BV, knobs.top_k), knobs.top_p)
    return jax.vmap(jax.random.categorical)(keys_B, logits_BV).astype(jnp.int32)


def keep_top_k(logits_BV: jax.Array, top_k: jax.Array | int) -> jax.Array:
    """The logits with all below the k-th largest at -inf; those equal to it all stay. 0 keeps every one."""
    order_BV = _order(logits_BV)
    wanted = jnp.minimum(top_k, logits_BV.shape[-1])
    cut_B = _cut(order_BV, jnp.ones_like(order_BV), wanted)
    return jnp.where((order_BV >= cut_B[:, None]) | (top_k == 0), logits_BV, -jnp.inf)


def keep_top_p(logits_BV: jax.Array, top_p: jax.Array | float) -> jax.Array:
    """The logits with all but the smallest set whose probability reaches p at -inf (Holtzman et al. 2020).

    Of equal logits at the edge of the set, as many stay as it takes, those of the higher ids.
    """
    order_BV = _order(logits_BV)
    probabilities_BV = jax.nn.softmax(logits_BV, axis=-1)
    cut_B1 = _cut(order_BV, probabilities_BV, top_p)[:, None]
    tied_BV = order_BV == cut_B1
    above_B1 = jnp.sum(probabilities_BV, axis=-1, where=order_BV > cut_B1, keepdims=True)
    of_one_B1 = jnp.max(jnp.where(tied_BV, probabilities_BV, 0.0), axis=-1, keepdims=True)
    tied_kept_B1 = jnp.maximum(jnp.ceil((top_p - above_B1) / of_one_B1), 1)
    from_the_end_BV = jax.lax.cumsum(tied_BV.astype(jnp.int32), axis=1, reverse=True)
    kept_BV = (order_BV > cut_B1) | (tied_BV & (from_the_end_BV <= tied_kept_B1))
    return jnp.where(kept_BV | (top_p >= 1), logits_BV, -jnp.inf)


def _order(logits_BV: jax.Array) -> jax.Array:
    """Integers that compare as the logits do: the bits of a float32, those of negative ones turned around."""
    bits = jax.lax.bitcast_convert_type(jnp.where(logits_BV == 0, 0.0, logits_BV), jnp.int32)
    return jnp.where(bits < 0, bits ^ 0x7FFFFFFF, bits)


def _cut(order_BV: jax.Array, weights_BV: jax.Array, goal: jax.Array | float) -> jax.Array:
    """The highest cut [B] such that the weights of what is not below it reach the goal; halving 32 bits finds it."""

    def halve(_, bounds):
        low_B, high_B = bounds
        middle_B = (low_B >> 1) + (high_B >> 1) + (low_B & high_B & 1)  # their sum may not fit
        reached_B = jnp.sum(jnp.where(order_BV >= middle_B[:, None], weights_BV, 0), axis=-1) >= goal
        return jnp.where(reached_B, middle_B, low_B), jnp.where(reached_B, high_B, middle_B)

    return jax.lax.fori_loop(0, 32, halve, (order_BV.min(axis=-1), order_BV.max(axis=-1) + 1))[0]
