"""The attention rule of packed rows, and the ways to compute it: one function, an implementation per platform.

    rule.py     who sees whom
    sparsity.py which blocks of a row see into which
    dense.py    every pair of places, for tests
    blocks.py   "blocked": block by block in plain XLA, on every platform
    flash.py    "flash": our own kernel, on GPUs
    splash.py   "splash": JAX's kernel, on TPUs from v4 on

Implementations differ in speed alone: each equals `dense`. All but `dense` skip the blocks that nobody sees into,
forward and backward. Keys are of whole rows; queries may be of a part of their places, where a row is shared out.
"""

from collections.abc import Callable
from typing import Any, Literal

import jax

from bactrian.model.attention import blocks, dense
from bactrian.model.attention.rule import Part, Places, sides, visible

Implementation = Literal["blocked", "dense", "flash", "splash"]
Attend = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]

__all__ = ["Attend", "Implementation", "Part", "Places", "over", "suited", "visible"]


def over(
    places: Places, window: int | None = None, implementation: Implementation = "blocked", part: Part | None = None
) -> Attend:
    """Attention over the rows in which these places stand, as a function of queries, keys and values.

    The function takes queries [B, T, H, K], keys and values [B, T, G, K], and returns [B, T, H, K] in the queries'
    dtype, zero at padding. With `part` queries are those of a part of the places, and so is what it returns; keys and
    values are of whole rows, and nothing is computed but what these queries see. What depends on the places alone is
    worked out here, once for all layers.
    """
    part = part or Part(0, places.segments.shape[1])
    if implementation == "dense":
        both = sides(places, part)
        return lambda queries, keys, values: dense.attend(queries, keys, values, both, window)
    if implementation == "blocked":
        given = blocks.given(places, part, window)
        return lambda queries, keys, values: blocks.attend(queries, keys, values, given, window)
    # Pallas loads where it is used: a CPU has no need of it.
    if implementation == "flash":
        from bactrian.model.attention import flash

        known = flash.given(places, part, window)
        return lambda queries, keys, values: flash.attend(queries, keys, values, known, window)
    from bactrian.model.attention import splash

    masks = splash.masks(places, part, window)
    return lambda queries, keys, values: splash.attend(queries, keys, values, masks, window)


def suited(device: Any) -> Implementation:
    """The fastest implementation on such a `jax.Device`, which need not be at hand."""
    if device.platform == "gpu":
        return "flash"
    # Splash attention does not compile for these in bfloat16.
    if device.platform == "tpu" and not device.device_kind.startswith(("TPU v2", "TPU v3")):
        return "splash"
    return "blocked"
