"""The tensors of a model's files, safetensors or GGUF, under Hugging Face's names, and which parameters they are.

A file is never read whole: any part of a parameter is read by itself, a block at a time.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
from pydantic import BaseModel, ConfigDict, TypeAdapter

from bactrian.errors import ModelError
from bactrian.files import documents, schemas
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
    """An opened model: its architecture; by Hugging Face name its tensors' shapes, rows of one read, and its file; and
    what a person should know of it."""

    config: llama.Config
    shapes: dict[str, tuple[int, ...]]
    rows: Callable[[str, slice], np.ndarray]
    file_of: Callable[[str], Path]
    remarks: tuple[str, ...] = ()


class _Index(BaseModel):
    weight_map: dict[str, str]
    model_config = ConfigDict(strict=True)


_INDEX = TypeAdapter(_Index)
_FREQUENCIES = "rotary_emb.inv_freq"  # written out by old versions of transformers


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
    """The tensors in a Hugging Face folder or a .gguf file: every one that the architecture has is there in its shape
    and in a dtype that can be read.

    None of them is read, but for an embedding and an unembedding that are said to be one, and may not be. Raises
    `ModelError`, naming the file and the tensor.
    """
    if path.suffix == ".gguf":
        file = gguf_weights.File(path)
        shapes = {name: stored.shape for name, stored in file.tensors.items()}
        source = Source(file.config, shapes, file.rows, lambda name: path)
        _check(path, source)
        return source
    stored = _stored(path)
    shapes = {name: entry.shape for name, entry in stored.items()}
    described = hf_config.read(path / "config.json")
    source = Source(
        described.config,
        shapes,
        lambda name, rows: safetensors_file.rows(stored[name], rows),
        lambda name: stored[name].path,
        described.remarks,
    )
    source = _untied(path, source)
    if described.quantization is None:
        _check(path, source)
        return source
    try:
        _check(path, source)
    except ModelError as error:
        raise ModelError(
            f"{path}: the weights are quantized ({described.quantization}); take the model that was not quantized"
        ) from error
    left = (
        f"{path}: config.json says that the weights are quantized ({described.quantization}); they are floats, and read"
    )
    return source._replace(remarks=(*source.remarks, left))


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
        values = values[(slice(None), *(slice(*other) for other in others))]
        if not _is_finite(values):
            raise ModelError(_not_finite(source, name, values, [start, *(first for first, _ in others)]))
        yield start - rows[0], values


def _is_finite(values: np.ndarray) -> bool:
    """Whether these weights are finite numbers, in float32 too."""
    if values.dtype.itemsize == 2:  # numpy looks at the bits of these many times as fast as at the numbers
        infinity = np.full((), np.inf, values.dtype).view(np.uint16)
        return bool(values.view(np.int16).max() < infinity and values.view(np.uint16).max() < infinity + (1 << 15))
    with np.errstate(over="ignore"):
        return bool(np.isfinite(values.astype(np.float32, copy=False)).all())


def _not_finite(source: Source, name: str, values: np.ndarray, at: list[int]) -> str:
    with np.errstate(over="ignore"):
        first = np.argwhere(~np.isfinite(values.astype(np.float32)))[0]
    found = values[tuple(first)]
    where = ", ".join(str(start + index) for start, index in zip(at, first.tolist(), strict=True))
    said = f"the weight at [{where}] is {found}, which is no finite number"
    return f"{source.file_of(name)}: tensor {name}: {said}; take the model as it was before"


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a folder. Raises `ModelError`."""
    return [folder / name for name in sorted(set(_index(folder).values()))] or [folder / SINGLE]


def _index(folder: Path) -> dict[str, str]:
    """Which file each tensor is in, by a folder's index; empty where all are in `SINGLE`. Raises `ModelError`."""
    index = folder / INDEX
    if (folder / SINGLE).is_file():
        return {}
    if not index.is_file():
        raise ModelError(f"{folder}: no {SINGLE} and no {INDEX}; other formats of weights are not read")
    where = f"{index}: not the index of a model's weights"
    advice = "it is not the index of a model's weights: download or export the model again"
    found = schemas.validate(_INDEX, documents.read_json(index, ModelError, advice), where, ModelError).weight_map
    odd = next((name for name in found.values() if Path(name).name != name), None)
    if odd is not None or not found:
        raise ModelError(
            f"{where}: {odd!r} is no name of a file beside it" if found else f"{where}: it names no tensor"
        )
    missing = [name for name in sorted({*found.values()}) if not (folder / name).is_file()]
    if missing:
        raise ModelError(f"{folder}: {', '.join(missing)} of {INDEX} not found; download or export it again")
    return found


def _stored(folder: Path) -> dict[str, safetensors_file.Stored]:
    """Every tensor in a folder's files, where its index says that it is. Raises `ModelError`."""
    index, found = _index(folder), {}
    for file in weight_files(folder):
        for name, entry in safetensors_file.entries(file).items():
            if index and index.get(name) != file.name and not name.endswith(_FREQUENCIES):
                said = f"puts it in {index[name]}" if name in index else "does not name it"
                raise ModelError(
                    f"{file}: tensor {name} is here, and {INDEX} {said}; download or export the model again"
                )
            found[name] = entry
    for name, file in index.items():
        if name not in found:
            raise ModelError(f"{folder / file}: tensor {name} is not here, where {INDEX} puts it; download it again")
    return found


def _untied(path: Path, source: Source) -> Source:
    """The source of a model whose config says that it is tied, with the unembedding that its files hold beside it: like
    `transformers` 5 it has its own where that is another matrix."""
    one, other = _WHOLE["embedding"], _WHOLE["unembedding"]
    if not source.config.tied_embeddings or not {one, other} <= {*source.shapes} or _is_same(source, one, other):
        return source
    remark = (
        f"{path}: config.json says tie_word_embeddings, and {other} is another matrix than the embedding: it is used"
    )
    config = replace(source.config, tied_embeddings=False)
    return source._replace(config=config, remarks=(*source.remarks, remark))


def _is_same(source: Source, one: str, other: str) -> bool:
    if source.shapes[one] != source.shapes[other]:
        return False
    rows, columns = source.shapes[one][0], math.prod(source.shapes[one][1:])
    together = max(1, BLOCK_BYTES // (4 * columns))
    parts = (slice(start, start + together) for start in range(0, rows, together))
    return all(np.array_equal(source.rows(one, part), source.rows(other, part)) for part in parts)


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
        source.rows(name, slice(0, 1))  # refuses a dtype that cannot be read
    # A tied unembedding may be written out a second time.
    known = {*expected, _WHOLE["unembedding"]}
    for name in source.shapes:
        if name not in known and not name.endswith(_FREQUENCIES):
            raise ModelError(f"{source.file_of(name)}: tensor {name} does not belong to {source.config.architecture}")
