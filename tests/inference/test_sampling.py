import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bactrian.inference import sampling


def _logits(ties: bool) -> np.ndarray:
    values = np.random.default_rng(0).normal(size=(40, 61)).astype(np.float32) * 3
    return np.round(values) if ties else values  # rounding makes many equal, zeros of both signs among them


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("top_k", [1, 2, 7, 60, 61, 500])
def test_top_k_keeps_what_transformers_keeps(top_k, ties):
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    expected = transformers.TopKLogitsWarper(top_k)(torch.zeros(1, 1), torch.tensor(_logits(ties))).numpy()
    np.testing.assert_array_equal(sampling.keep_top_k(jnp.array(_logits(ties)), top_k), expected)


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("top_p", [0.01, 0.3, 0.5, 0.9, 0.999])
def test_top_p_keeps_what_transformers_keeps(top_p, ties):
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    expected = transformers.TopPLogitsWarper(top_p)(torch.zeros(1, 1), torch.tensor(_logits(ties))).numpy()
    kept = np.asarray(sampling.keep_top_p(jnp.array(_logits(ties)), top_p))
    if ties:  # torch's sort is not stable: which of equal logits stay is its accident, how many is not
        kept, expected = np.sort(kept), np.sort(expected)
    np.testing.assert_array_equal(kept, expected)


def test_of_equal_logits_at_the_edge_the_higher_ids_stay():
    kept = sampling.keep_top_p(jnp.log(jnp.array([[0.2, 0.2, 0.2, 0.4]])), 0.7)
    np.testing.assert_array_equal(np.isfinite(kept), [[False, True, True, True]])


def test_the_filters_in_turn_are_transformers_warpers_in_turn():
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    scores = torch.tensor(_logits(False))
    for warper in (
        transformers.TemperatureLogitsWarper(0.7),
        transformers.TopKLogitsWarper(9),
        transformers.TopPLogitsWarper(0.8),
    ):
        scores = warper(torch.zeros(1, 1), scores)
    ours = sampling.keep_top_p(sampling.keep_top_k(jnp.array(_logits(False)) / 0.7, 9), 0.8)
    np.testing.assert_array_equal(np.isfinite(ours), torch.isfinite(scores).numpy())


def test_zero_k_and_whole_p_keep_all():
    logits = jnp.array(_logits(False))
    np.testing.assert_array_equal(sampling.keep_top_p(sampling.keep_top_k(logits, 0), 1.0), logits)


def test_draws_follow_the_filtered_distribution():
    logits_V = jnp.log(jnp.array([0.4, 0.3, 0.2, 0.1]))
    keys_B = jax.random.split(jax.random.PRNGKey(0), 4000)
    knobs = sampling.Knobs(jnp.float32(1), jnp.int32(3), jnp.float32(0.75))
    choose = jax.jit(sampling.choose, static_argnames="mode")
    drawn = choose(jnp.tile(logits_V, (4000, 1)), keys_B, knobs, mode="filtered")
    # Of the three likeliest, 4/9 and 3/9 already reach 3/4.
    shares = np.bincount(np.asarray(drawn), minlength=4) / 4000
    np.testing.assert_allclose(shares, [4 / 7, 3 / 7, 0, 0], atol=0.03)
