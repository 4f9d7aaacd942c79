"""Laws: fresh adapters change nothing, merged ones compute the same, PEFT reads them and agrees on both passes."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from bactrian.model import llama, lora, weights
from bactrian.model.attention import Places
from bactrian.model.llama import Lora

ALL = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
TOKENS = np.random.default_rng(0).integers(0, 60, (2, 24)).astype(np.int32)
RANDOM = jax.random.key(3)


class Twin(NamedTuple):
    """A model of `transformers` and ours, in its folder."""

    model: Any
    folder: Path
    config: llama.Config
    parameters: llama.Parameters


@pytest.fixture
def twin(tmp_path: Path) -> Twin:
    import torch
    import transformers

    torch.manual_seed(0)
    settings = transformers.LlamaConfig(
        vocab_size=60,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.2,
        attention_bias=True,
    )
    model = transformers.LlamaForCausalLM(settings).eval()
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter, std=0.2)
    model.save_pretrained(tmp_path / "base")
    return Twin(model, tmp_path / "base", weights.read_config(tmp_path / "base"), weights.load(tmp_path / "base"))


def logits(config: llama.Config, parameters: llama.Parameters) -> jax.Array:
    places = Places(*(jnp.ones_like(TOKENS), jnp.zeros_like(TOKENS), jnp.arange(TOKENS.shape[1]) + 0 * TOKENS))
    return llama.logits(parameters, llama.forward(parameters, config, jnp.asarray(TOKENS), places))


def adapted(twin: Twin, targets: tuple[str, ...]) -> tuple[llama.Config, llama.Parameters]:
    """The twin's model with adapters that do something: every B is random too."""
    config = replace(twin.config, lora=Lora(3, 12.0, targets))
    adapters = lora.start(config, RANDOM)["adapters"]
    adapters = {
        name: 0.2 * jax.random.normal(jax.random.fold_in(RANDOM, n), value.shape) if name.endswith("_b") else value
        for n, (name, value) in enumerate(adapters.items())
    }
    return config, {**twin.parameters, "adapters": adapters}


def in_peft(twin: Twin, folder: Path, **settings: Any) -> Any:
    import peft

    return peft.PeftModel.from_pretrained(twin.model, str(folder), **settings)


def test_fresh_adapters_change_nothing(twin: Twin):
    config = replace(twin.config, lora=Lora(4, 8.0, ALL))
    adapters = lora.start(config, RANDOM)
    np.testing.assert_array_equal(logits(config, {**twin.parameters, **adapters}), logits(twin.config, twin.parameters))
    leaves = adapters["adapters"]
    assert len(leaves) == 14 and all(value.dtype == jnp.float32 for value in leaves.values())
    # As PEFT draws them: uniform within one over the root of a matrix's inputs.
    for name, inputs in (("q_proj_a", 32), ("down_proj_a", 48)):
        assert 0.9 * inputs**-0.5 < float(jnp.abs(leaves[name]).max()) <= inputs**-0.5


@pytest.mark.parametrize("targets", [ALL, ("q_proj", "v_proj"), ("down_proj",)])
def test_peft_reads_them_and_computes_the_same(twin: Twin, targets: tuple[str, ...], tmp_path: Path):
    import torch

    config, parameters = adapted(twin, targets)
    weights.save_adapters(tmp_path / "adapter", config, parameters, str(twin.folder))
    with torch.no_grad():
        expected = in_peft(twin, tmp_path / "adapter")(torch.tensor(TOKENS, dtype=torch.long)).logits.numpy()
    found = np.asarray(logits(config, parameters))
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
    assert np.abs(found - logits(twin.config, twin.parameters)).max() > 0.5
    merged = lora.merged(config, jax.tree.map(jnp.copy, parameters), RANDOM)
    assert set(merged) == set(twin.parameters)
    np.testing.assert_allclose(logits(twin.config, merged), expected, rtol=1e-4, atol=1e-4)
    untouched = [name for name in twin.parameters["layers"] if name not in targets]
    for name in untouched:
        np.testing.assert_array_equal(merged["layers"][name], twin.parameters["layers"][name])


def test_gradients_are_those_of_peft(twin: Twin, tmp_path: Path):
    import torch

    config, parameters = adapted(twin, ALL)
    weights.save_adapters(tmp_path / "adapter", config, parameters, str(twin.folder))
    model = in_peft(twin, tmp_path / "adapter", is_trainable=True)
    tokens = torch.tensor(TOKENS, dtype=torch.long)
    model(tokens, labels=tokens).loss.backward()
    expected = {name: value.grad.numpy() for name, value in model.named_parameters() if value.requires_grad}

    def loss(adapters: llama.Parameters) -> jax.Array:
        scores = jax.nn.log_softmax(logits(config, {**parameters, "adapters": adapters})[:, :-1])
        return -jnp.mean(jnp.take_along_axis(scores, jnp.asarray(TOKENS)[:, 1:, None], axis=2))

    found = jax.grad(loss)(parameters["adapters"])
    assert len(expected) == config.num_layers * len(found)
    for name, gradient in expected.items():
        _, layer, rest = name.split(".layers.")[0], *name.split(".layers.")[1].split(".", 1)
        module, side = rest.split(".")[1], rest.split(".")[2][-1].lower()
        own = np.asarray(found[f"{module}_{side}"])[int(layer)].T
        assert np.linalg.norm(own - gradient) <= 1e-5 * np.linalg.norm(gradient), name


def test_a_model_in_bfloat16_stays_so(twin: Twin):
    config, parameters = adapted(twin, ("up_proj",))
    kept = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), twin.parameters)
    merged = lora.merged(config, {**kept, "adapters": parameters["adapters"]}, RANDOM)
    assert {leaf.dtype for leaf in jax.tree.leaves(merged)} == {jnp.dtype(jnp.bfloat16)}
    a, b = (np.asarray(parameters["adapters"][f"up_proj_{side}"], np.float64) for side in "ab")
    exact = np.float64(twin.parameters["layers"]["up_proj"].astype(jnp.bfloat16)) + 4.0 * (a @ b)
    found = np.float64(merged["layers"]["up_proj"])
    np.testing.assert_allclose(found, exact, rtol=2**-7)  # one of the two neighbours


def test_what_little_adapters_add_is_not_lost_in_bfloat16(twin: Twin):
    """A twentieth of the distance to the next bfloat16: most of it would be gone in the nearest."""
    config, parameters = adapted(twin, ("up_proj",))
    weights_LDF = np.array(jnp.asarray(twin.parameters["layers"]["up_proj"], jnp.bfloat16))
    adapters = {name: value * 0.02 for name, value in parameters["adapters"].items()}
    added = 4.0 * np.asarray(adapters["up_proj_a"], np.float64) @ np.asarray(adapters["up_proj_b"], np.float64)
    layers = {**twin.parameters["layers"], "up_proj": jnp.asarray(weights_LDF)}
    draws = []
    for key in jax.random.split(RANDOM, 8):
        given = {**twin.parameters, "layers": jax.tree.map(jnp.copy, layers), "adapters": adapters}
        merged = lora.merged(config, given, key)["layers"]["up_proj"]
        draws.append(np.float64(merged) - np.float64(weights_LDF))

    def kept(change: np.ndarray) -> float:
        return float(np.sum(change * added) / np.sum(added * added))

    assert kept(np.mean(draws, axis=0)) == pytest.approx(1, abs=0.1)
    nearest = (np.float32(weights_LDF) + np.float32(added)).astype(ml_dtypes.bfloat16)
    assert kept(np.asarray(nearest, np.float64) - np.asarray(weights_LDF, np.float64)) < 0.5
    assert not np.array_equal(draws[0], draws[1])


def test_files_are_whole_or_not_there(twin: Twin, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    config, parameters = adapted(twin, ALL)

    def broken(path: Path, *_: Any) -> None:
        path.write_bytes(b"half")
        raise OSError("the disk is gone")

    write: Callable[..., None] = weights.safetensors_file.write
    monkeypatch.setattr(weights.safetensors_file, "write", broken)
    with pytest.raises(OSError):
        weights.save_adapters(tmp_path / "adapter", config, parameters, "base")
    assert list(tmp_path.iterdir()) == [twin.folder]
    monkeypatch.setattr(weights.safetensors_file, "write", write)
    weights.save_adapters(tmp_path / "adapter", config, parameters, "base")
    names = {file.name for file in (tmp_path / "adapter").iterdir()}
    assert names == {"adapter_config.json", "adapter_model.safetensors", "manifest.json"}
