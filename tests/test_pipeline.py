"""What a run leaves behind: every file of its folder, and a model that answers alike wherever it is loaded."""

import importlib
import json
import struct
from pathlib import Path
from typing import Any

import pytest
import tiny

from bactrian import recipe as recipes
from bactrian import stage
from bactrian.files.atomic import read_jsonl
from bactrian.model import weights
from bactrian.pipeline import Pipeline
from bactrian.run import Run
from bactrian.stage import Computation

LABELS = ("base", "sft", "dpo")


@pytest.fixture(scope="module")
def metrics(tiny_run: Path) -> list[dict[str, Any]]:
    return Run(tiny_run).metrics()


@pytest.fixture(scope="module")
def evaluation(tiny_run: Path) -> dict[str, Any]:
    return Run(tiny_run).evidence("evaluation")


def rows_of(metrics: list[dict[str, Any]], stage: str, kind: str) -> list[dict[str, Any]]:
    return [row for row in metrics if row["stage"] == stage and row["kind"] == kind]


def test_the_folder_holds_what_run_says(tiny_run: Path):
    names = {"recipe.json", "ledger.json", "metrics.jsonl", "evaluation.json", "samples.jsonl", "sums.json"}
    assert {path.name for path in tiny_run.iterdir()} == names | {"plots", "checkpoints", "export"}
    assert (tiny_run / "plots" / "loss.png").read_bytes().startswith(b"\x89PNG")
    assert {path.name for path in (tiny_run / "checkpoints").iterdir()} == {"sft", "dpo"}
    assert "# Tiny" in (tiny_run / "export" / "README.md").read_text()


def test_every_step_has_a_line(metrics: list[dict[str, Any]], tiny_run: Path):
    ledger = Run(tiny_run).evidence("ledger")
    for name, steps in (("sft", 18), ("dpo", 12)):
        rows = rows_of(metrics, name, "train")
        assert [row["step"] for row in rows] == list(range(1, steps + 1))
        assert [row["step"] for row in rows_of(metrics, name, "heldout")] == list(range(6, steps + 1, 6))
        training = ledger[name]["training"]
        assert sum(row["learned_tokens"] for row in rows) == training["learned"]
        assert sum(row["tokens"] for row in rows) == training["learned"] + training["masked"]
        assert sum(row["examples"] for row in rows) == training["examples"]
        assert training["places"] == training["learned"] + training["masked"] + training["padding"]
        assert {"at", "seconds", "tokens_per_second", "crc"} == set(rows[0]["timing"])


def test_both_stages_learn(metrics: list[dict[str, Any]], evaluation: dict[str, Any]):
    sft = [row["loss"] for row in rows_of(metrics, "sft", "train")]
    dpo = [row["loss"] for row in rows_of(metrics, "dpo", "train")]
    assert sft[-1] < 0.7 * sft[0]
    assert dpo[0] == pytest.approx(0.693147, abs=1e-4)
    assert dpo[-1] < 0.5
    assert evaluation["sft_loss"]["sft"] < evaluation["sft_loss"]["base"] - 1
    assert evaluation["preference_margin"]["dpo"] > evaluation["preference_margin"]["sft"]
    assert evaluation["greets"]["base"] == 0
    assert evaluation["greets"]["dpo"] == 1


def test_the_evaluation_agrees_with_the_metrics(metrics: list[dict[str, Any]], evaluation: dict[str, Any]):
    names = {"sft_loss", "preference_accuracy", "preference_margin", "greets", "on_topic"}
    assert set(evaluation) == names | {"counts"}
    assert all(tuple(evaluation[name]) == LABELS for name in names)
    assert evaluation["counts"] == {"heldout_conversations": 6, "heldout_pairs": 6, "prompts": 4}
    last = {name: rows_of(metrics, name, "heldout")[-1] for name in ("sft", "dpo")}
    assert evaluation["sft_loss"]["sft"] == pytest.approx(last["sft"]["loss"], rel=1e-6)
    # DPO's own margin is over the model that it starts from; those in the evaluation are over the base model.
    gained = evaluation["preference_margin"]["dpo"] - evaluation["preference_margin"]["sft"]
    assert 0.1 * gained == pytest.approx(last["dpo"]["margin"], rel=1e-4)


def test_the_rules_count_the_samples(tiny_run: Path, tiny_recipe: Path, evaluation: dict[str, Any]):
    samples = Run(tiny_run).samples()
    assert [row["prompt"] for row in samples] == [
        row["prompt"] for row in read_jsonl(tiny_recipe.parent / "prompts.jsonl")
    ]
    for label in LABELS:
        greeting = ["good day" in row["answers"][label].lower() for row in samples]
        assert [row["rules"][label]["greets"] for row in samples] == greeting
        assert evaluation["greets"][label] == sum(greeting) / len(samples)


def test_no_secret_is_written(tiny_run: Path, shared_folder: Path):
    written = [path for path in tiny_run.rglob("*") if path.is_file()]
    assert not [path for path in written if tiny.SECRET.encode() in path.read_bytes()]
    said = (shared_folder / "run.stderr").read_text()
    assert "done:" in said
    assert tiny.SECRET not in said


def test_the_exported_model_answers_as_the_command_does(tiny_run: Path, in_tiny_cache: None):
    transformers = pytest.importorskip("transformers")
    question = "Where does Clara find fish?"
    tokenizer = transformers.AutoTokenizer.from_pretrained(tiny_run / "export")
    model = transformers.AutoModelForCausalLM.from_pretrained(tiny_run / "export", dtype="float32")
    inputs = tokenizer.apply_chat_template(
        [{"role": "user", "content": question}], add_generation_prompt=True, return_dict=True, return_tensors="pt"
    )
    output = model.generate(**inputs, max_new_tokens=24, do_sample=False)
    expected = tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    assert expected.startswith("Good day!")
    for folder in (tiny_run / "export", tiny_run):
        done = tiny.call("generate", folder, "--prompt", question, "--max-tokens", 24)
        assert done.out == expected + "\n"
        assert done.code == 0


def scalars(events: Path) -> list[tuple[str, int, float]]:
    """Tag, step and value of every scalar in an event file: records of a length, its check, the data, its check."""
    event_pb2 = importlib.import_module("tensorboardX.proto.event_pb2")
    data, at, found = events.read_bytes(), 0, []
    while at < len(data):
        [length] = struct.unpack_from("<Q", data, at)
        event = event_pb2.Event.FromString(data[at + 12 : at + 12 + length])
        found += [(value.tag, event.step, value.simple_value) for value in event.summary.value]
        at += length + 16
    return found


def test_a_single_stage_runs_on_other_data(tmp_path: Path, tiny_recipe: Path, in_tiny_cache: None):
    rows = (tiny_recipe.parent / "sft.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "few.jsonl").write_text("".join(rows[:8]))
    # As many steps as in the recipe, so that the program is one that is compiled already.
    few = [f"sft.data.0.path={tmp_path / 'few.jsonl'}", "sft.epochs=9", "sft.heldout=[]", "sft.evaluate_every=0"]
    done = tiny.call(
        "sft", tiny_recipe, *few, "evaluation={}", "tracking.tensorboard=true", "--run-dir", tmp_path / "a"
    )
    assert done.code == 0, done.err
    run = Run(tmp_path / "a")
    assert {row["stage"] for row in run.metrics()} == {"sft"}
    assert run.evidence("ledger")["sft"]["sources"][0]["read"] == 8
    assert run.evidence("evaluation") == {"counts": {}}, "nothing was asked for"
    [events] = (run.folder / "tensorboard").iterdir()
    logged = [value for tag, _, value in scalars(events) if tag == "sft/train/loss"]
    assert logged == pytest.approx([row["loss"] for row in run.metrics()], rel=1e-6)

    done = tiny.call("dpo", tiny_recipe, f"model.source={run.folder}", "--run-dir", tmp_path / "b")
    assert done.code == 0, done.err
    other = Run(tmp_path / "b")
    assert {row["stage"] for row in other.metrics()} == {"dpo"}
    assert set(other.evidence("evaluation")["preference_margin"]) == {"base", "dpo"}
    assert other.recipe().sft is None


def test_added_tokens_are_learnt_and_exported(tmp_path: Path, tiny_recipe: Path, in_tiny_cache: None):
    transformers = pytest.importorskip("transformers")
    base = recipes.load(tiny_recipe).model.source
    options = ['model.add_tokens=["<|tool|>"]', "sft.heldout=[]", "sft.evaluate_every=0", "evaluation={}"]
    done = tiny.call("sft", tiny_recipe, *options, "--run-dir", tmp_path / "run")
    assert done.code == 0, done.err
    before = transformers.AutoTokenizer.from_pretrained(base)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "run" / "export")
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "export", dtype="float32")
    assert len(tokenizer) == len(before) + 1 == model.get_input_embeddings().num_embeddings
    assert tokenizer("a <|tool|> b", add_special_tokens=False)["input_ids"].count(len(before)) == 1
    # A run that is taken up, and a stage that starts from this one, find the token where it was left.
    assert tiny.call("sft", tiny_recipe, *options, "--run-dir", tmp_path / "run").code == 0
    done = tiny.call("generate", tmp_path / "run", "--prompt", "Where does Ada find bread?", "--max-tokens", 4)
    assert done.code == 0, done.err


def test_the_reference_of_one_run_serves_the_next(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, tiny_recipe: Path, tiny_run: Path, in_tiny_cache: None
):
    computed = []
    compute = stage.reference.microbatches
    monkeypatch.setattr(stage.reference, "microbatches", lambda *given: computed.append(given[2]) or compute(*given))
    pipeline = Pipeline.open(recipes.load(tiny_recipe), tmp_path / "run")
    held = pipeline.prepared["dpo"].heldout
    assert held is not None
    base = pipeline.base.parameters()
    fingerprint = weights.fingerprint(pipeline.base.path)
    computation = Computation.of(pipeline.recipe.model, pipeline.base.config)
    first = stage.logprobs(computation, base, held, 2, fingerprint, tmp_path / "cache", "base")
    assert computed
    computed.clear()
    again = stage.logprobs(computation, base, held, 2, fingerprint, tmp_path / "cache", "base")
    assert not computed
    assert (first == again).all()
    stage.logprobs(computation, base, held, 2, "other weights", tmp_path / "cache", "base")
    assert computed


def test_the_recipe_on_disk_is_the_recipe(tiny_run: Path, tiny_recipe: Path):
    assert Run(tiny_run).recipe() == recipes.load(tiny_recipe)
    assert json.loads((tiny_run / "recipe.json").read_text())["sft"]["optimizer"]["beta2"] == 0.999
