"""The six systems of the Tulu 2 model card as recipes: the updates of the originals, and each one trained small."""

import json
from pathlib import Path

import pytest
import tiny

from bactrian import recipe as recipes
from bactrian.data import mixture
from bactrian.model import hf_config

FOLDER = Path(__file__).parents[1] / "recipes" / "tulu2"
SIZES = ["7b", "13b", "70b"]
UPDATES = {"sft": 5096, "dpo": 5808}
PARAMETERS = {"7b": 6.738e9, "13b": 13.016e9, "70b": 68.977e9}  # as Llama 2's own paper counts: 6.7, 13.0 and 69.0


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("stage", ["sft", "dpo"])
def test_a_recipe_makes_the_updates_of_the_original(stage: str, size: str):
    recipe = recipes.load(FOLDER / f"{stage}-{size}.toml")
    (settings,) = recipe.stages().values()
    (source,) = settings.data
    assert source.rows is not None
    updates = mixture.order(source.rows, settings.batch_size, settings.epochs, recipe.seed)
    assert len(updates) == UPDATES[stage]
    rates = {"sft": 1e-5 if size == "70b" else 2e-5, "dpo": 5e-7}
    assert settings.optimizer.learning_rate == rates[stage]
    assert (settings.max_length, recipe.model.max_positions) == (8192, 8192)


@pytest.mark.parametrize("size", SIZES)
def test_the_stated_shapes_are_those_of_llama_2(size: str):
    import math

    import jax

    from bactrian.model import llama

    specs = llama.specs(hf_config.read_file(FOLDER / f"llama-2-{size}.json"))
    flat = jax.tree.leaves(specs, is_leaf=lambda node: isinstance(node, llama.Spec))
    assert sum(math.prod(spec.shape) for spec in flat) == pytest.approx(PARAMETERS[size], rel=1e-3)


@pytest.fixture(scope="module")
def world(shared_folder: Path, tiny_recipe: Path) -> Path:
    """The tiny model, and as many rows as one update of the recipes takes."""
    folder = shared_folder / "tulu2"
    with tiny.once(folder) as is_mine:
        if is_mine:
            folder.mkdir()
            for name, count in (("sft", 130), ("pairs", 33)):
                lines = (tiny_recipe.parent / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
                tiny.write_rows(folder / f"{name}.jsonl", [json.loads(lines[i % len(lines)]) for i in range(count)])
    return folder


def mini(stage: str, model: Path, data: Path, rows: int) -> list[str]:
    """The changes of docs/plan.md that make a recipe small: another model and other data, on one device."""
    source = f"{stage}.data.0"
    return [
        f"model.source={model}",
        f"model.config={model / 'config.json'}",
        "mesh.sequence=1",
        "mesh.tensor=1",
        f"{source}.path={data}",
        f"{source}.split=train",
        f"{source}.rows={rows}",
    ]


SLOW = pytest.mark.slow


@pytest.mark.parametrize("size", ["7b", pytest.param("13b", marks=SLOW), pytest.param("70b", marks=SLOW)])
@pytest.mark.parametrize(
    ("stage", "file", "rows", "updates"), [pytest.param("sft", "sft", 130, 2, marks=SLOW), ("dpo", "pairs", 33, 3)]
)
def test_a_recipe_trains_small(
    world: Path, tiny_recipe: Path, tmp_path: Path, in_tiny_cache: None, stage, file, rows, updates, size
):
    changes = mini(stage, tiny_recipe.parent / "base", world / f"{file}.jsonl", rows)
    folder = tmp_path / "run"
    done = tiny.call(stage, FOLDER / f"{stage}-{size}.toml", *changes, "--run-dir", folder)
    assert done.code == 0, done.err
    metrics = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    trained = [row for row in metrics if row["kind"] == "train"]
    assert [row["step"] for row in trained] == list(range(1, updates + 1))
    assert (folder / "export" / "config.json").is_file()
    assert json.loads((folder / "export" / "config.json").read_text())["max_position_embeddings"] == 8192
