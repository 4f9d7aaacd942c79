"""How much a stage has to do, from its data or from what the recipe says of it."""

from pathlib import Path

import numpy as np
import pytest
import tiny

from bactrian import recipe as recipes
from bactrian.errors import DataError, RecipeError
from bactrian.plan import workload
from bactrian.prepare import ALONE

RECIPES = Path(__file__).parents[2] / "recipes" / "tulu2"


@pytest.fixture(scope="module")
def drawn() -> workload.Workload:
    return workload.of(recipes.load(RECIPES / "dpo-70b.toml"), "dpo", 4, 16)


def test_without_the_data_a_recipe_says_how_much_there_is(drawn: workload.Workload):
    assert drawn.drawn
    assert drawn.updates == 5808
    assert drawn.config.hidden_size == 8192
    # 32 pairs of 805 places on average; clipping at a row's length takes a little off.
    assert drawn.places == pytest.approx(32 * 805, rel=0.01)
    # Pairs of places that see each other, E[n (n + 1) / 2]: for an exponential of mean m near m².
    assert drawn.pairs == pytest.approx(32 * 805**2, rel=0.05)


def test_what_a_run_refuses_for_its_length_is_refused_without_the_data_too():
    recipe = recipes.load(RECIPES / "dpo-70b.toml", ["model.max_positions=4096"])
    with pytest.raises(RecipeError, match=r"max_length is 8192, and hf:\S+ has 4096 positions; lower it"):
        workload.of(recipe, "dpo", 4, 16)


def test_rows_divide_over_the_mesh(drawn: workload.Workload):
    assert drawn.microbatch_rows == 4
    assert drawn.plan.rows % 4 == 0
    assert drawn.plan.row_length % 16 == 0
    assert drawn.places <= drawn.computed_places == drawn.microbatches * 4 * drawn.plan.row_length


def test_lengths_are_spread_as_those_of_the_mixture(drawn: workload.Workload):
    recipe = recipes.load(RECIPES / "sft-7b.toml")
    work = workload.of(recipe, "sft", 16, 1)
    assert (work.updates, work.places) == (5096, pytest.approx(128 * 1096, rel=0.01))
    lengths = np.random.default_rng(recipe.seed).exponential(1096, 326_154)
    # Ivison et al. 2023, section 2: a quarter of the conversations has up to 230 tokens, a quarter 1,464 or more.
    assert np.quantile(lengths, 0.25) == pytest.approx(230, rel=0.4)
    assert np.quantile(lengths, 0.75) == pytest.approx(1464, rel=0.1)


def test_with_the_data_the_plan_is_that_of_the_run(tiny_recipe: Path, in_tiny_cache: None):
    from bactrian import pipeline

    recipe = recipes.load(tiny_recipe)
    found = workload.of(recipe, "dpo", *ALONE[:2])
    _, prepared = pipeline.prepare_stage(recipe, "dpo")
    assert found.plan == prepared.training.plan
    assert not found.drawn
    tokens = [prepared.training.count(update)["tokens"] for update in range(found.updates)]
    assert found.places == pytest.approx(np.mean(tokens))
    shared = workload.of(recipe, "dpo", 8, 2)
    assert shared.microbatch_rows == 8


def test_what_is_stated_is_held_against_the_data(tiny_recipe: Path, in_tiny_cache: None):
    with pytest.raises(DataError, match="24 rows were read, and the recipe says 25"):
        workload.of(recipes.load(tiny_recipe, ["sft.data.0.rows=25"]), "sft", *ALONE[:2])
    done = tiny.call(
        "sft", tiny_recipe, f"model.config={RECIPES / 'llama-2-7b.json'}", "--run-dir", tiny_recipe.parent / "refused"
    )
    assert done.code == 2
    assert "another shape" in done.err
