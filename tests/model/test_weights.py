"""Weights on disk: what is read back is what was written, what is broken is named, and memory holds one model."""

import dataclasses
import errno
import json
import os
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from bactrian.errors import ModelError, RunError
from bactrian.model import hf_config, llama, safetensors_file, tensors, weights

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


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    weights.save(tmp_path / "model", CONFIG, random_parameters(CONFIG), "float32", (2,), 1)
    return tmp_path / "model"


def rewrite(folder: Path, **changes: np.ndarray | None) -> None:
    """Change or remove tensors of a saved model, in the library's own writing of the format."""
    path = folder / "model.safetensors"
    tensors = safetensors.numpy.load_file(path) | changes
    safetensors.numpy.save_file({name: tensor for name, tensor in tensors.items() if tensor is not None}, path)


@pytest.mark.parametrize("config", [CONFIG, STRETCHED, QWEN2, QWEN3])
def test_load_after_save_is_identity(config: llama.Config, tmp_path: Path):
    parameters = random_parameters(config)
    weights.save(tmp_path, config, parameters, "float32", (2, 7), None)
    assert weights.read_config(tmp_path) == config
    assert same(weights.load(tmp_path), parameters)
    assert json.loads((tmp_path / "generation_config.json").read_text())["eos_token_id"] == [2, 7]


def test_the_library_reads_what_was_written_here(folder: Path):
    embedding = safetensors.numpy.load_file(folder / "model.safetensors")["model.embed_tokens.weight"]
    assert np.array_equal(embedding, weights.load(folder)["embedding"])


def test_bfloat16_is_kept_exactly(tmp_path: Path):
    parameters = random_parameters(CONFIG)
    rounded = jax.tree.map(lambda weight: weight.astype(jnp.bfloat16), parameters)
    weights.save(tmp_path, CONFIG, parameters, "bfloat16", (2,), 1)
    assert same(weights.load(tmp_path, "bfloat16"), rounded)
    assert same(weights.load(tmp_path, "float32"), jax.tree.map(lambda weight: weight.astype(jnp.float32), rounded))


def test_a_model_in_several_files_is_the_same_model(tmp_path: Path):
    parameters = random_parameters(CONFIG)
    weights.save(tmp_path, CONFIG, parameters, "float32", (2,), 1, shard_bytes=100_000)
    files = sorted(tmp_path.glob("model-*.safetensors"))
    assert len(files) > 2
    assert all(file.stat().st_size < 110_000 for file in files)
    assert same(weights.load(tmp_path), parameters)

    weights.save(tmp_path, CONFIG, parameters, "float32", (2,), 1)  # in its place, in one file
    assert {file.name for file in tmp_path.iterdir()} == {
        "config.json",
        "generation_config.json",
        "model.safetensors",
    }
    assert same(weights.load(tmp_path), parameters)


def test_each_parameter_gets_its_own_sharding(folder: Path):
    device = jax.devices()[0]
    meshes = iter(jax.sharding.Mesh([device], (f"axis{index}",)) for index in range(99))
    shardings = jax.tree.map(
        lambda _: jax.sharding.NamedSharding(next(meshes), jax.sharding.PartitionSpec()),
        llama.specs(CONFIG),
        is_leaf=lambda node: isinstance(node, llama.Spec),
    )
    loaded = weights.load(folder, shardings=shardings)
    assert jax.tree.map(lambda array: array.sharding, loaded) == shardings


@pytest.mark.parametrize("block_bytes", [1000, 30_000])
def test_what_is_read_in_blocks_is_the_same(folder: Path, monkeypatch: pytest.MonkeyPatch, block_bytes: int):
    monkeypatch.setattr(tensors, "BLOCK_BYTES", block_bytes)
    assert same(weights.load(folder), random_parameters(CONFIG))


def test_what_is_written_is_not_kept_on_the_host(tmp_path: Path):
    parameters = random_parameters(CONFIG)
    weights.save(tmp_path, CONFIG, parameters, "float32", (2,), 1)
    assert parameters["embedding"]._npy_value is None


def test_a_full_disk_leaves_the_earlier_model(folder: Path, monkeypatch: pytest.MonkeyPatch):
    earlier = weights.load(folder)
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    write, written = safetensors_file.write, []

    def write_until_full(path: Path, *arguments) -> None:
        if written:
            path.write_bytes(b"half")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        written.append(path)
        write(path, *arguments)

    monkeypatch.setattr(safetensors_file, "write", write_until_full)
    with pytest.raises(RunError, match="No space left on device") as caught:
        weights.save(folder, CONFIG, random_parameters(CONFIG), "float32", (2,), 1, shard_bytes=100_000)
    assert "\n" not in str(caught.value)
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before
    assert same(weights.load(folder), earlier)


def test_a_cut_file_is_named_with_its_tensor(folder: Path):
    path = folder / "model.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[:-100])
    with pytest.raises(ModelError, match=r"model\.safetensors: the file is cut: tensor lm_head\.weight"):
        weights.load(folder)
    for broken in (b"", whole[:5], whole[:200], b"<html>Not found</html>", b"\x08" + bytes(7) + b"[broken]"):
        path.write_bytes(broken)
        with pytest.raises(ModelError, match=r"model\.safetensors: not a safetensors file"):
            weights.load(folder)


K_PROJ = "model.layers.1.self_attn.k_proj.weight"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({K_PROJ: None}, rf"tensor {K_PROJ} is missing; its shape would be \[32, 64\]"),
        ({K_PROJ: np.zeros((64, 32), np.float32)}, rf"tensor {K_PROJ} has shape \[64, 32\], expected \[32, 64\]"),
        ({K_PROJ: np.zeros((32, 64), np.int8)}, rf"tensor {K_PROJ}: I8 is not a dtype that can be read"),
        ({"model.layers.0.self_attn.k_proj.bias": np.zeros(32, np.float32)}, r"k_proj\.bias does not belong to llama"),
    ],
)
def test_a_tensor_that_is_not_as_the_config_says_is_named(folder: Path, changes: dict, message: str):
    rewrite(folder, **changes)
    with pytest.raises(ModelError, match=message) as caught:
        weights.load(folder)
    assert str(folder) in str(caught.value)


@pytest.mark.parametrize("dtype", [np.float32, np.float16, "bfloat16", np.float64])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_weight_that_is_no_finite_number_is_named(folder: Path, dtype, value: float):
    spoilt = np.full((32, 64), -1.5, ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)
    spoilt[7, 9] = value
    rewrite(folder, **{K_PROJ: spoilt})
    weights.read_config(folder)
    with pytest.raises(ModelError, match=rf"safetensors: tensor {K_PROJ}: the weight at \[7, 9\] is {value}, which is"):
        weights.load(folder)


def test_a_float64_that_no_float32_holds_is_named(folder: Path):
    large = np.ones(64)
    large[5] = 1e300
    rewrite(folder, **{"model.norm.weight": large})
    with pytest.raises(ModelError, match=r"tensor model\.norm\.weight: the weight at \[5\] is 1e\+300"):
        weights.load(folder)


def test_a_weight_that_is_no_number_is_named_in_the_part_that_a_device_reads(folder: Path, monkeypatch):
    spoilt = np.zeros((32, 64), np.float32)
    spoilt[31, 63] = np.nan
    rewrite(folder, **{K_PROJ: spoilt})
    monkeypatch.setattr(tensors, "BLOCK_BYTES", 256)
    source = tensors.open_model(folder)
    assert [values.shape for _, values in tensors.blocks(source, ("layers", "k_proj"), ((1, 2), (0, 32), (0, 16)))]
    with pytest.raises(ModelError, match=r"the weight at \[31, 63\] is nan"):
        list(tensors.blocks(source, ("layers", "k_proj"), ((1, 2), (32, 64), (16, 32))))


def test_an_unembedding_of_its_own_is_used_though_the_config_says_tied(folder: Path):
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "tie_word_embeddings": True}))
    assert weights.read_config(folder) == CONFIG
    assert same(weights.load(folder), random_parameters(CONFIG))
    (remark,) = tensors.open_model(folder).remarks
    assert "says tie_word_embeddings, and lm_head.weight is another matrix" in remark


def test_what_is_quantized_is_judged_by_the_tensors(folder: Path):
    path = folder / "config.json"
    stated = {"quantization_config": {"quant_method": "awq", "bits": 4}}
    path.write_text(json.dumps({**json.loads(path.read_text()), **stated}))
    assert same(weights.load(folder), random_parameters(CONFIG))
    (remark,) = tensors.open_model(folder).remarks
    assert "says that the weights are quantized (awq)" in remark
    rewrite(folder, **{K_PROJ: np.zeros((32, 64), np.uint8)})
    with pytest.raises(ModelError, match=r"quantized \(awq\); take the model that was not quantized"):
        weights.read_config(folder)
    rewrite(folder, **{K_PROJ: None, K_PROJ.replace("weight", "qweight"): np.zeros((8, 32), np.int32)})
    with pytest.raises(ModelError, match=r"quantized \(awq\)"):
        weights.read_config(folder)


def test_the_second_copy_of_a_tied_embedding_and_old_rotary_frequencies_are_left_alone(tmp_path: Path):
    parameters = random_parameters(STRETCHED)
    weights.save(tmp_path, STRETCHED, parameters, "float32", (2,), 1)
    rewrite(
        tmp_path,
        **{
            "lm_head.weight": np.asarray(parameters["embedding"]),
            "model.layers.0.self_attn.rotary_emb.inv_freq": np.zeros(8, np.float32),
        },
    )
    assert same(weights.load(tmp_path), parameters)


def test_files_of_the_index_that_are_not_there_are_named(folder: Path):
    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"no model\.safetensors and no model\.safetensors\.index\.json"):
        weights.load(folder)
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {K_PROJ: "model-00001-of-00002.safetensors"}}))
    with pytest.raises(ModelError, match=r"model-00001-of-00002\.safetensors .*not found"):
        weights.load(folder)
    for broken in (
        "{",
        "[]",
        '{"weight_map": 3}',
        '{"weight_map": {"a": "../model.safetensors"}}',
        '{"weight_map": {}}',
    ):
        index.write_text(broken)
        with pytest.raises(ModelError, match="not the index"):
            weights.load(folder)


def test_a_shard_holds_what_the_index_says_and_nothing_else(tmp_path: Path):
    weights.save(tmp_path, CONFIG, random_parameters(CONFIG), "float32", (2,), 1, shard_bytes=100_000)
    index, shards = tmp_path / tensors.INDEX, sorted(tmp_path.glob("model-*.safetensors"))
    whole = json.loads(index.read_text())
    named = whole["weight_map"]

    def refused(weight_map: dict[str, str], message: str) -> None:
        index.write_text(json.dumps({**whole, "weight_map": weight_map}))
        with pytest.raises(ModelError, match=message):
            weights.read_config(tmp_path)

    refused(
        {name: file for name, file in named.items() if name != K_PROJ}, rf"tensor {K_PROJ} is here, .* does not name it"
    )
    other = next(file.name for file in shards if file.name != named[K_PROJ])
    refused({**named, K_PROJ: other}, rf"tensor {K_PROJ} is here, and {tensors.INDEX} puts it in {other}")
    refused({**named, "lm_head.bias": other}, r"tensor lm_head\.bias is not here, where")
    shutil.copy(tmp_path / named[K_PROJ], tmp_path / "again.safetensors")
    refused(
        {**named, "other": "again.safetensors"}, r"again\.safetensors: tensor \S+ is here, and .* puts it in model-"
    )


def spoilt_header(path: Path, change) -> None:
    """Write a safetensors file with another header over the same bytes."""
    whole = path.read_bytes()
    length = int.from_bytes(whole[:8], "little")
    text = json.dumps(change(json.loads(whole[8 : 8 + length]))).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + whole[8 + length :])


Q_PROJ = "model.layers.1.self_attn.q_proj.weight"
HEADERS = {
    "another's bytes": ({"data_offsets": [0, 16384]}, "begins at byte"),
    "a hole before it": ({"data_offsets": [8, 16392]}, "begins at byte"),
    "negative": ({"data_offsets": [-8, 16376]}, "greater than or equal to 0"),
    "text": ({"data_offsets": ["0", "16384"]}, "valid integer"),
    "one end": ({"data_offsets": [0]}, "at least 2 items"),
    "a boolean size": ({"shape": [True, 4096]}, "valid integer"),
    "enormous": ({"shape": [10**30, 64]}, "not a safetensors file: its header"),
    "no dtype": ({"dtype": None}, "valid string"),
}


@pytest.mark.parametrize("what", HEADERS)
def test_a_header_that_the_library_refuses_is_refused(folder: Path, what: str):
    changes, message = HEADERS[what]
    spoilt_header(folder / "model.safetensors", lambda header: {**header, Q_PROJ: {**header[Q_PROJ], **changes}})
    with pytest.raises(Exception):  # noqa: B017  (the library has an error of its own)
        safetensors.numpy.load_file(folder / "model.safetensors")
    with pytest.raises(ModelError, match=message) as caught:
        weights.load(folder)
    assert "model.safetensors: " in str(caught.value)


def test_bytes_after_the_last_tensor_are_refused(folder: Path):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes() + bytes(8))
    with pytest.raises(ModelError, match=r"model\.safetensors: 8 bytes come after the last tensor"):
        weights.load(folder)


@pytest.mark.parametrize("header", ["[" * 5000, '{"a": ' * 3000, "[]", '{"a": 5}', '{"a": NaN}', '"\\ud800"'])
def test_a_header_of_another_kind_is_one_line(folder: Path, header: str):
    path = folder / "model.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header.encode())
    with pytest.raises(ModelError, match=r"model\.safetensors: not a safetensors file: its header"):
        weights.load(folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"architectures": ["GemmaForCausalLM"]}, "GemmaForCausalLM is not supported; supported are LlamaForCausalLM"),
        ({"hidden_size": None}, "hidden_size is missing"),
        ({"num_hidden_layers": "two"}, "num_hidden_layers is 'two'"),
        ({"num_key_value_heads": 3}, "do not share 3"),
        ({"head_dim": 15}, "head_dim 15 is odd"),
        ({"hidden_act": "gelu"}, "hidden_act 'gelu'"),
        ({"mlp_bias": True}, "mlp_bias"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 2.0}}, "rope scaling 'yarn'"),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, "rope scaling 'linear'"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 2.0}}, "low_freq_factor is missing"),
        (
            {
                "architectures": ["Qwen2ForCausalLM"],
                "use_sliding_window": True,
                "sliding_window": 8,
                "max_window_layers": 1,
            },
            "in some layers only",
        ),
    ],
)
def test_a_config_that_cannot_be_computed_is_refused(folder: Path, changes: dict, message: str):
    path = folder / "config.json"
    values = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({key: value for key, value in values.items() if value is not None}))
    with pytest.raises(ModelError, match=message) as caught:
        weights.read_config(folder)
    assert str(path) in str(caught.value)


def test_a_config_says_the_same_in_the_old_places_and_in_the_new(tmp_path: Path):
    hf_config.write(STRETCHED, tmp_path, (2,), 1, "float32")
    values = json.loads((tmp_path / "config.json").read_text())
    scaling = values.pop("rope_scaling")
    new = {**values, "rope_parameters": {**scaling, "rope_theta": values["rope_theta"]}, "rope_theta": None}
    old = {**values, "rope_scaling": {"type": scaling.pop("rope_type"), **scaling}}
    assert hf_config.parse(new, "new") == hf_config.parse(old, "old") == STRETCHED
    unstated = {key: value for key, value in values.items() if key not in ("architectures", "head_dim", "rope_theta")}
    expected = dataclasses.replace(STRETCHED, rope_scaling=None, rope_theta=10_000.0)
    assert hf_config.parse(unstated, "unstated") == expected


def test_a_model_that_the_layout_cannot_express_is_not_written(tmp_path: Path):
    config = dataclasses.replace(CONFIG, sliding_window=8)
    with pytest.raises(ModelError, match="LlamaForCausalLM cannot express"):
        weights.save(tmp_path, config, random_parameters(config), "float32", (2,), 1)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("config", [CONFIG, STRETCHED])
def test_new_tokens_start_as_the_mean_of_the_others(config: llama.Config):
    parameters = random_parameters(config)
    grown_config, grown = weights.resize_embeddings(config, parameters, 60)
    assert grown_config == dataclasses.replace(config, vocab_size=60)
    assert jax.tree.map(jnp.shape, grown) == jax.tree.map(
        lambda spec: spec.shape, llama.specs(grown_config), is_leaf=lambda node: isinstance(node, llama.Spec)
    )
    for name in {"embedding", "unembedding"} & set(grown):
        assert np.array_equal(grown[name][:51], parameters[name])
        np.testing.assert_allclose(grown[name][51:], np.tile(parameters[name].mean(0), (9, 1)), rtol=1e-5, atol=1e-6)
    with pytest.raises(ModelError, match="cannot shrink to 50"):
        weights.resize_embeddings(config, parameters, 50)


def test_a_fingerprint_is_of_the_content(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("BACTRIAN_CACHE", str(tmp_path / "cache"))
    first = weights.fingerprint(folder)
    weights.save(tmp_path / "copy", CONFIG, weights.load(folder), "float32", (2,), 1)
    assert weights.fingerprint(tmp_path / "copy") == first

    path = folder / "model.safetensors"
    times = path.stat()
    with path.open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"\x55")
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert weights.fingerprint(folder) != first

    changed = weights.fingerprint(folder)
    monkeypatch.setattr("hashlib.file_digest", lambda *_: pytest.fail("a file that did not change was read again"))
    assert weights.fingerprint(folder) == changed
