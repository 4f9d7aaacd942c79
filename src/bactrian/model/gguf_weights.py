"""GGUF files: what architecture one holds, and its tensors de-quantized, under the names and layout of Hugging Face.

The container is read by a few lines of our own: `gguf.GGUFReader` makes an array object for every string of the
vocabulary, which takes seconds, and maps the whole file.
"""

import math
import mmap
import struct
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from gguf import GGML_QUANT_SIZES, GGUF_DEFAULT_ALIGNMENT, GGMLQuantizationType, GGUFValueType
from gguf.quants import dequantize

from bactrian.errors import ModelError
from bactrian.model import llama

_SCALARS = {
    GGUFValueType.UINT8: "<u1",
    GGUFValueType.INT8: "<i1",
    GGUFValueType.UINT16: "<u2",
    GGUFValueType.INT16: "<i2",
    GGUFValueType.UINT32: "<u4",
    GGUFValueType.INT32: "<i4",
    GGUFValueType.FLOAT32: "<f4",
    GGUFValueType.BOOL: "?",
    GGUFValueType.UINT64: "<u8",
    GGUFValueType.INT64: "<i8",
    GGUFValueType.FLOAT64: "<f8",
}

# Names in a GGUF file → Hugging Face's.
_WHOLE = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
_IN_LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_ROPE_FACTORS = "rope_freqs.weight"
# What llama.cpp's converter assumes of Llama 3 models that do not say otherwise; the file holds only its outcome.
_LLAMA3_LOW, _LLAMA3_HIGH, _LLAMA3_POSITIONS = 1.0, 4.0, 8192


class Stored(NamedTuple):
    """One tensor in the file: its name there, its shape as Hugging Face has it, its type and its first byte."""

    name: str
    shape: tuple[int, ...]
    type: GGMLQuantizationType
    start: int


class File:
    """An opened GGUF file: its metadata (but for lists of strings), its `Config`, and its tensors one by one."""

    def __init__(self, path: Path):
        self.path = path
        try:
            with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                self.metadata, found = _Scanner(path, data).header()
        except OSError as error:
            raise ModelError(f"{path}: cannot be read: {error.strerror}") from error
        except (struct.error, ValueError, UnicodeDecodeError) as error:
            raise ModelError(f"{path}: not a GGUF file, or cut in its header; download it again") from error
        self.architecture: Literal["llama", "qwen2", "qwen3"] = self._architecture()
        self._factors = found.pop(_ROPE_FACTORS, None)
        self.tensors = {self._hugging_face_name(name): stored for name, stored in found.items()}
        self.config = self._config()

    def read(self, name: str) -> np.ndarray:
        """The tensor of a Hugging Face name in float32, in Hugging Face's layout."""
        stored = self.tensors[name]
        values = self._read(stored)
        projection = name.rsplit(".", 2)[-2]
        if self.architecture == "llama" and projection in ("q_proj", "k_proj"):
            # llama.cpp keeps the two parts of a rotated pair side by side, Hugging Face half a head apart.
            heads = self.config.num_heads if projection == "q_proj" else self.config.num_kv_heads
            pairs = values.reshape(heads, -1, 2, *values.shape[1:])
            values = pairs.swapaxes(1, 2).reshape(values.shape)
        return values

    def _read(self, stored: Stored) -> np.ndarray:
        row_bytes = _row_bytes(stored)
        raw = np.fromfile(self.path, np.uint8, math.prod(stored.shape[:-1]) * row_bytes, offset=stored.start)
        try:
            return dequantize(raw.reshape(*stored.shape[:-1], row_bytes), stored.type).reshape(stored.shape)
        except NotImplementedError as error:
            raise ModelError(
                f"{self.path}: tensor {stored.name}: the type {stored.type.name} cannot be de-quantized; "
                f"take a file of another type, such as Q8_0 or BF16"
            ) from error

    def _hugging_face_name(self, name: str) -> str:
        parts = name.split(".")
        if name in _WHOLE:
            return _WHOLE[name]
        if len(parts) == 4 and parts[0] == "blk" and parts[2] in _IN_LAYER:
            return f"model.layers.{parts[1]}.{_IN_LAYER[parts[2]]}.{parts[3]}"
        raise ModelError(f"{self.path}: tensor {name} belongs to no architecture that is supported")

    def _config(self) -> llama.Config:
        heads = self._count("attention.head_count")
        kv_heads = self._count("attention.head_count_kv", heads)
        hidden_size = self._count("embedding_length")
        head_dim = self._count("attention.key_length", hidden_size // heads)
        same = {"attention.value_length": head_dim, "rope.dimension_count": head_dim, "expert_count": 0}
        for key, value in same.items():
            if self._value(key, value) != value:
                raise ModelError(f"{self.path}: {key} is {self._value(key, value)}; only {value} is supported here")
        embedding = self.tensors.get("model.embed_tokens.weight")
        if embedding is None:
            raise ModelError(f"{self.path}: tensor token_embd.weight is missing")
        first_layer = "model.layers.0.self_attn."
        qkv_bias = f"{first_layer}q_proj.bias" in self.tensors
        output_bias = f"{first_layer}o_proj.bias" in self.tensors
        window = self._value("attention.sliding_window", 0)
        theta = _shortest(self._value("rope.freq_base", 10_000.0))
        family: Literal["llama", "mistral", "qwen2", "qwen3"] = self.architecture
        if family == "llama":  # llama.cpp's one name for what are three architectures at Hugging Face
            family = "qwen2" if qkv_bias and not output_bias else "mistral" if window else "llama"
        return llama.Config(
            vocab_size=embedding.shape[0],
            hidden_size=hidden_size,
            intermediate_size=self._count("feed_forward_length"),
            num_layers=self._count("block_count"),
            num_heads=heads,
            num_kv_heads=kv_heads,
            head_dim=head_dim,
            max_positions=self._count("context_length"),
            rms_norm_eps=_shortest(self._value("attention.layer_norm_rms_epsilon")),
            rope_theta=theta,
            rope_scaling=self._rope_scaling(theta, head_dim),
            tied_embeddings="lm_head.weight" not in self.tensors,
            qkv_bias=qkv_bias,
            output_bias=output_bias,
            qk_norm=f"{first_layer}q_norm.weight" in self.tensors,
            sliding_window=int(window) or None,
            architecture=family,
        )

    def _architecture(self) -> Literal["llama", "qwen2", "qwen3"]:
        name = self.metadata.get("general.architecture")
        if name == "llama" or name == "qwen2" or name == "qwen3":
            return name
        raise ModelError(f"{self.path}: architecture {name} is not supported; supported are llama, qwen2, qwen3")

    def _value(self, key: str, default: Any = None) -> Any:
        value = self.metadata.get(f"{self.architecture}.{key}", default)
        if value is None:
            raise ModelError(f"{self.path}: {self.architecture}.{key} is missing")
        return value

    def _count(self, key: str, default: int | None = None) -> int:
        values = set(np.atleast_1d(self._value(key, default)).tolist())
        if len(values) > 1:
            raise ModelError(f"{self.path}: {key} differs between layers, which is not supported")
        value = values.pop()
        if not isinstance(value, int) or value < 1:
            raise ModelError(f"{self.path}: {key} is {value!r}; it has to be a whole number above 0")
        return value

    def _rope_scaling(self, theta: float, head_dim: int) -> llama.RopeScaling | None:
        kind = self._value("rope.scaling.type", "none")
        if kind not in ("none", "llama3") and (kind != "linear" or self._value("rope.scaling.factor", 1.0) != 1.0):
            raise ModelError(f"{self.path}: rope scaling {kind!r} is not supported; supported are none and llama3")
        if self._factors is None:
            return None
        factors = self._read(self._factors)
        scaling = llama.RopeScaling(_shortest(factors.max()), _LLAMA3_LOW, _LLAMA3_HIGH, _LLAMA3_POSITIONS)
        if factors.shape != (head_dim // 2,) or not np.allclose(factors, _divisors(theta, head_dim, scaling), 1e-3):
            raise ModelError(f"{self.path}: {_ROPE_FACTORS} is not the scaling of Llama 3, which alone is supported")
        return scaling


class _Scanner:
    """Walks through the bytes of a GGUF header: little-endian, versions 2 and 3."""

    def __init__(self, path: Path, data: mmap.mmap):
        self._path = path
        self._data = data
        self._at = 0

    def header(self) -> tuple[dict[str, Any], dict[str, Stored]]:
        magic, version = self._data[:4], struct.unpack_from("<I", self._data, 4)[0]
        if magic != b"GGUF" or version not in (2, 3):
            raise ModelError(f"{self._path}: not a little-endian GGUF file of version 2 or 3")
        self._at = 8
        tensors, keys = self._scalar("<u8"), self._scalar("<u8")
        metadata = {self._string(): self._typed_value() for _ in range(keys)}
        found = [self._tensor() for _ in range(tensors)]
        alignment = metadata.get("general.alignment", GGUF_DEFAULT_ALIGNMENT)
        data_start = -(-self._at // alignment) * alignment
        placed = {stored.name: stored._replace(start=data_start + stored.start) for stored in found}
        for stored in placed.values():
            stop = stored.start + math.prod(stored.shape[:-1]) * _row_bytes(stored)
            if stop > len(self._data):
                raise ModelError(
                    f"{self._path}: the file is cut: tensor {stored.name} ends at byte {stop:,} "
                    f"of {len(self._data):,}; download it again"
                )
        return metadata, placed

    def _scalar(self, dtype: str) -> Any:
        return self._numbers(dtype, 1)[0].item()

    def _numbers(self, dtype: str, count: int) -> np.ndarray:
        size = np.dtype(dtype).itemsize * count
        raw = self._data[self._at : self._at + size]
        self._at += size
        return np.frombuffer(raw, dtype, count)

    def _string(self) -> str:
        length = self._scalar("<u8")
        raw = self._data[self._at : self._at + length]
        self._at += length
        return raw.decode("utf-8")

    def _typed_value(self) -> Any:
        kind = GGUFValueType(self._scalar("<u4"))
        if kind == GGUFValueType.STRING:
            return self._string()
        if kind != GGUFValueType.ARRAY:
            return self._scalar(_SCALARS[kind])
        inner, count = GGUFValueType(self._scalar("<u4")), self._scalar("<u8")
        if inner in _SCALARS:
            return self._numbers(_SCALARS[inner], count)
        if inner != GGUFValueType.STRING:
            raise ModelError(f"{self._path}: a list of lists in the metadata is not supported")
        for _ in range(count):  # the vocabulary, which is the tokenizer's
            self._at += 8 + struct.unpack_from("<Q", self._data, self._at)[0]
        return None

    def _tensor(self) -> Stored:
        name = self._string()
        sizes = self._numbers("<u8", self._scalar("<u4")).tolist()
        kind, start = self._scalar("<u4"), self._scalar("<u8")
        if kind not in set(GGMLQuantizationType):
            raise ModelError(f"{self._path}: tensor {name}: type {kind} is not known; update the gguf package")
        stored = Stored(name, tuple(reversed(sizes)), GGMLQuantizationType(kind), start)
        if not sizes or sizes[0] % GGML_QUANT_SIZES[stored.type][0]:
            raise ModelError(f"{self._path}: tensor {name}: rows of {sizes[:1]} do not fit the type {stored.type.name}")
        return stored


def _row_bytes(stored: Stored) -> int:
    block, size = GGML_QUANT_SIZES[stored.type]
    return stored.shape[-1] // block * size


def _shortest(value: Any) -> float:
    """The shortest decimal that is the same float32: 1e-05 where the file holds 9.999999747378752e-06."""
    return float(str(np.float32(value)))


def _divisors(theta: float, head_dim: int, scaling: llama.RopeScaling) -> np.ndarray:
    """What Llama 3's scaling divides each rotary frequency by."""
    frequencies = theta ** -(np.arange(0, head_dim, 2) / head_dim)
    turns = scaling.original_positions * frequencies / (2 * math.pi)
    low, high = scaling.low_frequency_factor, scaling.high_frequency_factor
    kept = np.clip((turns - low) / (high - low), 0.0, 1.0)
    return 1 / (kept + (1 - kept) / scaling.factor)
