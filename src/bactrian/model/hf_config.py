"""config.json, in both directions: the Hugging Face description of a model and ours.

Whatever a description asks for and `llama` does not compute is refused by name, and so are two statements that
contradict each other; what is computed is what `transformers` computes.
"""

from pathlib import Path
from typing import Any, NamedTuple

from pydantic import TypeAdapter

from bactrian.errors import ModelError
from bactrian.files import documents, schemas
from bactrian.model import llama
from bactrian.model.hf_schema import OF_KIN, Description, Json, Names, Rope

_ARCHITECTURES = {
    "LlamaForCausalLM": "llama",
    "MistralForCausalLM": "mistral",
    "Qwen2ForCausalLM": "qwen2",
    "Qwen3ForCausalLM": "qwen3",
}
_CLASSES = {name: architecture for architecture, name in _ARCHITECTURES.items()}
_NAMES = TypeAdapter(Names)
_DESCRIPTION = TypeAdapter(Description)
# transformers' defaults where a key is absent: the first Llamas do not state theta.
_THETA, _WINDOW, _FIRST_WINDOWED, _QWEN3_HEAD_DIM = 10_000.0, 4096, 28, 128


class Described(NamedTuple):
    """What a config.json says: the architecture, how the weights are quantized if it says that they are, and what a
    person should know of it."""

    config: llama.Config
    quantization: str | None
    remarks: tuple[str, ...]


def read(path: Path) -> Described:
    """What a config.json, whatever its name, says. Raises `ModelError`."""
    return describe(documents.read_json(path, ModelError, "download or export the model again"), str(path))


def read_file(path: Path) -> llama.Config:
    """The architecture that a config.json, whatever its name, describes. Raises `ModelError`."""
    return read(path).config


def parse(values: Any, where: str) -> llama.Config:
    """The architecture that the content of a config.json describes; `where` names it in errors."""
    return describe(values, where).config


def describe(values: Any, where: str) -> Described:
    """What the content of a config.json says; `where` names it in errors. Raises `ModelError`."""
    if not isinstance(values, dict):
        raise ModelError(f"{where}: not a JSON object")
    architecture = _architecture(schemas.validate(_NAMES, values, where, ModelError), where)
    given = schemas.validate(_DESCRIPTION, values, where, ModelError)
    _refuse_what_is_not_computed(given, where)
    heads = given.num_attention_heads
    bias = bool(given.attention_bias) and architecture in ("llama", "qwen3")
    theta, scaling = _rope(given, where)
    config = llama.Config(
        vocab_size=given.vocab_size,
        hidden_size=given.hidden_size,
        intermediate_size=given.intermediate_size,
        num_layers=given.num_hidden_layers,
        num_heads=heads,
        num_kv_heads=_kv_heads(given, architecture, where),
        head_dim=_head_dim(given, architecture, where),
        max_positions=given.max_position_embeddings,
        rms_norm_eps=given.rms_norm_eps,
        rope_theta=theta,
        rope_scaling=scaling,
        tied_embeddings=bool(given.tie_word_embeddings),
        qkv_bias=bias or architecture == "qwen2",
        output_bias=bias,
        qk_norm=architecture == "qwen3",
        sliding_window=_sliding_window(given, architecture, where),
        architecture=architecture,
    )
    # transformers goes by model_type alone.
    if given.model_type is not None and given.model_type != architecture:
        raise ModelError(
            f"{where}: architectures says {_CLASSES[architecture]} and model_type {given.model_type!r}; correct either"
        )
    remarks = (f"{where}: attention_dropout is {given.attention_dropout}; none is computed",)
    return Described(config, _quantization(given), remarks if given.attention_dropout else ())


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


def _architecture(names: Names, where: str):
    stated = names.architectures or []
    for architecture in ("llama", "mistral", "qwen2", "qwen3"):
        if stated[:1] == [_CLASSES[architecture]] or (not stated and names.model_type == architecture):
            return architecture
    name = stated[0] if stated else names.model_type or "none stated"
    raise ModelError(f"{where}: architecture {name} is not supported; supported are {', '.join(_ARCHITECTURES)}")


def _refuse_what_is_not_computed(given: Description, where: str) -> None:
    if given.hidden_act not in ("silu", "swish"):
        raise ModelError(f"{where}: hidden_act {given.hidden_act!r} is not supported; only silu is")
    if given.mlp_bias:
        raise ModelError(f"{where}: mlp_bias is not supported")
    if given.partial_rotary_factor not in (None, 1):
        raise ModelError(f"{where}: partial_rotary_factor is not supported")
    others = given.model_extra or {}
    for key, neutral in OF_KIN.items():
        if others.get(key) not in neutral:
            raise ModelError(
                f"{where}: {key} is {others[key]!r}, which is not computed for {', '.join(_ARCHITECTURES)}; "
                f"take a model of one of these, or remove the key if it was not trained with it"
            )
    if any(rotated != 1 for rotated in _listed(others.get("no_rope_layers"))):
        raise ModelError(f"{where}: no_rope_layers has layers without rotary positions, which is not supported")


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [] if value is None else [value]


def _quantization(given: Description) -> str | None:
    if not given.quantization_config:
        return None
    method = given.quantization_config.get("quant_method")
    return method if isinstance(method, str) else "of an unnamed kind"


def _kv_heads(given: Description, architecture: str, where: str) -> int:
    # The first Llamas, from before grouped queries, do not state it.
    stated = "num_key_value_heads" in given.model_fields_set or architecture == "llama"
    if not stated:
        raise ModelError(f"{where}: num_key_value_heads is missing")
    heads, kv_heads = given.num_attention_heads, given.num_key_value_heads or given.num_attention_heads
    if heads % kv_heads:
        raise ModelError(f"{where}: {heads} attention heads do not share {kv_heads} key/value heads evenly")
    return kv_heads


def _head_dim(given: Description, architecture: str, where: str) -> int:
    hidden_size, heads = given.hidden_size, given.num_attention_heads
    if given.head_dim is not None:
        head_dim = given.head_dim
    elif architecture == "qwen3":
        head_dim = _QWEN3_HEAD_DIM
    elif hidden_size % heads:
        raise ModelError(f"{where}: hidden_size {hidden_size} does not divide into {heads} heads; state head_dim")
    else:
        head_dim = hidden_size // heads
    if head_dim % 2:
        raise ModelError(f"{where}: head_dim {head_dim} is odd; rotary positions need an even one")
    return head_dim


def _rope(given: Description, where: str) -> tuple[float, llama.RopeScaling | None]:
    """Theta and scaling: in `rope_parameters` (transformers 5), or in `rope_theta` and `rope_scaling` (before)."""
    stated = {"rope_parameters": given.rope_parameters, "rope_scaling": given.rope_scaling}
    each = {name: _rope_of(name, rope, given, where) for name, rope in stated.items() if rope and rope.model_fields_set}
    if len(set(each.values())) > 1:
        raise ModelError(f"{where}: rope_parameters and rope_scaling contradict each other; remove either")
    return next(iter(each.values()), (given.rope_theta or _THETA, None))


def _rope_of(name: str, rope: Rope, given: Description, where: str) -> tuple[float, llama.RopeScaling | None]:
    """What one of the two places says of theta and scaling, with what the config says beside it."""
    for key, value in (rope.model_extra or {}).items():
        if value is not None:
            raise ModelError(f"{where}: {name}.{key} is not supported")
    if rope.partial_rotary_factor not in (None, 1):
        raise ModelError(f"{where}: {name}.partial_rotary_factor is not supported")
    theta = _agreed(where, f"{name}.rope_theta", rope.rope_theta, "rope_theta", given.rope_theta) or _THETA
    kind = _agreed(where, f"{name}.rope_type", rope.rope_type, f"{name}.type", rope.type)
    if kind not in (None, "default", "linear", "llama3"):
        raise ModelError(f"{where}: rope scaling {kind!r} is not supported; supported are default and llama3")
    if kind != "llama3":
        if rope.factor not in (None, 1):
            said = f"rope scaling {kind!r}" if kind == "linear" else f"{name}.factor {rope.factor} of no rope_type"
            raise ModelError(f"{where}: {said} is not supported; supported are default and llama3")
        return theta, None
    beside = ("original_max_position_embeddings", given.original_max_position_embeddings)
    original = _agreed(where, f"{name}.{beside[0]}", rope.original_max_position_embeddings, *beside)
    factor, low, high = rope.factor, rope.low_freq_factor, rope.high_freq_factor
    if factor is None or low is None or high is None:
        missing = {"factor": factor, "low_freq_factor": low, "high_freq_factor": high}
        raise ModelError(f"{where}: {name}.{next(key for key in missing if missing[key] is None)} is missing")
    if low >= high:
        raise ModelError(f"{where}: {name}.low_freq_factor has to be below high_freq_factor")
    return theta, llama.RopeScaling(factor, low, high, original or given.max_position_embeddings)


def _agreed(where: str, one: str, first: Any, other: str, second: Any) -> Any:
    """What two keys say that mean the same thing: None where neither says anything."""
    if None not in (first, second) and first != second:
        raise ModelError(
            f"{where}: {one} is {first!r} and {other} {second!r}, which contradict each other; remove either"
        )
    return second if first is None else first


def _sliding_window(given: Description, architecture: str, where: str) -> int | None:
    layers, kinds = given.num_hidden_layers, given.layer_types
    if kinds is not None and (len(kinds) != layers or not {*kinds} <= {"full_attention", "sliding_attention"}):
        raise ModelError(
            f"{where}: layer_types has to say full_attention or sliding_attention for each of {layers} layers"
        )
    window = given.sliding_window if "sliding_window" in given.model_fields_set else _WINDOW
    if architecture in ("qwen2", "qwen3"):
        window = window if given.use_sliding_window else None
        first = _FIRST_WINDOWED if given.max_window_layers is None else given.max_window_layers
        kinds = kinds or [
            "full_attention" if window is None or n < first else "sliding_attention" for n in range(layers)
        ]
    elif architecture == "llama":
        window = given.sliding_window if given.use_sliding_window is not False else None
        if window is not None and window < given.max_position_embeddings:
            raise ModelError(
                f"{where}: sliding_window is {window}, and {_CLASSES['llama']} has none; take "
                f"{_CLASSES['mistral']} for a model that was trained with one, else null"
            )
        window = None
    elif window is not None and given.use_sliding_window is False:
        raise ModelError(f"{where}: sliding_window is {window} and use_sliding_window false; state one, or null")
    kinds = {*(kinds or ["full_attention" if window is None else "sliding_attention"])}
    if len(kinds) > 1:
        raise ModelError(f"{where}: a sliding window in some layers only is not supported")
    if kinds == {"sliding_attention"}:
        if window is None:
            raise ModelError(f"{where}: layer_types says sliding_attention, and there is no sliding_window")
        return window
    if window is not None and architecture == "mistral":
        raise ModelError(f"{where}: sliding_window is {window} and layer_types full_attention; state one")
    return None
