"""Laws: a packed score is the score of its path alone, whatever it shares a row, a context or a beginning with."""

import jax
import numpy as np
import pytest

from bactrian.data.questions import Request
from bactrian.model import llama
from bactrian.model.attention import Places
from bactrian.scorer import Scorer

CONFIG = llama.Config(
    vocab_size=50,
    hidden_size=32,
    intermediate_size=48,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=8,
    max_positions=2048,
    rms_norm_eps=1e-5,
    rope_theta=1e4,
)


@pytest.fixture(scope="module")
def parameters() -> llama.Parameters:
    return jax.tree.map(lambda weight: weight * 8, llama.init(CONFIG, jax.random.PRNGKey(0)))


@jax.jit
def _logprobs(parameters, tokens_1T):
    zeros = jax.numpy.zeros_like(tokens_1T)
    places = Places(zeros + 1, zeros, jax.numpy.arange(tokens_1T.shape[1])[None])
    hidden = llama.forward(parameters, CONFIG, tokens_1T, places)
    return jax.nn.log_softmax(llama.logits(parameters, hidden)[0])


def alone(parameters, context: np.ndarray, continuation: np.ndarray) -> tuple[float, bool]:
    path = np.concatenate([context, continuation])
    padded = np.zeros((1, 512), np.int32)
    padded[0, : len(path)] = path
    rows = np.asarray(_logprobs(parameters, padded))[len(context) - 1 : len(path) - 1]
    values = rows[np.arange(len(continuation)), continuation]
    return float(values.sum()), bool((rows.argmax(1) == continuation).all())


@pytest.mark.parametrize("at_once", [256, 10**5], ids=["shared", "apart"])
def test_scores_are_those_of_each_path_alone(parameters, at_once):
    scorer = Scorer(CONFIG, parameters)
    scorer._at_once = at_once
    random = np.random.default_rng(0)
    beginning = random.integers(0, 50, 150)
    requests = []
    for index in range(12):
        context = np.concatenate([beginning[: 150 * (index % 2)], random.integers(0, 50, random.integers(1, 80))])
        lengths = random.integers(1, 8, 4)
        own = {tuple(random.integers(0, 50, length).tolist()) for length in lengths}
        requests.append(Request(context.astype(np.int32), tuple(np.array(each, np.int32) for each in sorted(own))))
    found = scorer.score(requests)
    for request, scores in zip(requests, found, strict=True):
        for continuation, score in zip(request.continuations, scores, strict=True):
            logprob, is_greedy = alone(parameters, request.context, continuation)
            assert score.logprob == pytest.approx(logprob, abs=2e-3, rel=1e-4)
            assert score.is_greedy == is_greedy


def test_the_likeliest_continuation_is_greedy(parameters):
    context = np.arange(1, 9, dtype=np.int32)
    likeliest = []
    for _ in range(3):
        path = np.concatenate([context, np.array(likeliest, np.int32)])
        padded = np.zeros((1, 512), np.int32)
        padded[0, : len(path)] = path
        likeliest.append(int(np.asarray(_logprobs(parameters, padded))[len(path) - 1].argmax()))
    other = [*likeliest[:2], (likeliest[2] + 1) % 50]
    request = Request(context, (np.array(likeliest, np.int32), np.array(other, np.int32)))
    [[best, worse]] = Scorer(CONFIG, parameters).score([request])
    assert best.is_greedy and not worse.is_greedy
    assert best.logprob > worse.logprob


def test_nothing_to_score(parameters):
    assert Scorer(CONFIG, parameters).score([]) == []
