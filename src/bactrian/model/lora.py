"""Adapters of low rank beside a model that stays as it is (Hu et al. 2021): their start, their merging, PEFT's files.

What they add to a product is in `llama.forward`. They are few, so they are kept in float32 whatever the model is.
"""

import json
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from bactrian.model import llama, weights
from bactrian.model import mesh as meshes
from bactrian.run import replacing

ADAPTERS = "adapters"  # among the parameters


def start(config: llama.Config, key: jax.Array, mesh: Mesh | None = None) -> llama.Parameters:
    """Fresh adapters, float32, which change nothing yet: every B is zero. Over a mesh they lie where they are used."""
    specs = {ADAPTERS: llama.specs(config)[ADAPTERS]}
    shardings = mesh and {ADAPTERS: meshes.of_parameters(mesh, config)[ADAPTERS]}
    return jax.jit(lambda key: llama.start(specs, key), out_shardings=shardings)(key)


def merged(config: llama.Config, parameters: llama.Parameters) -> llama.Parameters:
    """The model without adapters that computes the same: W + alpha / rank · A B, rounded to the dtype of W.

    The matrices given are used up.
    """
    assert config.lora is not None
    layers, adapters = dict(parameters["layers"]), parameters[ADAPTERS]
    scale = config.lora.alpha / config.lora.rank
    for name in config.lora.targets:
        layers[name] = _merged(scale, layers[name], adapters[f"{name}_a"], adapters[f"{name}_b"])
    return {**{part: value for part, value in parameters.items() if part != ADAPTERS}, "layers": layers}


@partial(jax.jit, static_argnums=0, donate_argnums=1)
def _merged(scale: float, weights: jax.Array, inner: jax.Array, outer: jax.Array) -> jax.Array:
    def one_layer(layer: tuple[jax.Array, jax.Array, jax.Array]) -> jax.Array:
        weight_DF, inner_DR, outer_RF = layer
        added_DF = jnp.dot(inner_DR, outer_RF, precision="highest")
        return (weight_DF.astype(jnp.float32) + scale * added_DF).astype(weight_DF.dtype)

    return jax.lax.map(one_layer, (weights, inner, outer))


def save(folder: Path, config: llama.Config, parameters: llama.Parameters, base: str) -> None:
    """Write the adapters as PEFT reads them, whole or not at all; `base` names the model that they belong to.

    Where there are several processes all must call, and the first one writes.
    """
    assert config.lora is not None
    about = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": config.lora.rank,
        "lora_alpha": config.lora.alpha,
        "lora_dropout": 0.0,
        "target_modules": list(config.lora.targets),
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
    }
    if jax.process_index():
        weights.write_adapters(folder, config, parameters)
        return
    with replacing(folder) as temporary:
        temporary.mkdir()
        weights.write_adapters(temporary, config, parameters)
        (temporary / "adapter_config.json").write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")
