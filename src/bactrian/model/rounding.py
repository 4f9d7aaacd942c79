"""Parameters kept in bfloat16 without a float32 copy: what an update adds is rounded up or down by chance.

A bfloat16 number has eight bits, and an update of fine-tuning is a thousandth of its parameter or less: rounded to the
nearest it would be lost every time. Rounded up as often as its size demands, it is there on average (Gupta et al. 2015,
section 3). Chance is drawn from the number of the update, so that a run resumed is the run.
"""

from typing import Any

import jax
import jax.numpy as jnp


def apply_updates(parameters: Any, changes: Any, number: jax.Array) -> Any:
    """The parameters with their changes added, in their own dtypes; `number` counts the updates made before."""
    leaves, tree = jax.tree.flatten(parameters)
    key = jax.random.fold_in(jax.random.key(0), number)
    each = enumerate(zip(leaves, jax.tree.leaves(changes), strict=True))
    return jax.tree.unflatten(tree, [add(leaf, change, jax.random.fold_in(key, n)) for n, (leaf, change) in each])


def add(parameter: jax.Array, change: jax.Array, key: jax.Array) -> jax.Array:
    """One parameter with its change added, in its own dtype."""
    if parameter.dtype == jnp.bfloat16:
        return stochastic(parameter.astype(jnp.float32) + change, key)
    return (parameter + change).astype(parameter.dtype)


def stochastic(values: jax.Array, key: jax.Array) -> jax.Array:
    """Float32 numbers as one of the two bfloat16 neighbours of each, the nearer the likelier: on average unchanged."""
    # A bfloat16 is a float32's upper half: adding to the lower half carries with the probability that it is a part of.
    chance = jax.random.bits(key, values.shape, jnp.uint16).astype(jnp.uint32)
    bits = jax.lax.bitcast_convert_type(values, jnp.uint32) + chance
    return jax.lax.bitcast_convert_type((bits >> 16).astype(jnp.uint16), jnp.bfloat16)
