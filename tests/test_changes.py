"""Law: a finished run takes over what changes none of its numbers, or goes on; all else is refused with the reason."""

import json
import shutil
from pathlib import Path

import pytest
import tiny
from huggingface_hub import ModelCard

from bactrian import changes
from bactrian import recipe as recipes
from bactrian.files.atomic import read_jsonl
from bactrian.run import Run

CONSTANT = ("sft.optimizer={learning_rate=1e-2, schedule='constant'}", "evaluation={}")


def sft(recipe: Path, folder: Path, *settings: str, back_to: str = "") -> tiny.Done:
    option = ["--from-checkpoint", back_to] if back_to else []
    return tiny.call("sft", recipe, *settings, "--run-dir", folder, *option)


def without_timing(folder: Path) -> list[dict]:
    return [{key: value for key, value in row.items() if key != "timing"} for row in Run(folder).metrics()]


@pytest.fixture(scope="module")
def constant(tiny_recipe: Path, tiny_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SFT alone, finished, at a constant learning rate. Nothing writes there."""
    folder = tmp_path_factory.mktemp("constant") / "run"
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("BACTRIAN_CACHE", str(tiny_cache))
        assert sft(tiny_recipe, folder, *CONSTANT).code == 0
    return folder


def test_export_and_names_are_free(tmp_path: Path, tiny_recipe: Path, tiny_run: Path, in_tiny_cache: None):
    folder = tmp_path / "run"
    shutil.copytree(tiny_run, folder)
    settings = [
        "tracking.tensorboard=true",
        "name=other",
        "export.name=A better name",
        "export.licence=mit",
        "export.dtype=float32",
    ]
    done = tiny.call("run", tiny_recipe, *settings, "--run-dir", folder)
    assert done.code == 0, done.err
    about = ModelCard.load(folder / "export" / "README.md")
    assert (about.data.to_dict()["license"], "# A better name" in about.text) == ("mit", True)
    assert json.loads((folder / "export" / "config.json").read_text())["torch_dtype"] == "float32"
    assert without_timing(folder) == without_timing(tiny_run)
    assert Run(folder).recipe().name == "other"
    assert not (folder / "earlier").exists()
    (events,) = (folder / "tensorboard").iterdir()
    assert b"dpo/heldout/margin" in events.read_bytes()


def test_more_epochs_go_on_from_the_last_checkpoint(
    tmp_path: Path, tiny_recipe: Path, constant: Path, in_tiny_cache: None
):
    folder, whole = tmp_path / "run", tmp_path / "whole"
    shutil.copytree(constant, folder)
    shutil.copytree(constant / "export", folder / "benchmarks" / "of-the-first")
    done = sft(tiny_recipe, folder, *CONSTANT, "sft.epochs=5")
    assert done.code == 0, done.err
    assert f"sft: goes on from step 15; what came after it is set aside in {folder / 'earlier' / 'sft-18'}" in done.err
    assert sft(tiny_recipe, whole, *CONSTANT, "sft.epochs=5").code == 0
    assert without_timing(folder) == without_timing(whole)
    for name in ("export/model.safetensors", "evaluation.json"):
        assert (folder / name).read_bytes() == (whole / name).read_bytes()
    kept = folder / "earlier" / "sft-18"
    for name in ("export/model.safetensors", "checkpoints/sft/final/model.safetensors", "metrics.jsonl"):
        assert (kept / name).read_bytes() == (constant / name).read_bytes()
    assert (kept / "benchmarks" / "of-the-first").is_dir() and not (folder / "benchmarks").exists()


def test_a_run_goes_back_to_any_checkpoint(tmp_path: Path, tiny_recipe: Path, tiny_run: Path, in_tiny_cache: None):
    folder = tmp_path / "run"
    shutil.copytree(tiny_run, folder)
    done = tiny.call("run", tiny_recipe, "--run-dir", folder, "--from-checkpoint", "sft:15")
    assert done.code == 0, done.err
    assert "sft: resuming after step 15 of 18" in done.err
    assert without_timing(folder) == without_timing(tiny_run)
    for name in ("export/model.safetensors", "evaluation.json", "samples.jsonl"):
        assert (folder / name).read_bytes() == (tiny_run / name).read_bytes()
    for name in ("checkpoints/dpo/final", "checkpoints/sft/final", "export"):
        assert (folder / "earlier" / "sft-18" / name / "model.safetensors").is_file()
    assert read_jsonl(folder / "earlier" / "sft-18" / "samples.jsonl") == Run(tiny_run).samples()


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ("sft:7", "no checkpoint of sft after step 7 is kept; those after the steps 15 are"),
        ("dpo", "--from-checkpoint dpo: write STAGE:STEP, for example sft:100"),
        ("ppo:3", "--from-checkpoint ppo:3: write STAGE:STEP, for example sft:100"),
    ],
)
def test_a_checkpoint_that_is_not_there_is_refused(
    tmp_path: Path, tiny_recipe: Path, tiny_run: Path, in_tiny_cache: None, asked: str, said: str
):
    folder = tmp_path / "run"
    shutil.copytree(tiny_run, folder)
    done = tiny.call("run", tiny_recipe, "--run-dir", folder, "--from-checkpoint", asked)
    assert done.code == 2 and said in done.err
    assert (folder / "export").exists() and not (folder / "earlier").exists()


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        (["sft.epochs=4"], "dpo has begun with what sft ended with"),
        (["dpo.epochs=3"], "the linear schedule of a longer stage has other learning rates from its first step on"),
        (["dpo.epochs=1"], "this run has another recipe (dpo.epochs: 2 -> 1)"),
        (["seed=6", "dpo.epochs=3"], "this run has another recipe (dpo.epochs: 2 -> 3; seed: 5 -> 6)"),
        (["evaluation.max_tokens=9"], "this run has another recipe (evaluation.max_tokens: 16 -> 9)"),
        (["mesh.data=2", "export.name=x", "tracking.tensorboard=true"], None),
    ],
)
def test_what_cannot_change_is_refused_with_the_reason(
    tiny_recipe: Path, tiny_run: Path, settings: list[str], why: str | None
):
    found = changes.refused(tiny_run, Run(tiny_run).recipe(), recipes.load(tiny_recipe, settings))
    assert (found is None) == (why is None)
    assert why is None or (found is not None and why in found)


def test_without_a_checkpoint_there_is_nothing_to_go_on_from(tmp_path: Path, tiny_recipe: Path, constant: Path):
    shutil.copytree(constant, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "sft" / "steps")
    new = recipes.only(recipes.load(tiny_recipe, [*CONSTANT, "sft.epochs=5"]), ["sft"], "x")
    found = changes.refused(tmp_path / "run", Run(constant).recipe(), new)
    assert found == "sft.epochs: 3 -> 5 cannot be taken over: no checkpoint of sft is kept to go on from"
