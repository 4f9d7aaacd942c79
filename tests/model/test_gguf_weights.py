"""GGUF files: the same model comes out as went in, quantized tensors exactly, and what is not computed is refused."""

import dataclasses
from pathlib import Path
from typing import Any

import gguf
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gguf import GGMLQuantizationType as Kind

from bactrian.errors import ModelError
from bactrian.model import llama, weights

CONFIG = llama.Config(
    vocab_size=51,
    hidden_size=64,
    intermediate_size=96,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=16,
    max_positions=256,
    rms_norm_eps=1e-5,
    rope_theta=500_000.0,
)
STRETCHED = dataclasses.replace(CONFIG, rope_scaling=llama.RopeScaling(8.0, 1.0, 4.0, 8192), tied_embeddings=True)
QWEN2 = dataclasses.replace(CONFIG, architecture="qwen2", qkv_bias=True)
QWEN3 = dataclasses.replace(CONFIG, architecture="qwen3", qk_norm=True, head_dim=32)


def random_parameters(config: llama.Config) -> llama.Parameters:
    random = np.random.default_rng(0)
    shapes = jax.eval_shape(lambda: llama.init(config, jax.random.key(0)))
    return jax.tree.map(lambda leaf: jnp.asarray(random.normal(size=leaf.shape), jnp.float32), shapes)


def same(one: llama.Parameters, other: llama.Parameters) -> bool:
    assert jax.tree.structure(one) == jax.tree.structure(other)
    return jax.tree.all(jax.tree.map(lambda a, b: a.dtype == b.dtype and np.array_equal(a, b), one, other))


def write_gguf(path: Path, config: llama.Config, parameters: llama.Parameters, kind: Kind, **extra: Any) -> None:
    """A file as llama.cpp's converter writes it, matrices quantized as `kind`."""
    name = config.architecture
    writer = gguf.GGUFWriter(path, name)
    writer.add_block_count(config.num_layers)
    writer.add_context_length(config.max_positions)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_heads)
    writer.add_head_count_kv(config.num_kv_heads)
    writer.add_key_length(config.head_dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_theta)
    writer.add_token_list(["token"] * config.vocab_size)
    adds = {str: writer.add_string, float: writer.add_float32, int: writer.add_uint32, bool: writer.add_bool}
    for key, value in extra.items():
        (writer.add_array if isinstance(value, list) else adds[type(value)])(key.replace("__", "."), value)

    def add(tensor: str, values: np.ndarray) -> None:
        values = np.ascontiguousarray(values, np.float32)
        as_kind = kind if values.ndim == 2 else Kind.F32
        writer.add_tensor(tensor, gguf.quants.quantize(values, as_kind), raw_dtype=as_kind)

    def interleaved(values: np.ndarray, heads: int) -> np.ndarray:
        if name != "llama":
            return values
        return values.reshape(heads, 2, -1, *values.shape[1:]).swapaxes(1, 2).reshape(values.shape)

    add("token_embd.weight", parameters["embedding"])
    add("output_norm.weight", parameters["final_norm"])
    if "unembedding" in parameters:
        add("output.weight", parameters["unembedding"])
    if config.rope_scaling is not None:
        frequencies = config.rope_theta ** -(np.arange(0, config.head_dim, 2) / config.head_dim)
        lengths = 2 * np.pi / frequencies
        smooth = (8192 / lengths - 1) / (4 - 1)
        between = 1 / ((1 - smooth) / config.rope_scaling.factor + smooth)
        add("rope_freqs.weight", np.where(lengths < 2048, 1, np.where(lengths > 8192, 8.0, between)))
    names = {
        "input_norm": "attn_norm.weight",
        "post_attention_norm": "ffn_norm.weight",
        "v_proj": "attn_v.weight",
        "v_bias": "attn_v.bias",
        "o_proj": "attn_output.weight",
        "q_norm": "attn_q_norm.weight",
        "k_norm": "attn_k_norm.weight",
        "gate_proj": "ffn_gate.weight",
        "up_proj": "ffn_up.weight",
        "down_proj": "ffn_down.weight",
    }
    rotated = {"q_proj": "attn_q.weight", "q_bias": "attn_q.bias", "k_proj": "attn_k.weight", "k_bias": "attn_k.bias"}
    for layer in range(config.num_layers):
        for ours, stacked in parameters["layers"].items():
            values = np.asarray(stacked)[layer].T
            if ours in rotated:
                values = interleaved(values, config.num_heads if ours[0] == "q" else config.num_kv_heads)
            add(f"blk.{layer}.{(names | rotated)[ours]}", values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.mark.parametrize("config", [CONFIG, STRETCHED, QWEN2, QWEN3])
def test_a_gguf_file_holds_the_same_model(config: llama.Config, tmp_path: Path):
    parameters = random_parameters(config)
    write_gguf(tmp_path / "model.gguf", config, parameters, Kind.F32)
    assert weights.read_config(tmp_path / "model.gguf") == config
    assert same(weights.load(tmp_path / "model.gguf"), parameters)


@pytest.mark.parametrize("kind", [Kind.F16, Kind.BF16, Kind.Q8_0, Kind.Q5_1, Kind.Q5_0, Kind.Q4_1, Kind.Q4_0])
def test_gguf_tensors_are_dequantized(kind: Kind, tmp_path: Path):
    parameters = random_parameters(CONFIG)
    write_gguf(tmp_path / "model.gguf", CONFIG, parameters, kind)
    found = weights.load(tmp_path / "model.gguf")

    def expected(weight) -> np.ndarray:  # [output, input], as it was quantized
        return gguf.quants.dequantize(gguf.quants.quantize(np.ascontiguousarray(weight), kind), kind)

    assert np.array_equal(found["embedding"], expected(parameters["embedding"]))
    for name in ("q_proj", "k_proj", "down_proj"):
        for layer in range(CONFIG.num_layers):
            stored = np.asarray(parameters["layers"][name])[layer].T
            assert np.array_equal(np.asarray(found["layers"][name])[layer].T, expected(stored))


def test_a_broken_gguf_file_is_an_error_that_says_so(tmp_path: Path):
    path = tmp_path / "model.gguf"
    write_gguf(path, CONFIG, random_parameters(CONFIG), Kind.Q8_0)
    whole = path.read_bytes()
    path.write_bytes(whole[:-5000])
    with pytest.raises(ModelError, match=r"model\.gguf: the file is cut: tensor blk"):
        weights.load(path)
    for broken in (b"", whole[:3], whole[:30], whole[:700], b"<html>Not found</html>"):
        path.write_bytes(broken)
        with pytest.raises(ModelError, match=r"model\.gguf: not a"):
            weights.load(path)


def test_gguf_files_that_cannot_be_computed_are_refused(tmp_path: Path):
    path, parameters = tmp_path / "model.gguf", random_parameters(CONFIG)
    write_gguf(path, dataclasses.replace(CONFIG, architecture="gemma"), parameters, Kind.F32)  # type: ignore[arg-type]
    with pytest.raises(ModelError, match="architecture gemma is not supported; supported are llama, qwen2, qwen3"):
        weights.load(path)
    write_gguf(path, CONFIG, parameters, Kind.F32, llama__rope__scaling__type="yarn")
    with pytest.raises(ModelError, match="rope scaling 'yarn'"):
        weights.load(path)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_tensor("blk.0.ffn_gate_exps.weight", np.zeros((2, 4, 4), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(ModelError, match=r"tensor blk\.0\.ffn_gate_exps\.weight belongs to no architecture"):
        weights.load(path)


# A key after `llama.` → a value that is refused, and what is said; values with which nothing is computed otherwise.
STATED: dict[str, tuple[Any, str, list[Any]]] = {
    "rope__scaling__factor": (4.0, "rope scaling 'linear' by 4 is not supported", [1.0, 0.0]),
    "rope__scale_linear": (4.0, "rope scaling 'linear' by 4 is not supported", [1.0, 0.0]),
    "rope__scaling__type": ("longrope", "rope scaling 'longrope' is not supported", ["none", "linear"]),
    "rope__scaling__attn_factor": (1.2, r"llama\.rope\.scaling\.attn_factor is 1\.2", [1.0]),
    "rope__dimension_count": (8, "rope.dimension_count is 8; only 16", [16]),
    "rope__dimension_sections": ([8, 8], r"rope\.dimension_sections is \[8, 8\]", []),
    "attention__value_length": (8, "attention.value_length is 8; only 16", [16]),
    "attention__scale": (0.5, r"llama\.attention\.scale is 0\.5, which is not supported", [0.0]),
    "attention__clamp_kqv": (8.0, r"llama\.attention\.clamp_kqv is 8\.0", [0.0]),
    "attention__max_alibi_bias": (8.0, r"llama\.attention\.max_alibi_bias is 8\.0", [0.0]),
    "attention__causal": (False, r"llama\.attention\.causal is False", [True]),
    "attention__sliding_window_pattern": (4, "sliding_window_pattern is 4", []),
    "logit_scale": (0.25, r"llama\.logit_scale is 0\.25", [1.0]),
    "final_logit_softcapping": (30.0, "final_logit_softcapping is 30", [0.0]),
    "expert_count": (8, r"llama\.expert_count is 8", [0]),
    "use_parallel_residual": (True, "use_parallel_residual is True", [False]),
    "vocab_size": (52, r"vocab_size is 52, and token_embd\.weight has 51 rows", [51]),
    "of_tomorrow": (7, r"llama\.of_tomorrow is 7, which is not supported", []),
}


@pytest.mark.parametrize("key", STATED)
def test_what_a_gguf_file_states_is_computed_or_refused_by_name(key: str, tmp_path: Path):
    value, said, neutral = STATED[key]
    path, parameters = tmp_path / "model.gguf", random_parameters(CONFIG)
    write_gguf(path, CONFIG, parameters, Kind.F32, **{f"llama__{key}": value})
    with pytest.raises(ModelError, match=said):
        weights.read_config(path)
    for each in neutral:
        write_gguf(path, CONFIG, parameters, Kind.F32, **{f"llama__{key}": each})
        assert weights.read_config(path) == CONFIG


def test_a_factor_of_no_scaling_is_none(tmp_path: Path):
    stated = {"llama__rope__scaling__type": "none", "llama__rope__scaling__factor": 4.0}
    write_gguf(tmp_path / "model.gguf", CONFIG, random_parameters(CONFIG), Kind.F32, **stated)
    assert weights.read_config(tmp_path / "model.gguf") == CONFIG


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"rms_norm_eps": float("nan")}, "layer_norm_rms_epsilon is nan"),
        ({"rms_norm_eps": 0.0}, "layer_norm_rms_epsilon is 0"),
        ({"rope_theta": 0.0}, "rope.freq_base is 0"),
        ({"rope_theta": float("inf")}, "rope.freq_base is inf"),
        ({"max_positions": 0}, "context_length is 0"),
        ({"num_kv_heads": 3}, "4 attention heads do not share 3"),
    ],
)
def test_a_gguf_value_that_no_model_has_is_refused(changes: dict, said: str, tmp_path: Path):
    config = dataclasses.replace(CONFIG, **changes)
    parameters = random_parameters(CONFIG)
    parameters["layers"] = {name: w for name, w in parameters["layers"].items() if not name.startswith("k_")}
    write_gguf(tmp_path / "model.gguf", config, parameters, Kind.F32)
    with pytest.raises(ModelError, match=said):
        weights.read_config(tmp_path / "model.gguf")


def test_a_gguf_weight_that_is_no_number_is_named(tmp_path: Path):
    parameters = random_parameters(CONFIG)
    parameters["layers"]["up_proj"] = parameters["layers"]["up_proj"].at[1, 3, 5].set(jnp.nan)
    write_gguf(tmp_path / "model.gguf", CONFIG, parameters, Kind.F16)
    with pytest.raises(
        ModelError, match=r"tensor model\.layers\.1\.mlp\.up_proj\.weight: the weight at \[5, 3\] is nan"
    ):
        weights.load(tmp_path / "model.gguf")


def test_one_part_of_a_model_is_no_model(tmp_path: Path):
    path = tmp_path / "model-00002-of-00003.gguf"
    write_gguf(path, CONFIG, random_parameters(CONFIG), Kind.F32, split__no=1, split__count=3)
    with pytest.raises(
        ModelError, match=r"00003\.gguf: part 2 of 3 of a model; join them with `llama-gguf-split --merge`"
    ):
        weights.read_config(path)


def test_a_gguf_type_that_cannot_be_dequantized_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "model.gguf"
    write_gguf(path, CONFIG, random_parameters(CONFIG), Kind.Q5_1)
    monkeypatch.delitem(gguf.quants._type_traits, Kind.Q5_1)
    with pytest.raises(ModelError, match=r"tensor \S+: the type Q5_1 cannot be de-quantized"):
        weights.load(path)
