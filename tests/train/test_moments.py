"""Laws: a byte says a moment within what its bits allow, zero stays zero and nothing else becomes it, and training with
8-bit moments ends where training with float32 ones does."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bactrian.recipe import Optimizer
from bactrian.train import moments, optimizer


def spread(shape: tuple[int, ...], decades: float) -> np.ndarray:
    """Numbers of either sign over so many decades, each as likely as the other."""
    random = np.random.default_rng(0)
    return (random.choice([-1, 1], shape) * 10 ** random.uniform(-decades, 0, shape)).astype(np.float32)


@pytest.mark.parametrize("length", [64, 256, 96, 40, 7])
def test_what_is_large_in_its_block_is_said_well_and_nothing_is_said_badly(length: int):
    values = spread((6, length), 6)
    quantized = moments.quantize(jnp.asarray(values))
    assert quantized.codes.dtype == jnp.int8 and quantized.codes.shape == values.shape
    back = np.asarray(moments.dequantize(quantized))
    scales = np.repeat(np.asarray(quantized.scales), length // quantized.scales.shape[1], axis=1)
    relative = np.abs(values) / scales
    error = np.abs(back - values) / np.abs(values)
    assert error[relative > 0.1].max() < 0.071  # half of one of 64 steps, at the foot of the first decade
    assert (np.sign(back) == np.sign(values)).all()
    assert error[relative > 1e-4].max() < 0.6  # 8 steps in the fourth decade
    assert np.isclose(np.abs(back).max(), np.abs(values).max())


def squared(values: jax.Array) -> moments.Quantized:
    return moments.quantize_square(values, jax.random.key(3))


def test_codes_stand_for_themselves():
    """What a byte says is said by the same byte."""
    for bits, back, forth in [(7, moments.dequantize, moments.quantize), (8, moments.dequantize_square, squared)]:
        codes = np.arange(2**bits)[::-1].reshape(1, -1)  # one block: its greatest number is first
        quantized = moments.Quantized(jnp.asarray(codes, jnp.uint8), jnp.full((1, 1), 3.0))
        values = back(quantized)
        assert (np.diff(np.asarray(values)[0]) < 0).all()
        again = forth(values[:, :64])
        assert np.array_equal(again.codes, codes[:, :64])


def test_a_second_moment_spans_fourteen_decades_and_never_becomes_zero():
    values = np.square(spread((4, 64), 9))
    values[:, 5] = 0
    back = np.asarray(moments.dequantize_square(squared(jnp.asarray(values))))
    assert (back[:, 5] == 0).all()
    assert (np.delete(back, 5, 1) > 0).all()
    large = values > 1e-3 * values.max(axis=1, keepdims=True)
    assert (np.abs(back - values)[large] <= 0.1 * values[large]).all()


@pytest.mark.parametrize("fading", [1.0, 0.25])
def test_a_second_moment_follows_its_gradients_at_the_usual_beta2(fading: float):
    """After 3,000 updates, from the thousandth on with smaller gradients in half of each block."""
    chains = [
        optimizer.chain(Optimizer(learning_rate=1.0, beta2=0.999, clip_norm=None, moments=kept), 10_000)
        for kept in ("int8", "float32")
    ]
    parameters = jnp.zeros((64, 64))
    fades = jnp.where(jnp.arange(64) % 2 == 0, fading, 1.0)

    def update(number, states):
        gradients = jax.random.normal(jax.random.fold_in(jax.random.key(0), number), parameters.shape)
        gradients *= jnp.where(number > 1000, fades, 1.0)
        return tuple(chain.update(gradients, state, parameters)[1] for chain, state in zip(chains, states, strict=True))

    states = tuple(chain.init(parameters) for chain in chains)
    (eight, *_), (full, *_) = jax.jit(lambda: jax.lax.fori_loop(0, 3000, update, states))()
    ratios = np.asarray(moments.dequantize_square(eight.nu) / full.nu)
    for half in (ratios[:, ::2], ratios[:, 1::2]):
        assert np.mean(half) == pytest.approx(1, abs=0.03)
        assert np.quantile(half, 0.05) > 0.6 and np.quantile(half, 0.95) < 1.5  # the noise of chance


def test_blocks_of_zeros_are_zeros():
    quantized = moments.quantize(jnp.zeros((2, 128)))
    assert not np.asarray(moments.dequantize(quantized)).any()


def regression(settings: Optimizer, steps: int) -> list[float]:
    """Losses of a small network that learns a large one's answers."""
    keys = jax.random.split(jax.random.key(1), 5)
    inputs = jax.random.normal(keys[0], (256, 64))
    answers = jnp.tanh(inputs @ jax.random.normal(keys[1], (64, 64)) / 8) @ jax.random.normal(keys[2], (64, 1))
    start = {
        "in": jax.random.normal(keys[3], (64, 128)) / 8,
        "bias": jnp.zeros(128),
        "out": jax.random.normal(keys[4], (128, 1)) / 11,
    }
    chain = optimizer.chain(settings, steps)

    def loss(parameters):
        return jnp.mean((jnp.tanh(inputs @ parameters["in"] + parameters["bias"]) @ parameters["out"] - answers) ** 2)

    @jax.jit
    def step(parameters, state):
        value, gradients = jax.value_and_grad(loss)(parameters)
        changes, state = chain.update(gradients, state, parameters)
        return optax.apply_updates(parameters, changes), state, value

    parameters, state, losses = start, chain.init(start), []
    for _ in range(steps):
        parameters, state, value = step(parameters, state)
        losses.append(float(value))
    return losses


def test_eight_bits_learn_as_well_as_thirty_two():
    settings: dict[str, Any] = {"learning_rate": 1e-2, "warmup_ratio": 0.1, "beta2": 0.95, "clip_norm": None}
    full = regression(Optimizer(**settings), 120)
    eight = regression(Optimizer(**settings, moments="int8"), 120)
    assert full[-1] < 0.1 * full[0]
    np.testing.assert_allclose(eight[:10], full[:10], rtol=0.02)
    assert abs(np.mean(eight[-10:]) - np.mean(full[-10:])) < 0.02 * full[0]


def test_states_keep_their_tree_and_their_axes():
    """What is sharded by a parameter's name and axes finds both, and large leaves alone are quantized."""
    parameters = {"layers": {"q_proj": jnp.ones((2, 64, 128)), "norm": jnp.ones((2, 64))}}
    chain = optimizer.chain(Optimizer(learning_rate=1e-3, moments="int8"), 10)
    leaves = jax.tree_util.tree_leaves_with_path(jax.eval_shape(chain.init, parameters))
    shapes = {jax.tree_util.keystr(path)[-40:]: (leaf.shape, leaf.dtype) for path, leaf in leaves}
    found = sorted(value for name, value in shapes.items() if "q_proj" in name)
    assert [shape for shape, _ in found] == [(2, 64, 2), (2, 64, 2), (2, 64, 128), (2, 64, 128)]
    assert {dtype for name, (_, dtype) in shapes.items() if "codes" in name} == {jnp.dtype("int8"), jnp.dtype("uint8")}
    assert [dtype for name, (_, dtype) in shapes.items() if "norm" in name] == [jnp.dtype("float32")] * 2
