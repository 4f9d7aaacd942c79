"""Weights on disk: Hugging Face folders in both directions, GGUF files read.

A model may be of any size: what a device holds of a parameter is read for that device alone, a block at a time, and a
model is written one tensor at a time. So no host holds more than its devices do, and a tensor.
"""

import hashlib
import math
import os
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Sharding, SingleDeviceSharding

from bactrian.errors import ModelError
from bactrian.files import atomic, digests, documents, folders
from bactrian.model import hf_config, llama, safetensors_file, tensors
from bactrian.model.llama import Dtype
from bactrian.model.tensors import Source, Tensor

_DTYPES = {"float32": np.dtype(np.float32), "bfloat16": np.dtype(ml_dtypes.bfloat16)}


def read_config(path: Path) -> llama.Config:
    """The architecture of the model in a Hugging Face folder or a .gguf file. Raises `ModelError`, also where the files
    do not hold every tensor of it in its shape."""
    return tensors.open_model(path).config


def load(path: Path, dtype: Dtype = "float32", shardings: Any = None) -> llama.Parameters:
    """The parameters in a Hugging Face folder or a .gguf file, matrices transposed and layers stacked.

    `shardings` is a tree of them, one for each parameter; a process reads what its own devices hold. Without it all is
    on the first device. Raises `ModelError`, naming the file and the tensor, where the files are not what the
    architecture asks for.
    """
    source = tensors.open_model(path)
    specs = llama.specs(source.config)
    if shardings is None:
        here = SingleDeviceSharding(jax.local_devices()[0])
        shardings = jax.tree.map(lambda _: here, specs, is_leaf=_is_spec)

    def one(keys: tuple[Any, ...], spec: llama.Spec, sharding: Sharding) -> jax.Array:
        parameter = tuple(key.key for key in keys)
        held: dict[tensors.Bounds, list[Any]] = {}  # of devices
        for device, index in sharding.addressable_devices_indices_map(spec.shape).items():
            bounds = tuple(part.indices(size)[:2] for part, size in zip(index or (), spec.shape, strict=True))
            held.setdefault(bounds, []).append(device)
        parts = []
        for bounds, devices in held.items():
            part = _read(source, parameter, bounds, _DTYPES[dtype], devices[0])
            parts += [part, *(jax.device_put(part, device) for device in devices[1:])]
        return jax.make_array_from_single_device_arrays(spec.shape, sharding, parts)

    return jax.tree_util.tree_map_with_path(one, specs, shardings, is_leaf=_is_spec)


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
    an error (`RunError` where the disk is full) leaves the folder as it was. Where there are several processes all must
    call, and the first one writes.
    """
    named = tensors.of(config)

    def on_host(name: str) -> np.ndarray:
        return _on_host(parameters, named[name], _DTYPES[dtype])

    if not _writes(named, on_host):
        return
    shards = _split(named, _DTYPES[dtype].itemsize, shard_bytes)
    with atomic.beside(folder / "model") as staged, atomic.writing(folder):
        staged.mkdir()
        weight_map = {}
        for number, names in enumerate(shards, 1):
            file = tensors.SINGLE if len(shards) == 1 else f"model-{number:05d}-of-{len(shards):05d}.safetensors"
            shapes = {name: named[name].shape for name in names}
            safetensors_file.write(staged / file, shapes, _DTYPES[dtype], on_host)
            weight_map.update(dict.fromkeys(names, file))
        if len(shards) > 1:
            size = sum(math.prod(tensor.shape) for tensor in named.values()) * _DTYPES[dtype].itemsize
            index = {"metadata": {"total_size": size}, "weight_map": weight_map}
            (staged / tensors.INDEX).write_text(documents.dumps(index, indent=2) + "\n", encoding="utf-8")
        hf_config.write(config, staged, eos_ids, bos_id, dtype)
        _move_in(staged, folder)


def save_adapters(
    folder: Path, config: llama.Config, parameters: llama.Parameters, base: str, revision: str | None = None
) -> None:
    """Write the adapters among the parameters as PEFT reads them, float32; the folder is there whole or not at all.

    `base` is a folder, or with a revision a name on the Hub: the model that they belong to. Where there are several
    processes all must call, and the first one writes.
    """
    assert config.lora is not None
    named = tensors.of_adapters(config)

    def on_host(name: str) -> np.ndarray:
        return _on_host(parameters, named[name], _DTYPES["float32"])

    if not _writes(named, on_host):
        return
    about = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "revision": revision,
        "r": config.lora.rank,
        "lora_alpha": config.lora.alpha,
        "lora_dropout": 0.0,
        "target_modules": list(config.lora.targets),
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
    }
    shapes = {name: tensor.shape for name, tensor in named.items()}
    with folders.replacing(folder) as staged:
        safetensors_file.write(staged / "adapter_model.safetensors", shapes, _DTYPES["float32"], on_host)
        (staged / "adapter_config.json").write_text(documents.dumps(about, indent=2) + "\n", encoding="utf-8")


def _writes(names: Iterable[str], on_host: Callable[[str], np.ndarray]) -> bool:
    """Whether this process is the one that writes; another has then taken its part in each tensor's gathering."""
    if jax.process_index() == 0:
        return True
    for name in names:
        on_host(name)
    return False


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
    files = [path] if path.suffix == ".gguf" else [path / "config.json", *tensors.weight_files(path)]
    digest = hashlib.sha256()
    for file in files:
        digest.update(bytes.fromhex(_file_digest(file)))
    return digest.hexdigest()


def _file_digest(file: Path) -> str:
    try:
        return digests.of(file)
    except OSError as error:
        raise ModelError(f"{file}: cannot be read: {error.strerror}") from error


def _read(
    source: Source, parameter: tuple[str, ...], bounds: tensors.Bounds, dtype: np.dtype, device: Any
) -> jax.Array:
    """A part of a parameter on a device, finished: a copy under way would keep more than a block on the host."""
    shape = tuple(stop - start for start, stop in bounds)
    if math.prod(shape) * dtype.itemsize <= tensors.BLOCK_BYTES:
        whole = np.empty(shape, dtype)
        for starts, block in tensors.blocks(source, parameter, bounds):
            whole[tuple(slice(start, start + size) for start, size in zip(starts, block.shape, strict=True))] = block
        return jax.device_put(whole, device).block_until_ready()
    with jax.default_device(device):
        part = jnp.zeros(shape, dtype)
    for starts, block in tensors.blocks(source, parameter, bounds):
        part = _filled(part, jax.device_put(block, device), starts).block_until_ready()
    return part


@partial(jax.jit, donate_argnums=0)
def _filled(part: jax.Array, block: jax.Array, starts: list[int]) -> jax.Array:
    return jax.lax.dynamic_update_slice(part, block.astype(part.dtype), starts)


def _on_host(parameters: llama.Parameters, tensor: Tensor, dtype: np.dtype) -> np.ndarray:
    """A tensor as the files lay it, whatever devices and processes it is spread over: all of them take part."""
    if tensor.layer is None:
        found = jnp.asarray(parameters[tensor.parameter[0]]).astype(dtype)
    else:
        part, name = tensor.parameter
        found = _layer(parameters[part][name], tensor.layer, dtype)
    if not found.is_fully_addressable:
        return np.asarray(multihost_utils.process_allgather(found, tiled=True))
    # Under another handle: an array that is asked for its numbers keeps them on the host for as long as it lives.
    parts = [shard.data for shard in found.addressable_shards]
    return np.asarray(jax.make_array_from_single_device_arrays(found.shape, found.sharding, parts))


@partial(jax.jit, static_argnums=2)
def _layer(stacked: jax.Array, layer: int, dtype: np.dtype) -> jax.Array:
    return stacked[layer].T.astype(dtype)


def _split(named: dict[str, Tensor], itemsize: int, shard_bytes: float) -> list[list[str]]:
    """Names in order, cut wherever the next tensor would make a file larger than `shard_bytes`."""
    shards: list[list[str]] = [[]]
    filled = 0
    for name, tensor in named.items():
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
    for stale in (*folder.glob("model*.safetensors"), folder / tensors.INDEX):
        stale.unlink(missing_ok=True)
    for name in sorted(names):
        atomic.sync(staged / name)
        os.replace(staged / name, folder / name)
    atomic.sync(folder)


def _is_spec(node: Any) -> bool:
    return isinstance(node, llama.Spec)
