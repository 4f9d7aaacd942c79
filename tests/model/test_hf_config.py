"""Every statement of a config.json is computed as `transformers` computes it, or refused by the name of its key."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from bactrian.errors import ModelError
from bactrian.model import hf_config
from bactrian.model.hf_schema import OF_KIN

LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 51,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-5,
}
LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}


def of(architecture: str, **changes: Any) -> dict[str, Any]:
    named = {"architectures": [f"{architecture.capitalize()}ForCausalLM"], "model_type": architecture}
    return {**LLAMA, **named, **changes}


AS_TRANSFORMERS = [
    LLAMA,
    of("llama", rope_theta=5e5),
    of("llama", rope_theta=500_000, rope_scaling={"rope_type": "llama3", **LLAMA3}),
    of("llama", rope_scaling={"type": "llama3", **LLAMA3, "original_max_position_embeddings": 64}),
    of("llama", rope_scaling={"type": "llama3", **LLAMA3}, original_max_position_embeddings=32),
    of("llama", rope_parameters={"rope_type": "llama3", "rope_theta": 7e4, **LLAMA3}),
    of("llama", rope_parameters={"rope_type": "default", "rope_theta": 7e4}, rope_theta=7e4),
    of("llama", rope_scaling={"rope_type": "linear", "factor": 1.0}),
    of("llama", num_key_value_heads=None, head_dim=8, attention_bias=True),
    of("mistral"),
    of("mistral", sliding_window=None),
    of("mistral", sliding_window=16),
    of("qwen2"),
    of("qwen2", sliding_window=16, max_window_layers=0),
    of("qwen2", use_sliding_window=True, sliding_window=16, max_window_layers=0),
    of("qwen2", use_sliding_window=True, max_window_layers=0),
    of("qwen2", use_sliding_window=True, sliding_window=16),
    of("qwen2", use_sliding_window=True, sliding_window=16, layer_types=["sliding_attention"] * 2),
    of("qwen2", use_sliding_window=True, sliding_window=16, layer_types=["full_attention"] * 2, max_window_layers=0),
    of("qwen3"),
    of("qwen3", head_dim=16, use_sliding_window=True, sliding_window=16, max_window_layers=0),
]


@pytest.mark.parametrize("values", AS_TRANSFORMERS, ids=range(len(AS_TRANSFORMERS)))
def test_what_is_read_is_what_transformers_reads(values: dict[str, Any]):
    from transformers import AutoConfig

    ours = hf_config.parse(values, "config.json")
    theirs = AutoConfig.for_model(**copy.deepcopy(values))  # it writes into what it is given
    theirs.standardize_rope_params()  # as the model does that is made of it
    rope = theirs.rope_parameters
    assert ours.rope_theta == rope["rope_theta"]
    if ours.rope_scaling is None:
        assert rope["rope_type"] == "default" or rope["factor"] == 1
    else:
        keys = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
        found = ours.rope_scaling
        assert [rope[key] for key in keys] == [
            *(found.factor, found.low_frequency_factor, found.high_frequency_factor, found.original_positions)
        ]
    kinds = getattr(theirs, "layer_types", None) or ["sliding_attention"] * 2
    windows = {getattr(theirs, "sliding_window", None) if kind == "sliding_attention" else None for kind in kinds}
    assert windows == {ours.sliding_window}
    head_dim = getattr(theirs, "head_dim", None) or theirs.hidden_size // theirs.num_attention_heads
    assert (ours.head_dim, ours.num_kv_heads) == (head_dim, theirs.num_key_value_heads)
    assert ours.tied_embeddings == theirs.tie_word_embeddings


SCALED = {"rope_type": "llama3", **LLAMA3}
REFUSED = [
    # contradictions
    (
        of("llama", rope_theta=1e4, rope_parameters={"rope_theta": 5e5}),
        "rope_parameters.rope_theta is 500000.0 and rope_the",
    ),
    (
        of("llama", rope_parameters={**SCALED, "factor": 4.0}, rope_scaling=SCALED),
        "rope_parameters and rope_scaling contra",
    ),
    (
        of("llama", rope_parameters={"rope_theta": 5e5}, rope_scaling=SCALED),
        "rope_parameters and rope_scaling contradict",
    ),
    (
        of("llama", rope_scaling={**SCALED, "type": "default"}),
        "rope_scaling.rope_type is 'llama3' and rope_scaling.type",
    ),
    (
        of(
            "llama",
            rope_scaling={**SCALED, "original_max_position_embeddings": 64},
            original_max_position_embeddings=32,
        ),
        "original_max_position_embeddings is 64 and original_max_position_embeddings 32",
    ),
    (of("llama", model_type="qwen2"), "architectures says LlamaForCausalLM and model_type 'qwen2'"),
    (of("llama", sliding_window=16), "sliding_window is 16, and LlamaForCausalLM has none"),
    (of("llama", layer_types=["sliding_attention"] * 2), "layer_types says sliding_attention, and there is no"),
    (of("mistral", sliding_window=16, use_sliding_window=False), "sliding_window is 16 and use_sliding_window false"),
    (of("mistral", sliding_window=16, layer_types=["full_attention"] * 2), "sliding_window is 16 and layer_types full"),
    (of("qwen2", layer_types=["sliding_attention"] * 2), "layer_types says sliding_attention, and there is no"),
    # not computed
    (of("mistral", layer_types=["full_attention", "sliding_attention"]), "in some layers only"),
    (of("qwen2", layer_types=["full_attention"]), "layer_types has to say"),
    (of("qwen2", layer_types=["full_attention", "linear_attention"]), "layer_types has to say"),
    (of("llama", rope_scaling={"factor": 4.0}), "rope_scaling.factor 4.0 of no rope_type is not supported"),
    (of("llama", rope_scaling={"rope_type": "dynamic", "factor": 4.0}), "rope scaling 'dynamic' is not supported"),
    (of("llama", rope_scaling={**SCALED, "attention_factor": 1.2}), "rope_scaling.attention_factor is not supported"),
    (
        of("llama", rope_parameters={"full_attention": {"rope_theta": 1e4}}),
        "rope_parameters.full_attention is not supp",
    ),
    (of("llama", rope_parameters={"partial_rotary_factor": 0.5}), "rope_parameters.partial_rotary_factor is not supp"),
    (of("llama", partial_rotary_factor=0.5), "partial_rotary_factor is not supported"),
    (of("llama", rope_scaling={**SCALED, "low_freq_factor": 4.0}), "low_freq_factor has to be below high_freq_factor"),
    (of("llama", no_rope_layers=[1, 0]), "no_rope_layers has layers without rotary positions"),
    # types and sizes
    (of("llama", tie_word_embeddings="false"), "tie_word_embeddings is 'false': input should be a valid boolean"),
    (of("llama", mlp_bias=1), "mlp_bias is 1: input should be a valid boolean"),
    (of("llama", rms_norm_eps=float("nan")), "rms_norm_eps is nan"),
    (of("llama", rms_norm_eps=0), "rms_norm_eps is 0"),
    (of("llama", rms_norm_eps="1e-5"), "rms_norm_eps is '1e-5'"),
    (of("llama", rope_theta=float("nan")), "rope_theta is nan"),
    (of("llama", rope_theta=10**400), "rope_theta is 1000"),
    (of("llama", rope_theta=1e39), "rope_theta is 1e\\+39: input should be less than"),
    (
        of("llama", num_hidden_layers=10**9),
        "num_hidden_layers is 1000000000: input should be less than or equal to 10000",
    ),
    (of("llama", max_position_embeddings=2**31), "max_position_embeddings is 2147483648"),
    (of("llama", num_attention_heads=True), "num_attention_heads is True"),
    (of("llama", hidden_size=64.0), "hidden_size is 64.0"),
    (of("llama", architectures=5), "architectures is 5"),
    (of("llama", architectures=[["LlamaForCausalLM"]]), "architectures.0 is "),
    (of("llama", rope_scaling="linear"), "rope_scaling is 'linear'"),
    (of("llama", quantization_config=True), "quantization_config is True"),
]


@pytest.mark.parametrize(("values", "message"), REFUSED, ids=range(len(REFUSED)))
def test_what_is_not_computed_is_refused_by_name(values: dict[str, Any], message: str):
    with pytest.raises(ModelError, match=f"^config.json: .*{message}"):
        hf_config.parse(values, "config.json")


@pytest.mark.parametrize("key", OF_KIN)
def test_keys_of_kin_are_refused_unless_they_change_nothing(key: str):
    with pytest.raises(ModelError, match=f"{key} is 0.5, which is not computed"):
        hf_config.parse({**LLAMA, key: 0.5}, "config.json")
    for neutral in OF_KIN[key]:
        assert hf_config.parse({**LLAMA, key: neutral}, "config.json") == hf_config.parse(LLAMA, "config.json")


def test_dropout_is_said_not_to_be_computed():
    described = hf_config.describe({**LLAMA, "attention_dropout": 0.1}, "config.json")
    assert described.remarks == ("config.json: attention_dropout is 0.1; none is computed",)


@pytest.mark.parametrize(
    "text", ["[" * 5000, "{", "5", '{"vocab_size": NaN}', '{"\\ud800": 1}', '{"a": ' + "9" * 5000 + "}"]
)
def test_a_file_that_is_no_description_is_one_line(tmp_path: Path, text: str):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ModelError, match=r"config\.json: not (a )?JSON") as caught:
        hf_config.read(tmp_path / "config.json")
    assert "\n" not in str(caught.value)


def test_null_is_what_is_absent():
    nulls = dict.fromkeys(
        ("rope_scaling", "rope_theta", "head_dim", "attention_bias", "quantization_config", "layer_types")
    )
    assert hf_config.describe(json.loads(json.dumps({**LLAMA, **nulls})), "") == hf_config.describe(LLAMA, "")
