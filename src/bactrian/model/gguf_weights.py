"""The model inside a GGUF file: its architecture, and its tensors de-quantized, as Hugging Face names and lays them."""

import math
from pathlib import Path
from typing import Any, Literal

import numpy as np
from gguf.quants import dequantize

from bactrian import gguf_file
from bactrian.errors import ModelError
from bactrian.gguf_file import Stored
from bactrian.model import llama

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


class File:
    """An opened GGUF file: its metadata (but for lists of strings), its `Config`, and its tensors one by one."""

    def __init__(self, path: Path):
        self.path = path
        self.metadata, found = gguf_file.read(path, with_texts=False)
        self.architecture: Literal["llama", "qwen2", "qwen3"] = self._architecture()
        self._factors = found.pop(_ROPE_FACTORS, None)
        self.tensors = {self._hugging_face_name(name): stored for name, stored in found.items()}
        self.config = self._config()

    def rows(self, name: str, wanted: slice) -> np.ndarray:
        """Rows of the tensor of a Hugging Face name in float32, in Hugging Face's layout."""
        stored = self.tensors[name]
        projection = name.rsplit(".", 2)[-2]
        if self.architecture != "llama" or projection not in ("q_proj", "k_proj"):
            return self._read(stored, wanted)
        # llama.cpp keeps the two parts of a rotated pair side by side, Hugging Face half a head apart.
        heads = self.config.num_heads if projection == "q_proj" else self.config.num_kv_heads
        order = np.arange(stored.shape[0]).reshape(heads, -1, 2).swapaxes(1, 2).reshape(-1)
        return self._read(stored, order[wanted])

    def _read(self, stored: Stored, wanted: slice | np.ndarray = slice(None)) -> np.ndarray:
        raw = np.memmap(self.path, np.uint8, "r", stored.start, (math.prod(stored.shape[:-1]), stored.row_bytes))
        # A vector is one row of bytes.
        raw = raw[wanted] if len(stored.shape) > 1 else raw
        try:
            values = dequantize(raw, stored.type)
        except NotImplementedError as error:
            raise ModelError(
                f"{self.path}: tensor {stored.name}: the type {stored.type.name} cannot be de-quantized; "
                f"take a file of another type, such as Q8_0 or BF16"
            ) from error
        return values if len(stored.shape) > 1 else values.reshape(-1)[wanted]

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
