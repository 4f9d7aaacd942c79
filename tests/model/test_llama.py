"""The model's laws: logits equal those of transformers, a token sees what the rule lets it see,
the blocked way of attention equals the dense one, and what the backward pass computes again changes nothing.

Shapes: B rows, T places, H query heads, G key/value heads, K head width.
"""

import dataclasses
from functools import partial
from itertools import pairwise
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers

from bactrian.data import tokenizer as tokenizers
from bactrian.model import attention, llama, weights
from bactrian.model.attention import Places

TOLERANCE = 2e-4  # largest difference of a logit, float32; never relaxed

LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500_000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
# Deviations far above the usual 0.02: with small weights a wrong rotation or mask would hardly show in the logits.
SMALL = {
    "vocab_size": 97,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "initializer_range": 0.3,
}
MODELS = {
    "llama, one key/value head": transformers.LlamaConfig(**{**SMALL, "num_key_value_heads": 1}),
    "llama, a key/value head for three": transformers.LlamaConfig(**SMALL, tie_word_embeddings=True),
    "llama, a key/value head for each": transformers.LlamaConfig(**{**SMALL, "num_key_value_heads": 6}),
    "llama, biases and wide heads": transformers.LlamaConfig(**SMALL, attention_bias=True, head_dim=16),
    "llama 3, stretched positions": transformers.LlamaConfig(**SMALL, rope_parameters=LLAMA3),
    "mistral, window": transformers.MistralConfig(**SMALL, sliding_window=7),
    "mistral, no window": transformers.MistralConfig(**SMALL, sliding_window=None),
    "qwen 2": transformers.Qwen2Config(**SMALL, tie_word_embeddings=True),
    "qwen 2, window": transformers.Qwen2Config(**SMALL, use_sliding_window=True, sliding_window=5, max_window_layers=0),
    "qwen 3": transformers.Qwen3Config(**SMALL, head_dim=16),
}
SMALL_LLAMA = llama.Config(
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


forward = jax.jit(llama.forward, static_argnums=1)


def random_model(config: transformers.PretrainedConfig):
    """A model of transformers with random numbers in every parameter, norms and biases too."""
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1:
                parameter.copy_(torch.randn_like(parameter) * 0.3 + (0.0 if "bias" in name else 1.0))
    return model


def plain_places(tokens: np.ndarray) -> Places:
    """One document per row."""
    ones = np.ones(tokens.shape, np.int32)
    return Places(*map(jnp.asarray, (ones, 0 * ones, np.cumsum(ones, axis=1, dtype=np.int32) - 1)))


def random_parameters(config: llama.Config) -> llama.Parameters:
    random = np.random.default_rng(1)
    shapes = jax.eval_shape(lambda: llama.init(config, jax.random.key(0)))
    return jax.tree.map(lambda leaf: jnp.asarray(random.normal(0, 0.3, leaf.shape), jnp.float32), shapes)


def our_logits(parameters: llama.Parameters, config: llama.Config, tokens: np.ndarray) -> np.ndarray:
    return np.asarray(llama.logits(parameters, forward(parameters, config, tokens, plain_places(tokens))))


def their_logits(model, tokens: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        return model(torch.from_numpy(np.array(tokens, np.int64))).logits.numpy()


@pytest.mark.parametrize("name", MODELS)
def test_logits_equal_those_of_transformers_and_both_read_what_the_other_wrote(name: str, tmp_path: Path):
    model = random_model(MODELS[name])
    model.save_pretrained(tmp_path / "theirs")
    config, parameters = weights.read_config(tmp_path / "theirs"), weights.load(tmp_path / "theirs")
    tokens = np.random.default_rng(0).integers(0, SMALL["vocab_size"], (2, 70))
    ours, theirs = our_logits(parameters, config, tokens), their_logits(model, tokens)
    assert np.abs(theirs).max() > 1
    assert np.abs(ours - theirs).max() <= TOLERANCE

    weights.save(tmp_path / "ours", config, parameters, "float32", eos_ids=(2,), bos_id=1)
    assert weights.read_config(tmp_path / "ours") == config
    back = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "ours", attn_implementation="eager")
    expected = model.state_dict()
    assert {key: value.dtype for key, value in back.state_dict().items()} == dict.fromkeys(expected, torch.float32)
    assert all(torch.equal(value, expected[key]) for key, value in back.state_dict().items())
    assert np.array_equal(their_logits(back, tokens), theirs)


def test_a_real_model_survives_export_and_its_logits_equal_those_of_transformers(smollm2: Path, tmp_path: Path):
    config, parameters = weights.read_config(smollm2), weights.load(smollm2)
    weights.save(tmp_path, config, parameters, "float32", eos_ids=(2,), bos_id=1)
    again = weights.load(tmp_path)
    assert weights.read_config(tmp_path) == config
    assert jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), parameters, again))

    text = "We hold these truths to be self-evident, that all men are created equal; and 7 x 8 = 56."
    tokens = np.asarray(tokenizers.load(smollm2).encode_text(text, add_bos=False))[None]
    theirs = their_logits(transformers.AutoModelForCausalLM.from_pretrained(tmp_path), tokens)
    assert np.abs(our_logits(again, config, tokens) - theirs).max() <= TOLERANCE
    # The model has learnt such texts: a layout that is wrong in the same way on both sides would not predict them.
    assert (theirs[0, :-1].argmax(-1) == tokens[0, 1:]).mean() > 0.5


# Two packed preference pairs and padding: each pair has a prompt and two branches that start with their own copy of
# the prompt's last token.
SEGMENTS = [1, 1, 1, 1, 1, 1, 1, 1, 2, 2, 2, 2, 2, 2, 0, 0]
BRANCHES = [0, 0, 0, 1, 1, 2, 2, 2, 0, 1, 1, 1, 2, 2, 0, 0]
POSITIONS = [0, 1, 2, 3, 4, 3, 4, 5, 0, 1, 2, 3, 1, 2, 0, 1]


def is_visible(query: int, key: int, window: int | None) -> bool:
    if SEGMENTS[query] == 0:
        return query == key  # padding sees nothing; what it depends on is itself, past the attention
    if SEGMENTS[query] != SEGMENTS[key] or key > query or BRANCHES[key] not in (0, BRANCHES[query]):
        return False
    return window is None or POSITIONS[query] - POSITIONS[key] < window


@pytest.mark.parametrize(("implementation", "window"), [("dense", None), ("blocked", None), ("blocked", 2)])
def test_a_token_depends_on_what_the_rule_lets_it_see_and_on_nothing_else(
    implementation: attention.Implementation, window: int | None, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(attention.blocks, "_BLOCK", 5)  # three blocks and a rest
    # Through several layers a window reaches further than its width; without one the rule is the same at any depth.
    config = dataclasses.replace(SMALL_LLAMA, sliding_window=window, num_layers=1 if window else 2)
    parameters = random_parameters(config)
    length = len(SEGMENTS)
    tokens = jnp.arange(length)[None]  # each place has a row of the embedding to itself
    places = Places(*(jnp.asarray([field]) for field in (SEGMENTS, BRANCHES, POSITIONS)))

    def sums(embedding):
        compute = llama.Compute(attention=implementation)
        hidden = llama.forward({**parameters, "embedding": embedding}, config, tokens, places, compute)
        return (hidden[0] * jnp.arange(1, config.hidden_size + 1)).sum(-1)

    gradients = np.asarray(jax.jit(jax.jacrev(sums))(parameters["embedding"]))[:, :length]
    depends = (gradients != 0).any(-1)
    expected = [[is_visible(query, key, window) for key in range(length)] for query in range(length)]
    assert np.array_equal(depends, np.array(expected))


@pytest.mark.parametrize("window", [None, 40])
def test_blocked_attention_equals_dense(window: int | None):
    length = 300
    heads, groups, width = 4, 2, 8
    random = np.random.default_rng(3)
    queries_BTHK, keys_BTGK, values_BTGK, cotangent = (
        random.normal(size=(2, length, count, width)).astype(np.float32) for count in (heads, groups, groups, heads)
    )
    segments, branches, positions = np.zeros((3, 2, length), np.int32)
    for row, cuts in enumerate([(0, 110, 250, 290), (0, 31, 200, length)]):
        for number, (start, stop) in enumerate(pairwise(cuts), 1):
            shared = (stop - start) // 2
            branch = shared + (stop - start) // 4
            segments[row, start:stop] = number
            branches[row, start + shared : stop] = 1
            branches[row, start + branch : stop] = 2
            positions[row, start:stop] = np.arange(stop - start)
            positions[row, start + branch : stop] -= branch - shared
    places = Places(*map(jnp.asarray, (segments, branches, positions)))

    @partial(jax.jit, static_argnums=0)
    def run(implementation: attention.Implementation):
        attend = attention.over(places, window, implementation)
        output, pull = jax.vjp(attend, queries_BTHK, keys_BTGK, values_BTGK)
        return output, *pull(jnp.asarray(cotangent))

    for blocked, dense in zip(jax.device_get(run("blocked")), jax.device_get(run("dense")), strict=True):
        assert np.linalg.norm(blocked - dense) <= 1e-5 * np.linalg.norm(dense)
        assert np.abs(blocked - dense).max() <= 1e-5 * np.abs(dense).max()


@pytest.mark.parametrize("implementation", ["dense", "blocked"])
def test_what_is_computed_again_changes_no_gradient(implementation: attention.Implementation):
    """And attention, whose loops are the only ones of unknown length, is computed again where nothing is kept alone."""
    parameters = random_parameters(SMALL_LLAMA)
    tokens = np.random.default_rng(2).integers(0, SMALL_LLAMA.vocab_size, (2, 24))
    places = plain_places(tokens)

    def gradient(remat: llama.Remat):
        compute = llama.Compute("float32", remat, implementation)

        def loss(parameters: llama.Parameters) -> jax.Array:
            return jnp.sum(llama.forward(parameters, SMALL_LLAMA, jnp.asarray(tokens), places, compute) ** 2)

        return jax.grad(loss)

    def loops(remat: llama.Remat) -> int:
        return str(jax.make_jaxpr(gradient(remat))(parameters)).count(" while[")

    plain = jax.jit(gradient("none"))(parameters)
    for remat in ("dots", "full"):
        for found, expected in zip(
            jax.tree.leaves(jax.jit(gradient(remat))(parameters)), jax.tree.leaves(plain), strict=True
        ):
            assert np.linalg.norm(found - expected) <= 1e-5 * np.linalg.norm(expected)
    if implementation == "blocked":
        assert loops("dots") == loops("none") < loops("full")
