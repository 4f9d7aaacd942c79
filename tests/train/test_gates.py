"""Laws: gates let a sound run pass, and each stops one in which what it guards does not hold."""

import math
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest

from bactrian.data import packing
from bactrian.data.packing import Plan
from bactrian.data.records import Example
from bactrian.errors import GateFailed
from bactrian.model import attention, llama, lora
from bactrian.train import gates, reference, scores

ROWS = 2


@pytest.fixture(scope="module")
def plan(pairs: list[Example]) -> Plan:
    lengths = np.array([packing.places(len(each.tokens), each.starts) for each in pairs])
    plan = packing.plan(lengths, [np.arange(6), np.arange(6, 12)], 64, ROWS, 2, row_length=64)
    assert len(plan.updates[0][0]) > 1  # the first row is shared, or there is nothing to check
    return plan


@pytest.fixture(scope="module")
def score(config: llama.Config) -> scores.Score:
    return scores.compiled(config, llama.Compute())


@pytest.fixture
def references(plan: Plan, pairs: list[Example], score: scores.Score, parameters, tmp_path: Path) -> np.ndarray:
    return reference.column(tmp_path / "column.npy", plan, pairs, ROWS, score, parameters)


def first(plan: Plan, pairs: list[Example], score: scores.Score, parameters) -> dict[int, np.ndarray]:
    return gates.first_logprobs(score, parameters, plan, pairs, ROWS)


def test_a_sound_run_passes(plan: Plan, pairs: list[Example], score: scores.Score, parameters, references: np.ndarray):
    gates.check_learnt(np.array([packing.lay_out(pair).learn.sum() for pair in pairs]), plan.examples(0))
    gates.check_packing(first(plan, pairs, score, parameters), score, parameters, plan, pairs, ROWS, "float32")
    gates.check_reference(first(plan, pairs, score, parameters), references)
    gates.check_first_loss(math.log(2), "float32")


def test_a_row_alone_divides_over_the_devices_that_share_it(
    plan: Plan, pairs: list[Example], score: scores.Score, parameters
):
    lengths = []

    def noting(parameters, batch):
        lengths.append(batch.tokens.shape[1])
        return score(parameters, batch)

    given = (parameters, plan, pairs, ROWS, "float32")
    gates.check_packing(first(plan, pairs, score, parameters), noting, *given, places_multiple=3)
    assert lengths and all(length % 3 == 0 and length < plan.row_length for length in lengths)


def test_an_example_that_teaches_nothing_is_refused():
    gates.check_learnt(np.array([3, 0, 5]), [0, 2])
    with pytest.raises(GateFailed, match="example 1 has no token to learn"):
        gates.check_learnt(np.array([3, 0, 5]), [2, 1])


def sees_before(config: llama.Config, monkeypatch: pytest.MonkeyPatch) -> scores.Score:
    """A score whose tokens see the segments before theirs."""
    sound = attention.visible

    def visible(queries, keys, *others):
        one = (side._replace(segments=side.segments * 0 + 1) for side in (queries, keys))
        return sound(*one, *others)

    monkeypatch.setattr(attention.blocks, "visible", visible)
    return scores.compiled(config, llama.Compute())


def test_segments_that_mix_are_refused(
    plan: Plan, pairs: list[Example], config: llama.Config, parameters, monkeypatch: pytest.MonkeyPatch
):
    score = sees_before(config, monkeypatch)
    with pytest.raises(GateFailed, match=r"example \d+ has log-probability .* packed and .* alone"):
        gates.check_packing(first(plan, pairs, score, parameters), score, parameters, plan, pairs, ROWS, "float32")


def test_numbers_that_are_none_are_refused(
    plan: Plan, pairs: list[Example], score: scores.Score, parameters, references: np.ndarray
):
    broken = {**parameters, "final_norm": parameters["final_norm"] * np.nan}
    with pytest.raises(GateFailed, match="nan"):
        gates.check_packing(first(plan, pairs, score, broken), score, broken, plan, pairs, ROWS, "float32")
    with pytest.raises(GateFailed, match="nan"):
        gates.check_reference(first(plan, pairs, score, broken), references * np.nan)


def test_a_reference_that_is_not_the_policy_is_refused(
    plan: Plan, pairs: list[Example], score: scores.Score, parameters, references: np.ndarray
):
    perturbed = references.copy()
    example = plan.updates[0][0][0]
    perturbed[example, 1] = np.nextafter(perturbed[example, 1], np.float32(0))  # the least difference there is
    with pytest.raises(GateFailed, match=f"example {example}: .* must be equal before the first step"):
        gates.check_reference(first(plan, pairs, score, parameters), perturbed)
    other = {**parameters, "final_norm": parameters["final_norm"] * 1.01}
    with pytest.raises(GateFailed, match="must be equal before the first step"):
        gates.check_reference(first(plan, pairs, score, other), references)


def test_references_that_are_not_computed_are_refused(
    plan: Plan, pairs: list[Example], score: scores.Score, parameters, references: np.ndarray
):
    for nothing in (np.zeros_like(references), np.full_like(references, np.nan)):
        with pytest.raises(GateFailed, match="must be equal"):
            gates.check_reference(first(plan, pairs, score, parameters), nothing)


def test_adapters_that_change_something_are_refused(
    plan: Plan, pairs: list[Example], score: scores.Score, parameters, config: llama.Config
):
    adapted = replace(config, lora=llama.Lora(2, 2.0, ("q_proj", "down_proj")))
    with_adapters = scores.compiled(adapted, llama.Compute())
    adapters = lora.start(adapted, jax.random.key(0))["adapters"]
    plain = first(plan, pairs, score, parameters)
    gates.check_adapters(first(plan, pairs, with_adapters, {**parameters, "adapters": adapters}), plain, "float32")
    adapters = {name: value + 0.1 for name, value in adapters.items()}
    changed = first(plan, pairs, with_adapters, {**parameters, "adapters": adapters})
    with pytest.raises(GateFailed, match="they must change nothing before the first step"):
        gates.check_adapters(changed, plain, "float32")


@pytest.mark.parametrize("loss", [0.6941, 0.6921, 0.0, math.inf, math.nan])
def test_a_first_loss_that_is_not_ln_2_is_refused(loss: float):
    with pytest.raises(GateFailed, match=r"the first loss is .*; at the reference it must be ln 2 = 0.693147"):
        gates.check_first_loss(loss, "float32")


def test_a_first_loss_in_bfloat16_may_be_a_little_off():
    gates.check_first_loss(math.log(2) + 0.01, "bfloat16")
    with pytest.raises(GateFailed):
        gates.check_first_loss(math.log(2) + 0.03, "bfloat16")
