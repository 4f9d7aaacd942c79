"""Laws: answers are log-softmax and a gather; a prefix read once is as good as one in every row.

Shapes: B rows, T places, Q questions, A tokens asked about, D hidden width, V vocabulary, P prefix places.
"""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bactrian.model import likelihood, llama
from bactrian.model.attention import Places
from bactrian.model.likelihood import Questions

CONFIG = llama.Config(
    vocab_size=61,
    hidden_size=32,
    intermediate_size=48,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=8,
    max_positions=256,
    rms_norm_eps=1e-5,
    rope_theta=1e4,
)
COMPUTE = llama.Compute()
WINDOWED = replace(CONFIG, sliding_window=7)


def parameters(config: llama.Config) -> llama.Parameters:
    return jax.tree.map(lambda weight: weight * 4, llama.init(config, jax.random.PRNGKey(1)))


@pytest.mark.parametrize("chunk", [None, 3, 64])
def test_answers_are_log_softmax_and_a_gather(chunk):
    keys = jax.random.split(jax.random.key(0), 3)
    hidden_ND = 2 * jax.random.normal(keys[0], (20, 8))
    weight_VD = jax.random.normal(keys[1], (61, 8))
    places_Q = jnp.array([3, 19, 0, 3, 7, 7, 1, 2])
    tokens_QA = jax.random.randint(keys[2], (8, 2), 0, 61)
    logits_QV = hidden_ND[places_Q] @ weight_VD.T
    tokens_QA = tokens_QA.at[1, 0].set(logits_QV[1].argmax())
    found = likelihood.read(hidden_ND, weight_VD, Questions(places_Q, tokens_QA, jnp.int32(6)), chunk)
    expected = jnp.take_along_axis(jax.nn.log_softmax(logits_QV), tokens_QA, axis=1)
    np.testing.assert_allclose(found.logprobs[:6], expected[:6], atol=1e-5)
    np.testing.assert_array_equal(found.likeliest[:6], (tokens_QA == logits_QV.argmax(1)[:, None])[:6])


def branching(after: int) -> tuple[np.ndarray, Places]:
    """A row of two segments, the first with two branches; positions count from `after`."""
    tokens = np.random.default_rng(2).integers(0, 61, (1, 24))
    segments = np.array([[1] * 14 + [2] * 8 + [0] * 2])
    branches = np.array([[0] * 6 + [1] * 4 + [2] * 4 + [0] * 10])
    positions = np.array([[*range(10), *range(6, 10), *range(8), 0, 0]]) + after
    return tokens, Places(jnp.asarray(segments), jnp.asarray(branches), jnp.asarray(positions))


@pytest.mark.parametrize("config", [CONFIG, WINDOWED], ids=["full", "windowed"])
@pytest.mark.parametrize("padding", [0, 5, 80])
def test_rows_after_a_prefix_are_rows_that_begin_with_it(config, padding):
    weights = parameters(config)
    beginning = np.random.default_rng(3).integers(0, 61, 11)
    tokens, places = branching(11)
    padded = np.pad(beginning, (0, padding), constant_values=9)
    prefix = llama.read_prefix(weights, config, jnp.array(padded), jnp.int32(11))
    found = llama.forward(weights, config, jnp.array(tokens), places, COMPUTE, prefix)
    for segment, branch in ((1, 1), (1, 2), (2, 0)):
        own = (places.segments[0] == segment) & np.isin(places.branches[0], [0, branch])
        path = np.concatenate([beginning, tokens[0, own]])[None]
        zeros = jnp.zeros(path.shape, int)
        alone = Places(zeros + 1, zeros, jnp.arange(path.shape[1])[None])
        expected = llama.forward(weights, config, jnp.array(path), alone)
        np.testing.assert_allclose(found[0, own], expected[0, 11:], atol=2e-4)
