"""Laws: extend equals forward, over a row's own cache alone or after a beginning that all rows share."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bactrian.model import decoding, llama
from bactrian.model.attention import Places

CONFIG = llama.Config(
    vocab_size=40,
    hidden_size=24,
    intermediate_size=32,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=6,
    max_positions=64,
    rms_norm_eps=1e-5,
    rope_theta=10_000.0,
)
PECULIAR = dataclasses.replace(CONFIG, sliding_window=4, qk_norm=True, head_dim=8, qkv_bias=True, output_bias=True)

extend = jax.jit(decoding.extend, static_argnums=1)


def random_parameters(config: llama.Config) -> llama.Parameters:
    random = np.random.default_rng(1)
    shapes = jax.eval_shape(lambda: llama.init(config, jax.random.key(0)))
    return jax.tree.map(lambda leaf: jnp.asarray(random.normal(0, 0.3, leaf.shape), jnp.float32), shapes)


def read_at_once(config: llama.Config, parameters: llama.Parameters, tokens: np.ndarray) -> np.ndarray:
    zeros = np.zeros(tokens.shape, np.int32)
    places = Places(zeros + 1, zeros, zeros + np.arange(tokens.shape[1]))  # pyright: ignore[reportArgumentType]
    return np.asarray(llama.forward(parameters, config, jnp.asarray(tokens), places))


@pytest.mark.parametrize("config", [CONFIG, PECULIAR], ids=["plain", "peculiar"])
def test_extend_equals_forward(config: llama.Config):
    parameters = random_parameters(config)
    rows, length = 3, 14
    tokens = np.random.default_rng(2).integers(0, config.vocab_size, (rows, length))
    expected = read_at_once(config, parameters, tokens)

    laid_out = decoding.lay_out(parameters, jnp.float32)
    cache = decoding.empty_cache(config, rows, length + 8)
    lengths = np.zeros(rows, int)
    # Prefill in chunks of unequal lengths padded on the right, then token by token; a row that is done gets padding.
    for added in [(5, 2, 1), (1, 0, 4), *[(1, 1, 1)] * length]:
        chunk = np.full((rows, max(added)), 39)
        new = np.minimum(added, length - lengths)
        for row in range(rows):
            chunk[row, : new[row]] = tokens[row, lengths[row] : lengths[row] + new[row]]
        hidden_DN, cache = extend(laid_out, config, chunk, cache, lengths)
        hidden = np.asarray(hidden_DN).T.reshape(*chunk.shape, -1)
        for row in range(rows):
            wanted = expected[row, lengths[row] : lengths[row] + new[row]]
            np.testing.assert_allclose(hidden[row, : new[row]], wanted, atol=2e-5)
        lengths += new
    assert (lengths == length).all()


@pytest.mark.parametrize("config", [CONFIG, PECULIAR], ids=["plain", "peculiar"])
def test_a_cache_after_a_shared_beginning_is_a_cache_that_begins_with_it(config: llama.Config):
    parameters = random_parameters(config)
    tokens = np.random.default_rng(4).integers(0, 40, (2, 20))
    tokens[1, :9] = tokens[0, :9]
    expected = read_at_once(config, parameters, tokens)

    laid_out = decoding.lay_out(parameters, jnp.float32)
    padded = np.pad(tokens[:1, :9], ((0, 0), (0, 3)), constant_values=7)
    _, beginning = extend(laid_out, config, padded, decoding.empty_cache(config, 1, 12), np.zeros(1, int))
    before = decoding.share(beginning, jnp.int32(9))
    cache, lengths = decoding.empty_cache(config, 2, 16), np.zeros(2, int)
    for start, stop in ((9, 14), (14, 15), (15, 20)):
        hidden_DN, cache = extend(laid_out, config, tokens[:, start:stop], cache, lengths + start - 9, before)
        hidden = np.asarray(hidden_DN).T.reshape(2, stop - start, -1)
        np.testing.assert_allclose(hidden, expected[:, start:stop], atol=2e-5)


def test_logits_are_those_of_the_rows():
    parameters = random_parameters(CONFIG)
    hidden_DN = jnp.asarray(np.random.default_rng(0).normal(size=(24, 5)), jnp.float32)
    found = decoding.logits(decoding.lay_out(parameters, jnp.float32), hidden_DN)
    np.testing.assert_allclose(found, llama.logits(parameters, hidden_DN.T[None])[0], atol=1e-5)
