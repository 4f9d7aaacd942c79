"""The tensors of a model's files, safetensors or GGUF, under Hugging Face's names, and which parameters they are.

A file is never read whole: any part of a parameter is read by itself, a block at a time.
"""

import json
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from bactrian.errors import ModelError
from bactrian.model import gguf_weights, hf_config, llama, safetensors_file

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"

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

BLOCK_BYTES = 1 << 26  # of float32 read at once: enough for a disk, little beside a model

Bounds = Sequence[tuple[int, int]]  # of a part of an array: start and stop on each axis


class Tensor(NamedTuple):
    """A tensor of the files: which of our parameters it is, which layer of it, and its shape in the files."""

    parameter: tuple[str, ...]
    layer: int | None
    shape: tuple[int, ...]


class Source(NamedTuple):
    """An opened model: its architecture; by Hugging Face name its tensors' shapes, rows of one read, and its file."""

    config: llama.Config
    shapes: dict[str, tuple[int, ...]]
    rows: Callable[[str, slice], np.ndarray]
    file_of: Callable[[str], Path]


def of(config: llama.Config) -> dict[str, Tensor]:
    """Every tensor of the files by Hugging Face name, in the order that they are written in; adapters are merged."""
    assert config.lora is None, "adapters are merged before a model is written"
    specs = llama.specs(config)
    layers = specs.pop("layers")
    tensors = {_WHOLE["embedding"]: Tensor(("embedding",), None, specs.pop("embedding").shape)}
    for layer in range(config.num_layers):
        for name, spec in layers.items():
            tensors[f"model.layers.{layer}.{_IN_LAYER[name]}"] = Tensor(("layers", name), layer, spec.shape[:0:-1])
    return tensors | {_WHOLE[name]: Tensor((name,), None, spec.shape) for name, spec in specs.items()}


def of_adapters(config: llama.Config) -> dict[str, Tensor]:
    """Every tensor of a model's adapters, by the names that PEFT gives them."""
    tensors = {}
    for layer in range(config.num_layers):
        for parameter, spec in llama.specs(config)["adapters"].items():
            matrix, _, side = parameter.rpartition("_")
            module = _IN_LAYER[matrix].removesuffix(".weight")
            name = f"base_model.model.model.layers.{layer}.{module}.lora_{side.upper()}.weight"
            tensors[name] = Tensor(("adapters", parameter), layer, spec.shape[:0:-1])
    return tensors


def open_model(path: Path) -> Source:
    """The tensors in a Hugging Face folder or a .gguf file: every one that the architecture has is there in its shape.

    None of them is read. Raises `ModelError`, naming the file and the tensor.
    """
    source = _open(path)
    _check(path, source)
    return source


def blocks(source: Source, parameter: tuple[str, ...], bounds: Bounds) -> Iterator[tuple[list[int], np.ndarray]]:
    """A part of a parameter, in blocks of up to `BLOCK_BYTES`: each with where it begins in the part.

    A block has the parameter's axes, in the order of its own memory, and the dtype that it is stored in.
    """
    if parameter[0] != "layers":
        for row, values in _rows(source, _WHOLE[parameter[0]], bounds[0], bounds[1:]):
            yield [row] + [0] * (values.ndim - 1), values
        return
    (first, stop), *others, outputs = bounds
    for layer in range(first, stop):
        name = f"model.layers.{layer}.{_IN_LAYER[parameter[1]]}"
        for row, values in _rows(source, name, outputs, others):
            yield [layer - first, *([0] * len(others)), row], values.T[None]


def _rows(source: Source, name: str, rows: tuple[int, int], others: Bounds) -> Iterator[tuple[int, np.ndarray]]:
    """Some rows of a tensor in the files' layout, cut on its other axes, a block of them at a time."""
    together = max(1, BLOCK_BYTES // (4 * math.prod(stop - start for start, stop in others)))
    for start in range(*rows, together):
        values = source.rows(name, slice(start, min(start + together, rows[1])))
        yield start - rows[0], values[(slice(None), *(slice(*other) for other in others))]


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a folder. Raises `ModelError`."""
    index = folder / INDEX
    if (folder / SINGLE).is_file():
        return [folder / SINGLE]
    if not index.is_file():
        raise ModelError(f"{folder}: no {SINGLE} and no {INDEX}; other formats of weights are not read")
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise ModelError(f"{index}: not the index of a model's weights") from error
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise ModelError(f"{folder}: {', '.join(missing)} of {INDEX} not found; download or export it again")
    return [folder / name for name in names]


def _open(path: Path) -> Source:
    if path.suffix == ".gguf":
        file = gguf_weights.File(path)
        shapes = {name: stored.shape for name, stored in file.tensors.items()}
        return Source(file.config, shapes, file.rows, lambda name: path)
    stored = {name: entry for file in weight_files(path) for name, entry in safetensors_file.entries(file).items()}
    return Source(
        hf_config.read(path),
        {name: entry.shape for name, entry in stored.items()},
        lambda name, rows: safetensors_file.rows(stored[name], rows),
        lambda name: stored[name].path,
    )


def _check(path: Path, source: Source) -> None:
    expected = of(source.config)
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
