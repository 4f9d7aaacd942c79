"""The model inside a GGUF file: its architecture, and its tensors de-quantized, as Hugging Face names and lays them."""

import math
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from gguf.quants import dequantize
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from bactrian import gguf_file
from bactrian.errors import ModelError
from bactrian.files import schemas
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
_LARGEST_FACTOR = 1e6

_Count = Annotated[int, Field(ge=1, lt=2**31)]
_Positive = Annotated[float, Field(gt=0, lt=3.4e38)]


class Hyperparameters(BaseModel):
    """The keys of an architecture that are computed, by their names after it."""

    model_config = ConfigDict(frozen=True, strict=True, extra="allow", allow_inf_nan=False)

    block_count: Annotated[int, Field(ge=1, le=10_000)]
    context_length: _Count
    embedding_length: _Count
    feed_forward_length: _Count | list[_Count]
    head_count: _Count | list[_Count] = Field(alias="attention.head_count")
    head_count_kv: _Count | list[_Count] | None = Field(default=None, alias="attention.head_count_kv")
    key_length: _Count | None = Field(default=None, alias="attention.key_length")
    value_length: _Count | None = Field(default=None, alias="attention.value_length")
    sliding_window: Annotated[int, Field(ge=0, lt=2**31)] = Field(default=0, alias="attention.sliding_window")
    epsilon: _Positive = Field(alias="attention.layer_norm_rms_epsilon")
    rotated: _Count | None = Field(default=None, alias="rope.dimension_count")
    theta: _Positive = Field(default=10_000.0, alias="rope.freq_base")
    scaling_type: str | None = Field(default=None, alias="rope.scaling.type")
    scaling_factor: float | None = Field(default=None, alias="rope.scaling.factor")
    scale_linear: float | None = Field(default=None, alias="rope.scale_linear")
    vocab_size: _Count | None = None


_HYPERPARAMETERS = TypeAdapter(Hyperparameters)
# Keys that say nothing of what is computed here: how far a model was trained, how its file was made.
_SAYS_NOTHING = (
    *("rope.scaling.original_context_length", "rope.scaling.finetuned", "tensor_data_layout"),
    "attention.layer_norm_epsilon",  # of norms that these architectures do not have
)
# Values of other keys with which nothing is computed otherwise; of any other key they are 0 and 1.
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "attention.causal": (True,),
    **dict.fromkeys(("rope.scaling.attn_factor", "rope.scaling.yarn_attn_factor"), (1,)),
    **dict.fromkeys(("rope.scaling.yarn_beta_fast", "rope.scaling.yarn_beta_slow"), (32, 1)),
    **dict.fromkeys(("attention.scale", "attention.clamp_kqv", "attention.max_alibi_bias", "expert_count"), (0,)),
    **dict.fromkeys(("attn_logit_softcapping", "final_logit_softcapping", "use_parallel_residual"), (0,)),
}


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
        given = self._hyperparameters()
        heads = self._one("attention.head_count", given.head_count)
        kv_heads = self._one("attention.head_count_kv", given.head_count_kv or heads)
        hidden_size = given.embedding_length
        if heads % kv_heads:
            raise ModelError(f"{self.path}: {heads} attention heads do not share {kv_heads} key/value heads evenly")
        if given.key_length is None and hidden_size % heads:
            raise ModelError(f"{self.path}: embedding_length {hidden_size} does not divide into {heads} heads")
        head_dim = given.key_length or hidden_size // heads
        for key, value in {"attention.value_length": given.value_length, "rope.dimension_count": given.rotated}.items():
            if value not in (None, head_dim):
                raise ModelError(f"{self.path}: {key} is {value}; only {head_dim} is supported here")
        if head_dim % 2:
            raise ModelError(f"{self.path}: heads of {head_dim} are odd; rotary positions need an even size")
        embedding = self.tensors.get("model.embed_tokens.weight")
        if embedding is None:
            raise ModelError(f"{self.path}: tensor token_embd.weight is missing")
        if given.vocab_size not in (None, embedding.shape[0]):
            rows = embedding.shape[0]
            raise ModelError(f"{self.path}: vocab_size is {given.vocab_size}, and token_embd.weight has {rows} rows")
        first_layer = "model.layers.0.self_attn."
        qkv_bias = f"{first_layer}q_proj.bias" in self.tensors
        output_bias = f"{first_layer}o_proj.bias" in self.tensors
        theta = _shortest(given.theta)
        family: Literal["llama", "mistral", "qwen2", "qwen3"] = self.architecture
        if family == "llama":  # llama.cpp's one name for what are three architectures at Hugging Face
            family = "qwen2" if qkv_bias and not output_bias else "mistral" if given.sliding_window else "llama"
        return llama.Config(
            vocab_size=embedding.shape[0],
            hidden_size=hidden_size,
            intermediate_size=self._one("feed_forward_length", given.feed_forward_length),
            num_layers=given.block_count,
            num_heads=heads,
            num_kv_heads=kv_heads,
            head_dim=head_dim,
            max_positions=given.context_length,
            rms_norm_eps=_shortest(given.epsilon),
            rope_theta=theta,
            rope_scaling=self._rope_scaling(given, theta, head_dim),
            tied_embeddings="lm_head.weight" not in self.tensors,
            qkv_bias=qkv_bias,
            output_bias=output_bias,
            qk_norm=f"{first_layer}q_norm.weight" in self.tensors,
            sliding_window=given.sliding_window or None,
            architecture=family,
        )

    def _architecture(self) -> Literal["llama", "qwen2", "qwen3"]:
        name = self.metadata.get("general.architecture")
        if name == "llama" or name == "qwen2" or name == "qwen3":
            return name
        raise ModelError(f"{self.path}: architecture {name} is not supported; supported are llama, qwen2, qwen3")

    def _hyperparameters(self) -> Hyperparameters:
        """What the file says of the architecture. Whatever else it says of it is refused, unless it changes nothing."""
        own = f"{self.architecture}."
        stated = {key.removeprefix(own): value for key, value in self.metadata.items() if key.startswith(own)}
        given = schemas.validate(_HYPERPARAMETERS, stated, str(self.path), ModelError, own)
        for key, value in (given.model_extra or {}).items():
            if key not in _SAYS_NOTHING and value not in _NEUTRAL.get(key, (0, 1)):
                raise ModelError(f"{self.path}: {own}{key} is {value!r}, which is not supported; take another model")
        return given

    def _one(self, key: str, values: int | list[int]) -> int:
        """A count that may be stated once for each layer."""
        each = {*values} if isinstance(values, list) else {values}
        if len(each) != 1:
            raise ModelError(f"{self.path}: {self.architecture}.{key} differs between layers, which is not supported")
        return each.pop()

    def _rope_scaling(self, given: Hyperparameters, theta: float, head_dim: int) -> llama.RopeScaling | None:
        # llama.cpp: linear where no type is stated, and the factor by its old name where it is not there by its own.
        kind = given.scaling_type or "linear"
        factor = given.scaling_factor if given.scaling_factor is not None else given.scale_linear
        llama3 = kind == "llama3" and self._factors is not None
        if not llama3 and kind != "none" and (kind != "linear" or factor not in (None, 0, 1)):
            said = f"rope scaling {kind!r}" + ("" if factor is None else f" by {factor:g}")
            raise ModelError(f"{self.path}: {said} is not supported; supported are none and llama3")
        if self._factors is None:
            return None
        factors = self._read(self._factors).astype(np.float64)
        if factors.shape != (head_dim // 2,) or not np.all((factors >= 1) & (factors < _LARGEST_FACTOR)):
            raise ModelError(f"{self.path}: {_ROPE_FACTORS} is not the scaling of Llama 3, which alone is supported")
        scaling = llama.RopeScaling(_shortest(factors.max()), _LLAMA3_LOW, _LLAMA3_HIGH, _LLAMA3_POSITIONS)
        if not np.allclose(factors, _divisors(theta, head_dim, scaling), 1e-3):
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
