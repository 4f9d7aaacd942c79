"""The attention rule of packed rows, and the ways to compute it: one function, an implementation per platform.

    rule.py     who sees whom
    dense.py    every pair of places, for tests
    blocks.py   block by block in plain XLA: pairs of blocks that nobody sees into are never computed

Implementations differ in speed alone: each equals `dense`.
"""

from collections.abc import Callable
from typing import Literal

import jax

from bactrian.model.attention import blocks, dense
from bactrian.model.attention.rule import Places, visible

Implementation = Literal["blocked", "dense"]
Attend = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]

__all__ = ["Attend", "Implementation", "Places", "over", "visible"]


def over(places: Places, window: int | None = None, implementation: Implementation = "blocked") -> Attend:
    """Attention over the rows in which these places stand, as a function of queries, keys and values.

    The function takes queries [B, T, H, K], keys and values [B, T, G, K], and returns [B, T, H, K] in the queries'
    dtype, zero at padding. What depends on the places alone is worked out here, once for all layers.
    """
    if implementation == "dense":
        return lambda queries, keys, values: dense.attend(queries, keys, values, places, window)
    pairs = blocks.pairs(places, window)
    return lambda queries, keys, values: blocks.attend(queries, keys, values, places, pairs, window)
