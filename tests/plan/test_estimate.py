"""Times: operations counted as papers count them, a lower bound that is one, an estimate that no run fitted itself."""

from dataclasses import replace

import jax
import numpy as np
import pytest

from bactrian.data import mixture, packing
from bactrian.model import llama
from bactrian.plan import estimate, targets
from bactrian.plan.collectives import Collective
from bactrian.plan.workload import Workload

LLAMA_70B = llama.Config(32000, 8192, 28672, 80, 64, 8, 128, 8192, 1e-5, 1e4)
LLAMA_65B = llama.Config(32000, 8192, 22016, 80, 64, 64, 128, 2048, 1e-5, 1e4)
LLAMA_8B = llama.Config(128_256, 4096, 14_336, 32, 32, 8, 128, 8192, 1e-5, 5e5)


def workload(config: llama.Config = LLAMA_70B, length: int = 4096, rows: int = 64) -> Workload:
    """Updates of rows that one example fills."""
    places = np.full(2 * rows, length)
    plan = packing.plan(places, mixture.order(len(places), rows, 1, 0), length, rows, 1)
    return Workload("sft", config, plan, rows, float(rows * length), rows * length * (length + 1) / 2, False)


def test_a_forward_pass_costs_two_operations_per_weight_and_place():
    weights = 80 * (2 * 8192 * 8192 + 2 * 8192 * 1024 + 3 * 8192 * 28672) + 32000 * 8192
    assert estimate.model_flops(LLAMA_70B, 1000, 0, 1000) == pytest.approx(2 * 1000 * weights)
    # Chowdhery et al. 2022: attention adds 12 · layers · width · length for each token, forward and backward, if all
    # see all; half of it if none looks ahead.
    length = 4096
    attention = 3 * estimate.model_flops(LLAMA_70B, 0, length * length, 0) / length
    assert attention == pytest.approx(12 * 80 * 8192 * length)


@pytest.mark.parametrize("run", estimate.PUBLISHED, ids=lambda run: f"{run.system} {run.model} {run.chip}")
def test_published_runs_are_estimated_from_the_others_within_30_percent_where_they_compare(run: estimate.Published):
    share = estimate.share_of_peak(targets.CHIPS[run.chip], without=run)
    assert share is not None
    # A step takes its operations divided by the share, so the error of the time is that of the share.
    assert (run.mfu / share == pytest.approx(1, abs=0.3)) is run.comparable


# Runs whose model and slice are known: as `run`, the model, the target, a row's tokens.
STEPS = [
    ("MaxText", "Llama 2 70B", "v5p", LLAMA_70B, "v5p-128", 2048),
    ("Levanter", "65B on v3-256", "v3", LLAMA_65B, "v3-256", 2048),
    ("torchtitan", "Llama 3.1 8B on 8", "h100", LLAMA_8B, "8xh100", 8192),
    ("torchtitan", "Llama 3.1 8B on 8, compiled", "h100", LLAMA_8B, "8xh100", 8192),
]


@pytest.mark.parametrize("step", STEPS, ids=lambda step: f"{step[0]} {step[1]}")
def test_published_steps_take_as_long_as_estimated_within_30_percent(step, monkeypatch: pytest.MonkeyPatch):
    system, model, chip, config, name, length = step
    run = next(run for run in estimate.PUBLISHED if run[:3] == (system, model, chip))
    monkeypatch.setattr(estimate, "PUBLISHED", tuple(other for other in estimate.PUBLISHED if other != run))
    target, rows = targets.find(name), 2 * targets.find(name).devices
    # As their authors count: six operations a parameter, and attention in full.
    parameters = sum(np.prod(spec.shape, dtype=float) for spec in jax.tree.leaves(llama.specs(config), is_leaf=is_spec))
    of_a_token = 6 * parameters + 12 * config.num_layers * config.num_heads * config.head_dim * length
    published = rows * length * of_a_token / (run.mfu * target.chip.flops * target.devices)
    work = workload(config, length, rows)
    estimated = estimate.seconds(work, target, estimate.bounds(work, "dots", target, 1, []))
    assert estimated == pytest.approx(published, rel=0.3)


def is_spec(node) -> bool:
    return isinstance(node, llama.Spec)


def test_a_run_left_out_has_no_say():
    run = estimate.PUBLISHED[0]
    raised = estimate.share_of_peak(targets.CHIPS[run.chip])
    alone = estimate.share_of_peak(targets.CHIPS[run.chip], without=run)
    assert alone == estimate.PUBLISHED[1].mfu
    assert raised != alone


def test_a_chip_without_runs_takes_those_of_its_vendor():
    assert estimate.share_of_peak(targets.CHIPS["h200"]) == estimate.share_of_peak(targets.CHIPS["h100"])
    assert estimate.share_of_peak(targets.CHIPS["cpu"]) is None


def test_the_estimate_is_never_below_the_bound():
    target, work = targets.find("v5p-128"), workload()
    free = estimate.bounds(work, "full", target, 1, [])
    assert free.bound_by == "compute"
    assert (estimate.seconds(work, target, free) or 0) > free.compute
    slow = Collective("all-gather", ("fsdp",), tuple(range(64)), ("bf16[8]",), 1e12, 100, "", None)
    bound = estimate.bounds(work, "full", target, 1, [slow])
    assert bound.bound_by == "interconnect"
    assert estimate.seconds(work, target, bound) == bound.interconnect == pytest.approx(1e14 / 600e9)


def test_what_leaves_a_node_takes_the_network():
    work = workload()
    inside = Collective("all-reduce", ("tensor",), tuple(range(8)), ("f32[8]",), 1e9, 1, "", None)
    across = inside._replace(group=tuple(range(0, 64, 8)))  # one GPU of each node: all that it sends goes over its port
    target = targets.find("64xh100")
    assert estimate.bounds(work, "none", target, 8, [inside]).interconnect == pytest.approx(1e9 / 450e9)
    assert estimate.bounds(work, "none", target, 8, [across]).interconnect == pytest.approx(1e9 / 50e9)


def test_recomputing_costs_a_forward_pass():
    work, target = workload(), targets.find("v5p-128")
    kept, again = (estimate.executed_flops(work, remat) for remat in ("none", "full"))
    layers = estimate.model_flops(LLAMA_70B, work.computed_places, work.pairs, 0)
    assert again - kept == pytest.approx(layers)
    assert estimate.useful_flops(work) == pytest.approx(kept)
    assert estimate.bounds(work, "full", target, 1, []).compute > estimate.bounds(work, "none", target, 1, []).compute


def test_a_frozen_weight_has_no_gradient():
    """Two thirds of the products with it are left; those with adapters and of attention are as many as ever."""
    full = workload(rows=64)
    adapters = llama.Lora(16, 16.0, ("q_proj", "down_proj"))
    frozen = replace(full, adapters=adapters)
    attention = 3 * estimate.model_flops(full.config, 0, full.pairs, 0)
    added = 6 * full.places * 80 * 16 * (8192 + 8192 + 28672 + 8192)
    products = estimate.useful_flops(full) - attention
    assert estimate.useful_flops(frozen) == pytest.approx(2 / 3 * products + attention + added)
    assert estimate.forward_share(full) == pytest.approx(1 / 3)
    assert 1 / 3 < estimate.forward_share(frozen) < 1 / 2
    assert estimate.executed_flops(frozen, "full") - estimate.executed_flops(frozen, "dots") == pytest.approx(
        estimate.model_flops(full.config, full.places, full.pairs, 0) + added / 3
    )
