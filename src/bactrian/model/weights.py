"""Weights on disk: Hugging Face folders in both directions, GGUF files read.

A model is read and written one tensor at a time, so that beside the model itself no more than one stacked parameter is
in memory.
"""

import functools
import hashlib
import json
import math
import operator
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np

from bactrian.errors import ModelError
from bactrian.model import gguf_weights, hf_config, llama, safetensors_file
from bactrian.model.llama import Dtype
from bactrian.run import cache_root, replacing

_DTYPES = {"float32": np.dtype(np.float32), "bfloat16": np.dtype(ml_dtypes.bfloat16)}
_SINGLE = "model.safetensors"
_INDEX = "model.safetensors.index.json"

# Our names → Hugging Face's. Their matrices are [output, input] where ours are [input, output].
_WHOLE = {
    "embedding": "model.embed_tokens.weight",
    "final_norm": "model.norm.weight",
    "unembedding": "lm_head.weight",
}
_IN_LAYER = {
    "input_norm": "input_layernorm.weight",
    "q_proj": "self_attn.q_proj.weight",
    "k_proj": "self_attn.k_proj.weight",
    "v_proj": "self_attn.v_proj.weight",
    "o_proj": "self_attn.o_proj.weight",
    "q_bias": "self_attn.q_proj.bias",
    "k_bias": "self_attn.k_proj.bias",
    "v_bias": "self_attn.v_proj.bias",
    "o_bias": "self_attn.o_proj.bias",
    "q_norm": "self_attn.q_norm.weight",
    "k_norm": "self_attn.k_norm.weight",
    "post_attention_norm": "post_attention_layernorm.weight",
    "gate_proj": "mlp.gate_proj.weight",
    "up_proj": "mlp.up_proj.weight",
    "down_proj": "mlp.down_proj.weight",
}


class _Tensor(NamedTuple):
    """A tensor of the files: which of our parameters it is, which layer of it, and its shape in the files."""

    parameter: tuple[str, ...]
    layer: int | None
    shape: tuple[int, ...]


class _Source(NamedTuple):
    """An opened model: its architecture, and its tensors by Hugging Face name: shapes, one of them read, its file."""

    config: llama.Config
    shapes: dict[str, tuple[int, ...]]
    read: Callable[[str], np.ndarray]
    file_of: Callable[[str], Path]


def read_config(path: Path) -> llama.Config:
    """The architecture of the model in a Hugging Face folder or a .gguf file. Raises `ModelError`."""
    return gguf_weights.File(path).config if path.suffix == ".gguf" else hf_config.read(path)


def check(path: Path) -> None:
    """See that the files hold every tensor of the architecture in its shape; none is read. Raises `ModelError`."""
    _check(path, _open(path))


def load(path: Path, dtype: Dtype = "float32", shardings: Any = None) -> llama.Parameters:
    """The parameters in a Hugging Face folder or a .gguf file, matrices transposed and layers stacked.

    `shardings` is a tree of them, one for each parameter. Without it all is on the first device. Raises `ModelError`,
    naming the file and the tensor, where the files are not what the architecture asks for.
    """
    source = _open(path)
    _check(path, source)

    def one(parameter: tuple[str, ...], spec: llama.Spec) -> jax.Array:
        array = _gather(source, parameter, spec, _DTYPES[dtype])
        # Finished before the next is read: a copy still under way would keep this array in memory beside the next.
        # (Not jnp.asarray, which copies once more on the way.)
        sharding = None if shardings is None else functools.reduce(operator.getitem, parameter, shardings)
        return jax.device_put(array, sharding).block_until_ready()

    specs = llama.specs(source.config)
    layers = {name: one(("layers", name), spec) for name, spec in specs.pop("layers").items()}
    return {**{name: one((name,), spec) for name, spec in specs.items()}, "layers": layers}


def save(
    folder: Path,
    config: llama.Config,
    parameters: llama.Parameters,
    dtype: Dtype,
    eos_ids: tuple[int, ...],
    bos_id: int | None,
    shard_bytes: float = 5e9,
) -> None:
    """Write a model into a folder in Hugging Face layout, its weights in files of up to `shard_bytes`.

    A tensor is on the host only while it is written. All files are written before the first takes its place, so that
    an error (`RunError` where the disk is full) leaves the folder as it was.
    """
    tensors = _tensors(config)
    shards = _split(tensors, _DTYPES[dtype].itemsize, shard_bytes)
    with replacing(folder / "model.incoming") as staged:
        staged.mkdir()
        weight_map = {}
        for number, names in enumerate(shards, 1):
            file = _SINGLE if len(shards) == 1 else f"model-{number:05d}-of-{len(shards):05d}.safetensors"
            shapes = {name: tensors[name].shape for name in names}
            arrays = (_slice(parameters, tensors[name]) for name in names)
            safetensors_file.write(staged / file, shapes, _DTYPES[dtype], arrays)
            weight_map.update(dict.fromkeys(names, file))
        if len(shards) > 1:
            size = sum(math.prod(tensor.shape) for tensor in tensors.values()) * _DTYPES[dtype].itemsize
            index = {"metadata": {"total_size": size}, "weight_map": weight_map}
            (staged / _INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
        hf_config.write(config, staged, eos_ids, bos_id, dtype)
    _move_in(folder / "model.incoming", folder)


def resize_embeddings(
    config: llama.Config, parameters: llama.Parameters, vocab_size: int
) -> tuple[llama.Config, llama.Parameters]:
    """The model with rows for `vocab_size` tokens; a new token starts as the mean of those that are there.

    Raises `ModelError` where tokens would be lost.
    """
    if vocab_size < config.vocab_size:
        raise ModelError(f"a vocabulary of {config.vocab_size} tokens cannot shrink to {vocab_size}")
    grown = dict(parameters)
    for name in ("embedding", "unembedding"):
        if name in grown:
            rows_VD = grown[name]
            mean_D = jnp.mean(rows_VD, axis=0, dtype=jnp.float32).astype(rows_VD.dtype)
            added = jnp.broadcast_to(mean_D, (vocab_size - config.vocab_size, config.hidden_size))
            grown[name] = jnp.concatenate([rows_VD, added])
    return replace(config, vocab_size=vocab_size), grown


def fingerprint(path: Path) -> str:
    """SHA-256 of the model's whole content: its weights, and the config that says what they mean.

    Remembered for as long as no file changes its size, its times or its place on the disk.
    """
    files = [path] if path.suffix == ".gguf" else [path / "config.json", *_weight_files(path)]
    digest = hashlib.sha256()
    for file in files:
        digest.update(bytes.fromhex(_file_digest(file)))
    return digest.hexdigest()


def _file_digest(file: Path) -> str:
    try:
        about = file.stat()
        known = [str(file.resolve()), about.st_size, about.st_mtime_ns, about.st_ctime_ns, about.st_ino]
        name = hashlib.sha256(json.dumps(known).encode()).hexdigest()
        remembered = cache_root() / "fingerprints" / name
        if remembered.exists():
            return remembered.read_text()
        with file.open("rb") as content:
            found = hashlib.file_digest(content, "sha256").hexdigest()
    except OSError as error:
        raise ModelError(f"{file}: cannot be read: {error.strerror}") from error
    with replacing(remembered) as temporary:
        temporary.write_text(found)
    return found


def _tensors(config: llama.Config) -> dict[str, _Tensor]:
    """Every tensor of the files by Hugging Face name, in the order that they are written in."""
    specs = llama.specs(config)
    layers = specs.pop("layers")
    tensors = {_WHOLE["embedding"]: _Tensor(("embedding",), None, specs.pop("embedding").shape)}
    for layer in range(config.num_layers):
        for name, spec in layers.items():
            tensors[f"model.layers.{layer}.{_IN_LAYER[name]}"] = _Tensor(("layers", name), layer, spec.shape[:0:-1])
    return tensors | {_WHOLE[name]: _Tensor((name,), None, spec.shape) for name, spec in specs.items()}


def _open(path: Path) -> _Source:
    if path.suffix == ".gguf":
        file = gguf_weights.File(path)
        shapes = {name: stored.shape for name, stored in file.tensors.items()}
        return _Source(file.config, shapes, file.read, lambda name: path)
    stored = {name: entry for file in _weight_files(path) for name, entry in safetensors_file.entries(file).items()}
    return _Source(
        hf_config.read(path),
        {name: entry.shape for name, entry in stored.items()},
        lambda name: safetensors_file.read(stored[name]),
        lambda name: stored[name].path,
    )


def _weight_files(folder: Path) -> list[Path]:
    index = folder / _INDEX
    if (folder / _SINGLE).is_file():
        return [folder / _SINGLE]
    if not index.is_file():
        raise ModelError(f"{folder}: no {_SINGLE} and no {_INDEX}; other formats of weights are not read")
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise ModelError(f"{index}: not the index of a model's weights") from error
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise ModelError(f"{folder}: {', '.join(missing)} of {_INDEX} not found; download or export it again")
    return [folder / name for name in names]


def _check(path: Path, source: _Source) -> None:
    """Every tensor is there in its shape, and there is none that the architecture does not have."""
    expected = _tensors(source.config)
    for name, tensor in expected.items():
        if name not in source.shapes:
            raise ModelError(f"{path}: tensor {name} is missing; its shape would be {list(tensor.shape)}")
        if source.shapes[name] != tensor.shape:
            found = list(source.shapes[name])
            raise ModelError(
                f"{source.file_of(name)}: tensor {name} has shape {found}, expected {list(tensor.shape)} "
                f"from the model's config"
            )
    # A tied unembedding may be written out a second time; rotary frequencies were, by old versions of transformers.
    known = {*expected, _WHOLE["unembedding"]}
    for name in source.shapes:
        if name not in known and not name.endswith("rotary_emb.inv_freq"):
            raise ModelError(f"{source.file_of(name)}: tensor {name} does not belong to {source.config.architecture}")


def _gather(source: _Source, parameter: tuple[str, ...], spec: llama.Spec, dtype: np.dtype) -> np.ndarray:
    """A parameter as one array, filled layer by layer."""
    if parameter[0] != "layers":
        return np.ascontiguousarray(source.read(_WHOLE[parameter[0]]), dtype)
    stacked = np.empty(spec.shape, dtype)
    for layer in range(len(stacked)):
        stacked[layer] = source.read(f"model.layers.{layer}.{_IN_LAYER[parameter[1]]}").T
    return stacked


def _slice(parameters: llama.Parameters, tensor: _Tensor) -> np.ndarray:
    if tensor.layer is None:
        return np.asarray(parameters[tensor.parameter[0]])
    return np.asarray(parameters["layers"][tensor.parameter[1]][tensor.layer]).T


def _split(tensors: dict[str, _Tensor], itemsize: int, shard_bytes: float) -> list[list[str]]:
    """Names in order, cut wherever the next tensor would make a file larger than `shard_bytes`."""
    shards: list[list[str]] = [[]]
    filled = 0
    for name, tensor in tensors.items():
        size = math.prod(tensor.shape) * itemsize
        if shards[-1] and filled + size > shard_bytes:
            shards.append([])
            filled = 0
        shards[-1].append(name)
        filled += size
    return shards


def _move_in(staged: Path, folder: Path) -> None:
    """Put a model's files where they belong, and remove those that an earlier model has left over."""
    names = {file.name for file in staged.iterdir()}
    # The old weights go first: a folder without weights is an error, one with two models' files would be a wrong model.
    for stale in (*folder.glob("model*.safetensors"), folder / _INDEX):
        stale.unlink(missing_ok=True)
    for name in sorted(names):
        os.replace(staged / name, folder / name)
    staged.rmdir()
