"""Adam's moments in 8 bits: block-wise dynamic quantization (Dettmers et al. 2022, sections 2.1 and 2.2).

Numbers of a block are divided by its greatest. What is left is written as a power of ten, as many leading zero bits as
it takes, and in the bits after the first 1 a place between it and the next power: so a byte spans seven decades, and
is the finer the greater the number. For the second moment its square root is kept: that spans fourteen, and what is
not zero never becomes it, for the update divides by it. It is rounded up or down by chance, so that on average it is
what it should be: at a beta2 of 0.999 an update takes away a thousandth, which to the nearest would never be less.
Chance is drawn from the number of the update, so that a run resumed is the run.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

_BLOCK = 64  # numbers that share a scale, at most: few, so that a device's share of an axis holds whole blocks
_SMALLEST = 4096  # leaves of fewer numbers stay float32: they weigh nothing


class Quantized(NamedTuple):
    """An array as bytes of its own shape, and the scale of each block along its last axis, float32 [..., N]."""

    codes: jax.Array
    scales: jax.Array


def in_int8(adam: optax.GradientTransformation) -> optax.GradientTransformation:
    """`optax.scale_by_adam` with its moments kept in 8 bits between updates; each update is computed in float32."""

    def init(params: Any) -> Any:
        return _packed(adam.init(params))

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        changes, state = adam.update(updates, _unpacked(state), params)
        return changes, _packed(state)

    return optax.GradientTransformation(init, update)


def quantize(values: jax.Array) -> Quantized:
    """The nearest that a signed byte of each block can say; float32 [..., K] to int8 and scales [..., N]."""
    blocks, scales = _scaled(values)
    codes = jnp.sign(blocks) * _encode(jnp.abs(blocks), 7)
    return Quantized(codes.astype(jnp.int8).reshape(values.shape), scales)


def dequantize(quantized: Quantized) -> jax.Array:
    """The numbers that the bytes stand for, float32."""
    codes, scales = quantized
    blocks = codes.astype(jnp.float32).reshape(*scales.shape, -1)
    values = jnp.sign(blocks) * _decode(jnp.abs(blocks), 7) * scales[..., None]
    return values.reshape(codes.shape)


def quantize_square(values: jax.Array, key: jax.Array) -> Quantized:
    """The same of numbers that are not negative, by their square roots: uint8, one of the two that are nearest, on
    average the number. None but 0 becomes 0.
    """
    blocks, scales = _scaled(jnp.sqrt(values))
    nearest = _encode(blocks, 8)
    below = jnp.maximum(nearest - (_decode(nearest, 8) > blocks), 0)
    low, high = jnp.square(_decode(below, 8)), jnp.square(_decode(jnp.minimum(below + 1, 255), 8))
    part = (jnp.square(blocks) - low) / jnp.where(high > low, high - low, 1.0)
    chance = jax.random.bits(key, blocks.shape, jnp.uint16).astype(jnp.float32) / 2**16
    codes = jnp.maximum(below + (chance < part), blocks > 0)
    return Quantized(codes.astype(jnp.uint8).reshape(values.shape), scales)


def dequantize_square(quantized: Quantized) -> jax.Array:
    """The numbers that the bytes of `quantize_square` stand for, float32."""
    codes, scales = quantized
    blocks = codes.astype(jnp.float32).reshape(*scales.shape, -1)
    return jnp.square(_decode(blocks, 8) * scales[..., None]).reshape(codes.shape)


def _packed(state: Any) -> optax.ScaleByAdamState:
    key = jax.random.fold_in(jax.random.key(1), state.count)

    def packed(quantize: Callable[[jax.Array, jax.Array], Quantized], moments: Any) -> Any:
        leaves, tree = jax.tree.flatten(moments)
        kept = [
            leaf if leaf.size < _SMALLEST else quantize(leaf, jax.random.fold_in(key, index))
            for index, leaf in enumerate(leaves)
        ]
        return jax.tree.unflatten(tree, kept)

    return state._replace(mu=packed(lambda leaf, _: quantize(leaf), state.mu), nu=packed(quantize_square, state.nu))


def _unpacked(state: optax.ScaleByAdamState) -> optax.ScaleByAdamState:
    def unpacked(dequantize, tree: Any) -> Any:
        return jax.tree.map(
            lambda leaf: dequantize(leaf) if isinstance(leaf, Quantized) else leaf,
            tree,
            is_leaf=lambda node: isinstance(node, Quantized),
        )

    return state._replace(mu=unpacked(dequantize, state.mu), nu=unpacked(dequantize_square, state.nu))


def _scaled(values: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Blocks [..., N, C] of numbers from -1 to 1, and what they were divided by [..., N]."""
    blocks = values.reshape(*values.shape[:-1], -1, _block(values.shape[-1]))
    scales = jnp.max(jnp.abs(blocks), axis=-1)
    return blocks / jnp.where(scales > 0, scales, 1.0)[..., None], scales


def _block(length: int) -> int:
    """The largest block into which the last axis divides; where all are too small to be worth a scale, all of it."""
    largest = max(block for block in range(1, min(_BLOCK, length) + 1) if length % block == 0)
    return largest if largest >= _BLOCK // 8 else length


def _encode(values: jax.Array, bits: int) -> jax.Array:
    """Codes from 0 to 2^bits - 1 of numbers from 0 to 1, as whole numbers in float32.

    A code with its highest 1 at bit i stands in decade 10^(i - bits + 1), of which the bits below it are a fraction.
    """
    zero = values < _decode(jnp.float32(1), bits) / 2
    decade = jnp.clip(jnp.floor(jnp.log10(jnp.where(zero, 1.0, values))) + bits, 0, bits - 1)
    steps = jnp.exp2(decade)
    fraction = (values * _power_of_ten(bits - 1 - decade) - 0.1) / 0.9
    return jnp.where(zero, 0.0, steps + jnp.clip(jnp.floor(fraction * steps), 0, steps - 1))


def _decode(codes: jax.Array, bits: int) -> jax.Array:
    """The number in the middle of what each code stands for; the greatest code is 1 and code 0 is 0."""
    steps = jnp.exp2(jnp.floor(jnp.log2(jnp.maximum(codes, 1.0))))
    fraction = (codes - steps + 0.5) / steps
    values = (0.1 + 0.9 * fraction) / _power_of_ten(bits - 1 - jnp.log2(steps))
    return jnp.where(codes >= 2**bits - 1, 1.0, jnp.where(codes > 0, values, 0.0))


def _power_of_ten(exponent: jax.Array) -> jax.Array:
    return jnp.exp2(math.log2(10) * exponent)
