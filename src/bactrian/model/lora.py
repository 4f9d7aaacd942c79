"""Adapters of low rank beside a model that stays as it is (Hu et al. 2021): their start, and their merging.

What they add to a product is in `llama.forward`, their files in `weights`. They are few, so they are kept in float32
whatever the model is.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from bactrian.model import llama
from bactrian.model import mesh as meshes

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
