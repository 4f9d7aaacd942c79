"""Laws: `selected` is log-softmax and a gather, forward and backward, `total` is its weighted sum, and neither ever
holds the logits of a whole row.

Shapes: B rows, T places, D hidden width, V vocabulary, S segments in a row, K branches in a segment.
"""

import math
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import ClosedJaxpr, Jaxpr

from bactrian.model import llama, logprobs
from bactrian.model.attention import Places

ROWS, LENGTH, WIDTH, VOCABULARY = 3, 13, 8, 41


def inputs(dtype=jnp.float32):
    keys = jax.random.split(jax.random.key(0), 4)
    hidden = 2 * jax.random.normal(keys[0], (ROWS, LENGTH, WIDTH), dtype)
    weight = jax.random.normal(keys[1], (VOCABULARY, WIDTH), dtype)
    targets = jax.random.randint(keys[2], (ROWS, LENGTH), 0, VOCABULARY)
    return hidden, weight, targets, jax.random.normal(keys[3], (ROWS, LENGTH))


def plain(hidden_BTD, weight_VD, targets_BT, learnt_BT):
    wide = jnp.einsum("btd,vd->btv", hidden_BTD.astype(jnp.float32), weight_VD.astype(jnp.float32))
    chosen = jnp.take_along_axis(jax.nn.log_softmax(wide), targets_BT[:, :, None], axis=2)[:, :, 0]
    return jnp.where(learnt_BT, chosen, 0.0)


def masks() -> dict[str, np.ndarray]:
    random = np.random.default_rng(0).random((ROWS, LENGTH))
    uneven = np.arange(LENGTH) < np.array([[0], [1], [LENGTH]])
    return {
        "none": random < 0,
        "all": random < 2,
        "some": random < 0.4,
        "uneven": uneven,
        "last": np.arange(LENGTH) == np.full((ROWS, 1), LENGTH - 1),
    }


def run(function, hidden, weight, targets, learnt, cotangent):
    values, pull = jax.vjp(lambda hidden, weight: function(hidden, weight, targets, learnt), hidden, weight)
    return values, *pull(cotangent)


@pytest.mark.parametrize("mask", masks())
@pytest.mark.parametrize("chunk", [1, 4, 13, None])
def test_it_is_log_softmax_and_a_gather_forward_and_backward(mask: str, chunk: int | None):
    hidden, weight, targets, cotangent = inputs()
    learnt = jnp.asarray(masks()[mask])

    def ours(*arguments):
        return logprobs.selected(*arguments, chunk=chunk)

    found = jax.jit(lambda: run(ours, hidden, weight, targets, learnt, cotangent))()
    expected = run(plain, hidden, weight, targets, learnt, cotangent)
    assert found[0].dtype == jnp.float32
    for ours_, plain_ in zip(found, expected, strict=True):
        np.testing.assert_allclose(ours_, plain_, rtol=1e-5, atol=1e-5)
    for gradient in (found[0], found[1]):  # what is not learnt is zero, exactly
        assert not np.asarray(gradient)[~masks()[mask]].any()


@pytest.mark.parametrize("mask", masks())
@pytest.mark.parametrize("chunk", [1, 4, None])
def test_the_total_is_the_weighted_sum_forward_and_backward(mask: str, chunk: int | None):
    hidden, weight, targets, scales = inputs()
    weights = jnp.where(masks()[mask], scales, 0.0)

    def ours(hidden, weight):
        return 3.0 * logprobs.total(hidden, weight, targets, weights, chunk=chunk)

    def expected(hidden, weight):
        return 3.0 * jnp.sum(plain(hidden, weight, targets, weights != 0) * weights)

    for function in (ours, jax.jit(ours)):
        np.testing.assert_allclose(function(hidden, weight), expected(hidden, weight), rtol=1e-5, atol=1e-5)
    found, wanted = (jax.value_and_grad(function, (0, 1))(hidden, weight) for function in (ours, expected))
    for ours_, plain_ in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(ours_, plain_, rtol=1e-5, atol=1e-4)


def test_the_total_makes_the_logits_once():
    hidden, weight, targets, scales = inputs()

    def products(function) -> int:
        """Products with an axis of the vocabulary's length, in the program of the value and its gradient."""
        program = jax.make_jaxpr(jax.value_and_grad(function, (0, 1)))(hidden, weight).jaxpr
        equations = [equation for jaxpr in jaxprs(program) for equation in jaxpr.eqns]
        sides = [(*each.invars, *each.outvars) for each in equations if each.primitive.name == "dot_general"]
        return sum(any(VOCABULARY in getattr(side.aval, "shape", ()) for side in found) for found in sides)

    assert products(lambda hidden, weight: logprobs.total(hidden, weight, targets, scales, chunk=4)) == 3
    learnt = scales != 0

    def by_place(hidden, weight):
        return jnp.sum(logprobs.selected(hidden, weight, targets, learnt, chunk=4) * scales)

    assert products(by_place) == 4


def test_bfloat16_hidden_states_give_float32_values_to_the_inputs_precision():
    hidden, weight, targets, cotangent = inputs(jnp.bfloat16)
    learnt = jnp.asarray(masks()["some"])
    found = run(lambda *given: logprobs.selected(*given, chunk=4), hidden, weight, targets, learnt, cotangent)
    expected = run(plain, hidden, weight, targets, learnt, cotangent)
    assert [each.dtype for each in found] == [jnp.float32, jnp.bfloat16, jnp.bfloat16]
    # Products are summed in float32, so the values are exact for the inputs; gradients are rounded to 8 bits.
    np.testing.assert_allclose(found[0], expected[0], rtol=1e-5, atol=1e-5)
    for ours, exact in zip(found[1:], expected[1:], strict=True):
        difference = jnp.linalg.norm(ours.astype(jnp.float32) - exact.astype(jnp.float32))
        assert difference <= 1e-2 * jnp.linalg.norm(exact.astype(jnp.float32))


def test_probabilities_far_apart_stay_finite():
    hidden, weight, targets, cotangent = inputs()
    learnt = jnp.asarray(masks()["all"])
    found = run(logprobs.selected, 1e4 * hidden, weight, targets, learnt, cotangent)
    assert all(np.isfinite(each).all() for each in found) and (np.asarray(found[0]) <= 0).all()


def jaxprs(jaxpr: Jaxpr) -> Iterator[Jaxpr]:
    """A program and all the programs inside it."""
    yield jaxpr
    for equation in jaxpr.eqns:
        for value in jax.tree.leaves(
            list(equation.params.values()), is_leaf=lambda v: isinstance(v, ClosedJaxpr | Jaxpr)
        ):
            if isinstance(value, ClosedJaxpr | Jaxpr):
                yield from jaxprs(value.jaxpr if isinstance(value, ClosedJaxpr) else value)


def largest(function, *arguments) -> int:
    """How many numbers the largest array with an axis of the vocabulary's length has, but for the weight's own."""
    shapes = [
        getattr(variable.aval, "shape", ())
        for jaxpr in jaxprs(jax.make_jaxpr(function)(*arguments).jaxpr)
        for equation in jaxpr.eqns
        for variable in equation.outvars
    ]
    weights = [(VOCABULARY, WIDTH), (WIDTH, VOCABULARY)]
    return max(math.prod(shape) for shape in shapes if VOCABULARY in shape and shape not in weights)


def test_the_logits_of_a_whole_row_are_never_there(monkeypatch: pytest.MonkeyPatch):
    hidden, weight, targets, cotangent = inputs()
    learnt = jnp.asarray(masks()["all"])
    whole = ROWS * LENGTH * VOCABULARY

    def both(function):
        return lambda hidden, weight: run(function, hidden, weight, targets, learnt, cotangent)

    assert largest(both(plain), hidden, weight) == whole
    for chunk in (1, 4, 12):
        found = largest(both(lambda *given, chunk=chunk: logprobs.selected(*given, chunk=chunk)), hidden, weight)
        assert found == ROWS * chunk * VOCABULARY < whole
    # By default so many places at once as hold the bytes that may be held.
    monkeypatch.setattr(logprobs, "_CHUNK_BYTES", 4 * ROWS * 5 * VOCABULARY)
    assert largest(both(logprobs.selected), hidden, weight) == ROWS * 5 * VOCABULARY


def test_the_whole_model_s_gradient_never_holds_them_either(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(logprobs, "_CHUNK_BYTES", 4 * ROWS * 2 * VOCABULARY)
    config = llama.Config(VOCABULARY, WIDTH, 12, 2, 2, 1, 4, 64, 1e-5, 10_000.0)
    parameters = jax.eval_shape(lambda: llama.init(config, jax.random.key(0)))
    _, _, targets, _ = inputs()
    ones = jnp.ones((ROWS, LENGTH), jnp.int32)
    places = Places(ones, 0 * ones, jnp.broadcast_to(jnp.arange(LENGTH), ones.shape))

    given = (config, llama.Compute(), targets, places, targets)

    def loss(parameters):
        return logprobs.of_targets(parameters, *given, ones > 0).sum()

    def total(parameters):
        return logprobs.total_of_targets(parameters, *given, ones)

    for function in (loss, total):
        assert largest(jax.grad(function), parameters) == ROWS * 2 * VOCABULARY


def test_sums_over_branches_count_what_is_shared_in_each():
    values = jnp.asarray([[1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0]])
    segments = jnp.asarray([[1, 1, 1, 1, 1, 2, 2, 0, 0]])
    branches = jnp.asarray([[0, 0, 1, 2, 2, 1, 3, 0, 1]])
    sums = logprobs.branch_sums(values, Places(segments, branches, 0 * segments), segments=3, branches=3)
    assert sums.tolist() == [[[7.0, 27.0, 3.0], [32.0, 0.0, 64.0], [0.0, 0.0, 0.0]]]
