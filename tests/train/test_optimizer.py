"""Laws: the update is that of torch's AdamW behind torch's clipping, on the schedules of `transformers`."""

from typing import Any

import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
import transformers

from bactrian.recipe import Optimizer
from bactrian.train import optimizer


def their_schedule(name: str, peak: float, warmup: int, steps: int) -> list[float]:
    given = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=peak)
    makers: dict[str, Any] = {
        "linear": transformers.get_linear_schedule_with_warmup,
        "cosine": transformers.get_cosine_schedule_with_warmup,
    }
    schedule = (
        transformers.get_constant_schedule_with_warmup(given, warmup)
        if name == "constant"
        else makers[name](given, warmup, steps)
    )
    rates = []
    for _ in range(steps):
        rates += schedule.get_last_lr()
        given.step()
        schedule.step()
    return rates


@pytest.mark.parametrize("name", ["linear", "cosine", "constant"])
@pytest.mark.parametrize(("steps", "warmup"), [(40, 4), (40, 0), (5, 5), (1, 0), (7, 1)])
def test_schedules_are_those_of_transformers(name: Any, steps: int, warmup: int):
    settings = Optimizer(learning_rate=2e-5, schedule=name, warmup_steps=warmup)
    schedule: Any = optimizer.schedule(settings, steps)
    found = [float(schedule(jnp.asarray(step))) for step in range(steps)]
    # atol: a cosine near its end, in float32.
    np.testing.assert_allclose(found, their_schedule(name, 2e-5, warmup, steps), rtol=1e-5, atol=2e-5 * 1e-6)


@pytest.mark.parametrize(
    ("ratio", "steps", "warmup"), [(0.03, 5_096, 153), (0.1, 5_808, 581), (0.1, 30, 3), (0.1, 31, 4), (1e-9, 10, 1)]
)
def test_warmup_is_the_ratio_of_the_steps_rounded_up(ratio: float, steps: int, warmup: int):
    rates: Any = optimizer.schedule(Optimizer(learning_rate=1.0, warmup_ratio=ratio), steps)
    assert float(rates(0)) == 0
    assert float(rates(warmup)) == 1
    assert float(rates(warmup - 1)) == pytest.approx((warmup - 1) / warmup)
    assert float(rates(warmup + 1)) < 1
    assert float(rates(steps)) == 0
    assert transformers.TrainingArguments("unused", warmup_steps=ratio, use_cpu=True).get_warmup_steps(steps) == warmup


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"clip_norm": None, "schedule": "cosine"},
        {"weight_decay": 0.1, "beta1": 0.8, "beta2": 0.95, "epsilon": 1e-6, "clip_norm": 0.3},
    ],
)
def test_updates_are_those_of_torch(change: dict[str, Any]):
    steps = 12
    settings = Optimizer(learning_rate=0.05, warmup_ratio=0.2, **change)
    random = np.random.default_rng(0)
    start = {"a": random.normal(size=(5, 3)).astype(np.float32), "b": random.normal(size=7).astype(np.float32)}
    # Norms from far below the clip to far above it.
    gradients = [
        {name: (scale * random.normal(size=value.shape)).astype(np.float32) for name, value in start.items()}
        for scale in np.geomspace(0.01, 30, steps)
    ]

    chain = optimizer.chain(settings, steps)
    ours: Any = {name: jnp.asarray(value) for name, value in start.items()}
    state = chain.init(ours)
    theirs = {name: torch.nn.Parameter(torch.tensor(value)) for name, value in start.items()}
    adamw = torch.optim.AdamW(
        theirs.values(),
        lr=settings.learning_rate,
        betas=(settings.beta1, settings.beta2),
        eps=settings.epsilon,
        weight_decay=settings.weight_decay,
    )
    make = transformers.get_cosine_schedule_with_warmup if settings.schedule == "cosine" else None
    schedule = (make or transformers.get_linear_schedule_with_warmup)(adamw, 3, steps)
    for gradient in gradients:
        changes, state = chain.update({name: jnp.asarray(value) for name, value in gradient.items()}, state, ours)
        ours = optax.apply_updates(ours, changes)
        for name, parameter in theirs.items():
            parameter.grad = torch.tensor(gradient[name])
        if settings.clip_norm is not None:
            torch.nn.utils.clip_grad_norm_(theirs.values(), settings.clip_norm)
        adamw.step()
        schedule.step()
        for name, parameter in theirs.items():
            np.testing.assert_allclose(ours[name], parameter.detach().numpy(), rtol=1e-5, atol=1e-6)
    assert all(np.abs(ours[name] - start[name]).max() > 0.05 for name in start)
