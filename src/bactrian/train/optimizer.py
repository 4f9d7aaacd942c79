"""The learning-rate schedule and the optimizer of a recipe, as an optax chain."""

import math
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np
import optax

from bactrian.train import moments

if TYPE_CHECKING:  # what needs no recipe needs no pydantic
    from bactrian.recipe import Optimizer


def schedule(settings: "Optimizer", steps: int) -> optax.Schedule:
    """Learning rate by update, counted from 0: linear warmup from 0, then linear or cosine to 0 over the rest.

    Warmup takes ceil(warmup_ratio · steps) updates: 0.03 of the 5,096 of Tulu 2's SFT are 153.
    """
    warmup = settings.warmup_steps or math.ceil(settings.warmup_ratio * steps)
    rest = max(steps - warmup, 1)
    peak = settings.learning_rate
    after = {
        "linear": optax.linear_schedule(peak, 0.0, rest),
        "cosine": optax.cosine_decay_schedule(peak, rest),
        "constant": optax.constant_schedule(peak),
    }[settings.schedule]
    if not warmup:
        return after
    return optax.join_schedules([optax.linear_schedule(0.0, peak, warmup), after], [warmup])


def learning_rates(settings: "Optimizer", steps: int) -> list[float]:
    """The learning rate of every update: made at once, since one by one each would wait for the device."""
    return np.asarray(jax.vmap(schedule(settings, steps))(np.arange(steps))).tolist()


def chain(settings: "Optimizer", steps: int) -> optax.GradientTransformation:
    """Clipping by the global norm, then AdamW. Moments are float32 or 8 bits, whatever the parameters are."""
    adam = _in_float32(optax.scale_by_adam(settings.beta1, settings.beta2, settings.epsilon))
    adamw = optax.chain(
        moments.in_int8(adam) if settings.moments == "int8" else adam,
        optax.add_decayed_weights(settings.weight_decay),
        optax.scale_by_learning_rate(schedule(settings, steps)),
    )
    if settings.clip_norm is None:
        return adamw
    return optax.chain(optax.clip_by_global_norm(settings.clip_norm), adamw)


def _in_float32(adam: optax.GradientTransformation) -> optax.GradientTransformation:
    """Adam whose moments start as float32; its gradients come so."""

    def init(params: optax.Params) -> optax.OptState:
        return adam.init(jax.tree.map(lambda leaf: leaf.astype(jnp.float32), params))

    return optax.GradientTransformation(init, adam.update)
