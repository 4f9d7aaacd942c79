"""A search compiles every step that a run makes of what it finds, and each once."""

from pathlib import Path

import pytest

from bactrian import recipe as recipes
from bactrian.model import mesh as meshes
from bactrian.plan import compile, search, targets
from bactrian.plan.compile import Measured
from bactrian.plan.steps import Job

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
