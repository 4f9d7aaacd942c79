"""The keys of config.json that say what is computed, as a schema, and those of kin that compute something else.

`Description` holds every key by which the models read here differ from each other. A key of `OF_KIN` belongs to
another family (Granite, Cohere, Gemma, MiniCPM, OLMo and such): `transformers` passes over it in a Llama, but whoever
wrote it there meant it. Keys that are in neither change nothing that is computed.
"""

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

Json = dict[str, Any]

# What no model has is refused before anything is sized by it; int32 and float32 hold the rest.
Count = Annotated[int, Field(ge=1, lt=2**31)]
Layers = Annotated[int, Field(ge=1, le=10_000)]
Positive = Annotated[float, Field(gt=0, lt=3.4e38)]


class Schema(BaseModel):
    """Strict: "false" is no boolean, true no number, and a number is finite."""

    model_config = ConfigDict(frozen=True, strict=True, extra="allow", allow_inf_nan=False)


class Names(Schema):
    """By which architecture the rest is to be read."""

    architectures: list[str] | None = None
    model_type: str | None = None


class Rope(Schema):
    """What `rope_parameters` (transformers 5) or `rope_scaling` (before) holds."""

    rope_type: str | None = None
    type: str | None = None
    rope_theta: Positive | None = None
    factor: Positive | None = None
    low_freq_factor: Positive | None = None
    high_freq_factor: Positive | None = None
    original_max_position_embeddings: Count | None = None
    partial_rotary_factor: Positive | None = None


class Description(Names):
    """A config.json. What is absent is None, and `model_fields_set` tells it from what is null."""

    vocab_size: Count
    hidden_size: Count
    intermediate_size: Count
    num_hidden_layers: Layers
    num_attention_heads: Count
    num_key_value_heads: Count | None = None
    head_dim: Count | None = None
    hidden_act: str = "silu"
    max_position_embeddings: Count
    rms_norm_eps: Positive
    rope_theta: Positive | None = None
    rope_parameters: Rope | None = None
    rope_scaling: Rope | None = None
    original_max_position_embeddings: Count | None = None
    partial_rotary_factor: Positive | None = None
    tie_word_embeddings: bool | None = None
    attention_bias: bool | None = None
    mlp_bias: bool | None = None
    attention_dropout: Annotated[float, Field(ge=0, le=1)] | None = None
    sliding_window: Count | None = None
    use_sliding_window: bool | None = None
    max_window_layers: Annotated[int, Field(ge=0)] | None = None
    layer_types: list[str] | None = None
    quantization_config: Json | None = None


_OFF: tuple[Any, ...] = (None, False, 0, "", [])
_ONE: tuple[Any, ...] = (None, 1)

# Key → the values with which nothing is computed otherwise.
OF_KIN: dict[str, tuple[Any, ...]] = {
    **dict.fromkeys(
        (
            *("embedding_multiplier", "residual_multiplier", "logits_scaling", "logit_scale"),  # Granite, Cohere
            *("scale_emb", "embedding_scale", "residual_scale", "lm_head_multiplier", "key_multiplier"),
            *("rotary_pct", "rotary_percent", "rope_pct"),
        ),
        _ONE,
    ),
    **dict.fromkeys(
        (
            *("attention_multiplier", "query_pre_attn_scalar", "scale_depth", "dim_model_base"),  # no neutral value
            *("attn_logit_softcapping", "final_logit_softcapping", "clip_qkv"),
            *("parallel_attn", "use_parallel_residual", "alibi", "scale_attn_by_inverse_layer_idx"),
            *("num_experts", "num_local_experts", "n_routed_experts"),
            *("no_rope_layer_interval", "rope_interleaved", "rope_local_base_freq"),
            *("attention_chunk_size", "attn_temperature_tuning", "use_bidirectional_attention"),
            *("use_dynamic_ntk", "use_logn_attn", "num_kv_shared_layers", "kv_lora_rank", "q_lora_rank"),
        ),
        _OFF,
    ),
    "is_causal": (None, True),
    "hidden_activation": (None, "silu", "swish"),
    "per_layer_config": (None, {}),
    "pruned_heads": (None, {}),
}
