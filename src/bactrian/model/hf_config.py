"""config.json, in both directions: the Hugging Face description of a model and ours.

Whatever a description asks for and `llama` does not compute is refused by name; nothing is passed over.
"""

import json
from pathlib import Path
from typing import Any

from bactrian.errors import ModelError
from bactrian.files import documents
from bactrian.model import llama

Json = dict[str, Any]

_ARCHITECTURES = {
    "LlamaForCausalLM": "llama",
    "MistralForCausalLM": "mistral",
    "Qwen2ForCausalLM": "qwen2",
    "Qwen3ForCausalLM": "qwen3",
}
_CLASSES = {name: architecture for architecture, name in _ARCHITECTURES.items()}
_MISTRAL_WINDOW = 4096  # transformers' default where the key is absent; null means none
_DEFAULT_THETA = 10_000.0  # transformers' default: the first Llamas do not state it


def read(folder: Path) -> llama.Config:
    """The architecture that a folder's config.json describes. Raises `ModelError`."""
    return read_file(folder / "config.json")


def read_file(path: Path) -> llama.Config:
    """The architecture that a config.json, whatever its name, describes. Raises `ModelError`."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ModelError(f"{path}: cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise ModelError(f"{path}: not JSON: {error}") from error
    if not isinstance(values, dict):
        raise ModelError(f"{path}: not a JSON object")
    return parse(values, str(path))


def parse(values: Json, where: str) -> llama.Config:
    """The architecture that the content of a config.json describes; `where` names it in errors."""
    architecture = _architecture(values, where)
    _refuse_what_is_not_computed(values, where)
    heads = _count(values, "num_attention_heads", where)
    kv_heads = _kv_heads(values, architecture, heads, where)
    hidden_size = _count(values, "hidden_size", where)
    layers = _count(values, "num_hidden_layers", where)
    bias = bool(values.get("attention_bias", False)) and architecture in ("llama", "qwen3")
    theta, scaling = _rope(values, where)
    return llama.Config(
        vocab_size=_count(values, "vocab_size", where),
        hidden_size=hidden_size,
        intermediate_size=_count(values, "intermediate_size", where),
        num_layers=layers,
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=_head_dim(values, architecture, hidden_size, heads, where),
        max_positions=_count(values, "max_position_embeddings", where),
        rms_norm_eps=_number(values, "rms_norm_eps", where),
        rope_theta=theta,
        rope_scaling=scaling,
        tied_embeddings=bool(values.get("tie_word_embeddings", False)),
        qkv_bias=bias or architecture == "qwen2",
        output_bias=bias,
        qk_norm=architecture == "qwen3",
        sliding_window=_sliding_window(values, architecture, layers, where),
        architecture=architecture,
    )


def write(config: llama.Config, folder: Path, eos_ids: tuple[int, ...], bos_id: int | None, dtype: str) -> None:
    """Write config.json and generation_config.json. Raises `ModelError` where the layout cannot express the model."""
    described = _describe(config)
    ids: Json = {"eos_token_id": eos_ids[0] if len(eos_ids) == 1 else list(eos_ids), "bos_token_id": bos_id}
    if not eos_ids:
        del ids["eos_token_id"]
    if parse(described, "config.json") != config:
        raise ModelError(f"{folder}: Hugging Face's {_CLASSES[config.architecture]} cannot express this model")
    # "torch_dtype" is read by every version of transformers, its new name "dtype" by the latest alone.
    _write_json(folder / "config.json", {**described, **ids, "torch_dtype": dtype})
    _write_json(folder / "generation_config.json", {"_from_model_config": False, **ids})


def _write_json(path: Path, values: Json) -> None:
    path.write_text(documents.dumps(values, indent=2, ascii_only=True) + "\n", encoding="utf-8")


def _describe(config: llama.Config) -> Json:
    values: Json = {
        "architectures": [_CLASSES[config.architecture]],
        "model_type": config.architecture,
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "hidden_act": "silu",
        "max_position_embeddings": config.max_positions,
        "rms_norm_eps": config.rms_norm_eps,
        "rope_theta": config.rope_theta,
        "rope_scaling": None,
        "tie_word_embeddings": config.tied_embeddings,
    }
    if config.rope_scaling is not None:
        values["rope_scaling"] = {
            "rope_type": "llama3",
            "factor": config.rope_scaling.factor,
            "low_freq_factor": config.rope_scaling.low_frequency_factor,
            "high_freq_factor": config.rope_scaling.high_frequency_factor,
            "original_max_position_embeddings": config.rope_scaling.original_positions,
        }
    if config.architecture in ("llama", "qwen3"):
        values["attention_bias"] = config.output_bias
    if config.architecture == "llama":
        values["mlp_bias"] = False
    if config.architecture == "mistral":
        values["sliding_window"] = config.sliding_window
    if config.architecture in ("qwen2", "qwen3"):
        windowed = config.sliding_window is not None
        values["sliding_window"] = config.sliding_window
        values["use_sliding_window"] = windowed
        values["max_window_layers"] = 0 if windowed else config.num_layers
    return values


def _architecture(values: Json, where: str):
    stated = values.get("architectures") or []
    for architecture in ("llama", "mistral", "qwen2", "qwen3"):
        if stated[:1] == [_CLASSES[architecture]] or (not stated and values.get("model_type") == architecture):
            return architecture
    name = stated[0] if stated else values.get("model_type") or "none stated"
    raise ModelError(f"{where}: architecture {name} is not supported; supported are {', '.join(_ARCHITECTURES)}")


def _refuse_what_is_not_computed(values: Json, where: str) -> None:
    activation = values.get("hidden_act", "silu")
    if activation not in ("silu", "swish"):
        raise ModelError(f"{where}: hidden_act {activation!r} is not supported; only silu is")
    if values.get("mlp_bias"):
        raise ModelError(f"{where}: mlp_bias is not supported")
    if values.get("partial_rotary_factor", 1.0) not in (None, 1, 1.0):
        raise ModelError(f"{where}: partial_rotary_factor is not supported")
    quantization = values.get("quantization_config")
    if quantization:
        method = quantization.get("quant_method", "of an unnamed kind") if isinstance(quantization, dict) else ""
        raise ModelError(f"{where}: the weights are quantized ({method}); take the model that was not quantized")


def _count(values: Json, key: str, where: str) -> int:
    if key not in values:
        raise ModelError(f"{where}: {key} is missing")
    value = values[key]
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ModelError(f"{where}: {key} is {value!r}; it has to be a whole number above 0")
    return value


def _number(values: Json, key: str, where: str) -> float:
    if key not in values:
        raise ModelError(f"{where}: {key} is missing")
    value = values[key]
    if isinstance(value, bool) or not isinstance(value, int | float) or value <= 0:
        raise ModelError(f"{where}: {key} is {value!r}; it has to be a number above 0")
    return float(value)


def _kv_heads(values: Json, architecture: str, heads: int, where: str) -> int:
    # The first Llamas, from before grouped queries, do not state it.
    stated = "num_key_value_heads" in values or architecture != "llama"
    if not stated or values.get("num_key_value_heads", 0) is None:
        return heads
    kv_heads = _count(values, "num_key_value_heads", where)
    if heads % kv_heads:
        raise ModelError(f"{where}: {heads} attention heads do not share {kv_heads} key/value heads evenly")
    return kv_heads


def _head_dim(values: Json, architecture: str, hidden_size: int, heads: int, where: str) -> int:
    if architecture == "qwen3" or values.get("head_dim") is not None:
        head_dim = _count(values, "head_dim", where)
    elif hidden_size % heads:
        raise ModelError(f"{where}: hidden_size {hidden_size} does not divide into {heads} heads; state head_dim")
    else:
        head_dim = hidden_size // heads
    if head_dim % 2:
        raise ModelError(f"{where}: head_dim {head_dim} is odd; rotary positions need an even one")
    return head_dim


def _rope(values: Json, where: str) -> tuple[float, llama.RopeScaling | None]:
    """Theta and scaling: in `rope_parameters` (transformers 5), or in `rope_theta` and `rope_scaling` (before)."""
    parameters = values.get("rope_parameters") or values.get("rope_scaling") or {}
    if not isinstance(parameters, dict):
        raise ModelError(f"{where}: the rope parameters are not an object")
    stated = {key: value for key, value in {**values, **parameters}.items() if value is not None}
    theta = _number({"rope_theta": _DEFAULT_THETA, **stated}, "rope_theta", where)
    _refuse_what_is_not_computed({"partial_rotary_factor": parameters.get("partial_rotary_factor")}, where)
    kind = parameters.get("rope_type", parameters.get("type", "default"))
    if kind == "default":
        return theta, None
    if kind != "llama3":
        raise ModelError(f"{where}: rope scaling {kind!r} is not supported; supported are default and llama3")
    original = "original_max_position_embeddings"
    scaling = llama.RopeScaling(
        factor=_number(parameters, "factor", where),
        low_frequency_factor=_number(parameters, "low_freq_factor", where),
        high_frequency_factor=_number(parameters, "high_freq_factor", where),
        original_positions=_count(stated, original if original in stated else "max_position_embeddings", where),
    )
    return theta, scaling


def _sliding_window(values: Json, architecture: str, layers: int, where: str) -> int | None:
    if architecture == "llama":
        return None
    if architecture == "mistral":
        values = {"sliding_window": _MISTRAL_WINDOW, "use_sliding_window": True, "max_window_layers": 0, **values}
    if not values.get("use_sliding_window") or values.get("sliding_window") is None:
        return None
    first = values.get("max_window_layers", layers)
    kinds = values.get("layer_types") or [
        "sliding_attention" if layer >= first else "full_attention" for layer in range(layers)
    ]
    if len(set(kinds)) > 1:
        raise ModelError(f"{where}: a sliding window in some layers only is not supported")
    return _count(values, "sliding_window", where) if kinds[0] == "sliding_attention" else None
