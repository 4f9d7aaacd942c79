"""A search compiles every step that a run makes of what it finds, and each once."""

from dataclasses import replace
from pathlib import Path

import pytest

from bactrian import recipe as recipes
from bactrian.errors import RunFailed
from bactrian.model import llama
from bactrian.model import mesh as meshes
from bactrian.plan import compile, expected, hlo_text, search, targets, workload
from bactrian.plan.compile import Measured
from bactrian.plan.steps import Job
from bactrian.plan.workload import Workload

RECIPE = Path(__file__).parents[2] / "recipes" / "tulu2" / "dpo-7b.toml"


@pytest.mark.parametrize(
    ("changes", "made"),
    [([], ["train", "reference"]), (["evaluation.prompts=q.jsonl"], ["train", "reference", "decode"])],
)
def test_what_is_found_fits_in_every_step_that_a_run_makes(
    changes: list[str], made: list[str], monkeypatch: pytest.MonkeyPatch
):
    measured: list[Job] = []

    def measure(job: Job) -> Measured:
        measured.append(job)
        # The first candidate fits in its update and in nothing else.
        is_too_large = job.kind == "reference" and len(measured) < 3
        return Measured(1e12 if is_too_large else 1e9, {"parameters": 1}, (), (), "blocked", 1.0)

    monkeypatch.setattr(compile, "measure", measure)
    found = list(search.best(recipes.load(RECIPE, changes), "dpo", targets.find("8xh100")))
    assert len(found) == 3 and all(planned.fits for planned in found)
    assert all(list(planned.steps) == made for planned in found)
    assert [job.kind for job in measured] == made * 4


def test_a_slice_of_three_times_a_power_of_two_has_three_copies():
    found = search.candidates(recipes.load(RECIPE), "dpo", targets.find("v5p-384"))
    assert {candidate.recipe.mesh.data for candidate in found} == {3}, "4,096 features do not divide by 3"
    for candidate in found:
        sizes = meshes.sizes(candidate.recipe.mesh, 192)
        assert candidate.recipe.dpo is not None
        assert candidate.recipe.dpo.microbatch_rows % (3 * sizes["fsdp"]) == 0


def test_frozen_weights_send_no_gradients_and_gathered_keys_go_to_all():
    recipe = recipes.load(RECIPE)
    sizes = {"data": 1, "fsdp": 2, "sequence": 4, "tensor": 1}
    work = workload.of(recipe, "dpo", *meshes.parts(sizes))

    def sent(work: Workload) -> dict[tuple[str, tuple[str, ...]], float]:
        return {(each.kind, each.axes): each.sent for each in expected.collectives(work, sizes)}

    weights = ("all-gather", ("fsdp", "sequence"))
    frozen = replace(work, adapters=llama.Lora(64, 16.0, ("q_proj",)))
    assert sent(frozen)[weights] == pytest.approx(2 / 3 * sent(work)[weights])
    # Of 32 heads of 128 each device gives three quarters of its queries, keys, values and results, in two bytes.
    places = work.microbatch_rows * work.plan.row_length / 8
    assert sent(work)["all-to-all", ("sequence",)] == pytest.approx(3 * 32 * places * 2 * 4 * 4096 * 3 / 4)
    # Three heads of keys are gathered: each device gives all three others its keys and values.
    narrow = replace(work.config, num_heads=9, num_kv_heads=3, hidden_size=9 * 128)
    gathered = sent(replace(work, config=narrow))["all-gather", ("sequence",)]
    assert gathered == pytest.approx(3 * 32 * places * 2 * 2 * 3 * 128 * 3)


def test_a_text_that_is_misread_is_no_candidate_that_does_not_fit(monkeypatch: pytest.MonkeyPatch):
    tried: list[Job] = []

    def measure(job: Job) -> Measured:
        tried.append(job)
        raise RunFailed("it does not compile") if len(tried) == 1 else hlo_text.misread("an operand that nothing makes")

    monkeypatch.setattr(compile, "measure", measure)
    with pytest.raises(hlo_text.Misread, match="nothing makes"):
        list(search.best(recipes.load(RECIPE), "dpo", targets.find("8xh100")))
    assert len(tried) == 2
