"""Adapters of low rank beside a model that stays as it is (Hu et al. 2021): their start, and their merging.

What they add to a product is in `llama.forward`, their files in `weights`. They are few, so they are kept in float32
whatever the model is.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from bactrian.model import llama, rounding
from bactrian.model import mesh as meshes


def start(config: llama.Config, key: jax.Array, mesh: Mesh | None = None) -> llama.Parameters:
    """Fresh adapters, float32, which change nothing yet: every B is zero. Over a mesh they lie where they are used."""
    specs = {"adapters": llama.specs(config)["adapters"]}
    shardings = mesh and {"adapters": meshes.of_parameters(mesh, config)["adapters"]}
    return jax.jit(lambda key: llama.start(specs, key), out_shardings=shardings)(key)


def merged(config: llama.Config, parameters: llama.Parameters, key: jax.Array) -> llama.Parameters:
    """The model without adapters that computes the same: W + alpha / rank · A B, in the dtype of W.

    To bfloat16 it is rounded by chance, since most of what little adapters add would be lost in the nearest. The
    matrices given are used up.
    """
    assert config.lora is not None
    layers, adapters = dict(parameters["layers"]), parameters["adapters"]
    scale = config.lora.alpha / config.lora.rank
    for name, own_key in zip(config.lora.targets, jax.random.split(key, len(config.lora.targets)), strict=True):
        layers[name] = _merged(scale, layers[name], adapters[f"{name}_a"], adapters[f"{name}_b"], own_key)
    return {**{part: value for part, value in parameters.items() if part != "adapters"}, "layers": layers}


@partial(jax.jit, static_argnums=0, donate_argnums=1)
def _merged(scale: float, weights: jax.Array, inner: jax.Array, outer: jax.Array, key: jax.Array) -> jax.Array:
    def one_layer(layer: tuple[jax.Array, jax.Array, jax.Array, jax.Array]) -> jax.Array:
        weight_DF, inner_DR, outer_RF, own_key = layer
        added_DF = scale * jnp.dot(inner_DR, outer_RF, precision="highest")
        return rounding.add(weight_DF, added_DF, own_key)

    return jax.lax.map(one_layer, (weights, inner, outer, jax.random.split(key, len(weights))))
