"""A run that trains adapters: what it leaves is the base model with them merged, and cut short it ends the same."""

import json
import re
import shutil
from pathlib import Path

import many_hosts
import numpy as np
import pytest
import safetensors.numpy
import tiny

from bactrian import recipe as recipes
from bactrian.data import tokenizer as tokenizers
from bactrian.errors import Preempted
from bactrian.model import weights
from bactrian.run import Run
from bactrian.stage import Training

FILE = "adapter_model.safetensors"
SETTINGS = ["sft.lora.rank=8", "sft.optimizer.learning_rate=3e-2", "sft.epochs=2", "evaluation={}"]
SETTINGS += ["dpo.lora={rank = 4, targets = ['v_proj', 'down_proj']}", "dpo.optimizer.learning_rate=2e-2"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, tiny_recipe: Path, tiny_cache: Path) -> Path:
    folder = tmp_path_factory.mktemp("lora") / "run"
    done = tiny.run(["run", tiny_recipe, *SETTINGS, "--run-dir", folder], tiny_cache)
    assert done.code == 0, done.err
    return folder


def assert_merged_as_peft_does(folder: Path, recipe: Path) -> None:
    peft, transformers = pytest.importorskip("peft"), pytest.importorskip("transformers")
    bases = {"sft": recipes.load(recipe).model.source, "dpo": str(folder / "checkpoints" / "sft" / "final")}
    for stage, base in bases.items():
        stage_folder = folder / "checkpoints" / stage
        about = json.loads((stage_folder / "adapter" / "adapter_config.json").read_text())
        assert about["base_model_name_or_path"] == base
        model = transformers.AutoModelForCausalLM.from_pretrained(base, dtype="float32")
        before = {name: value.clone() for name, value in model.state_dict().items()}
        merged = peft.PeftModel.from_pretrained(model, str(stage_folder / "adapter")).merge_and_unload().state_dict()
        final = transformers.AutoModelForCausalLM.from_pretrained(stage_folder / "final", dtype="float32").state_dict()
        changed = set()
        for name, value in final.items():
            np.testing.assert_allclose(value.numpy(), merged[name].numpy(), rtol=1e-5, atol=1e-6)
            if not np.array_equal(value.numpy(), before[name].numpy()):
                changed.add(name.split(".")[-2])
        assert changed == set(about["target_modules"])


def test_each_stage_ends_with_its_adapters_merged(whole: Path, tiny_recipe: Path):
    assert_merged_as_peft_does(whole, tiny_recipe)
    drawn = [safetensors.numpy.load_file(whole / "checkpoints" / stage / "adapter" / FILE) for stage in ("sft", "dpo")]
    name = next(each for each in drawn[1] if each.endswith("layers.0.self_attn.v_proj.lora_A.weight"))
    assert np.abs(drawn[0][name][:4] - drawn[1][name]).max() > 0.1, "each stage draws its own"
    assert not list((whole / "checkpoints").rglob(".*"))


def test_it_learns_and_says_what_it_trained(whole: Path):
    run = Run(whole)
    rows = {name: [row for row in run.metrics() if row["stage"] == name] for name in ("sft", "dpo")}
    losses = {name: [row["loss"] for row in rows[name] if row["kind"] == "train"] for name in rows}
    assert losses["sft"][-1] < losses["sft"][0] - 0.2  # of a random model whose embeddings stay as they are
    assert losses["dpo"][0] == pytest.approx(np.log(2), abs=1e-4) and losses["dpo"][-1] < 0.67
    evaluation = run.evidence("evaluation")
    # Held-out losses are measured with adapters beside the model while it trains, and with them merged at the end.
    held = [row["loss"] for row in rows["sft"] if row["kind"] == "heldout"]
    assert evaluation["sft_loss"]["sft"] == pytest.approx(held[-1], rel=1e-5)
    card = (whole / "export" / "README.md").read_text()
    assert re.search(r"LoRA.*rank 8, alpha 16, of q_proj, .*down_proj.*rank 4, alpha 16, of v_proj, down_proj", card)


@pytest.mark.slow
def test_cut_short_it_ends_the_same(
    whole: Path, tmp_path: Path, tiny_recipe: Path, in_tiny_cache: None, monkeypatch: pytest.MonkeyPatch
):
    record = Training._record

    def cut(self: Training, update, *given) -> None:
        record(self, update, *given)
        if self.prepared.name == "dpo" and update.number == 5:
            raise Preempted("cut short")

    monkeypatch.setattr(Training, "_record", cut)
    command = ["run", tiny_recipe, *SETTINGS, "--run-dir", tmp_path / "run"]
    assert tiny.call(*command).code != 0
    kept = sum(file.stat().st_size for file in (tmp_path / "run" / "checkpoints" / "dpo" / "steps").rglob("*"))
    model = sum(file.stat().st_size for file in (whole / "checkpoints" / "dpo" / "final").glob("*.safetensors"))
    assert kept < model, "a checkpoint holds no frozen parameters"
    monkeypatch.setattr(Training, "_record", record)
    done = tiny.call(*command)
    assert done.code == 0, done.err
    for stage in ("sft", "dpo"):
        ends = [folder / "checkpoints" / stage / "final" for folder in (whole, tmp_path / "run")]
        assert weights.fingerprint(ends[0]) == weights.fingerprint(ends[1])


@pytest.mark.slow
def test_two_processes_train_the_same_adapters(whole: Path, tmp_path: Path, tiny_recipe: Path, tiny_cache: Path):
    command = tiny.command("run", tiny_recipe, *SETTINGS, "--run-dir", tmp_path / "run")
    ended = many_hosts.finish(many_hosts.start(command, tiny_cache, 2, devices=2))
    assert [each.code for each in ended] == [0, 0], ended
    many_hosts.assert_same_curve(tmp_path / "run", whole)
    assert_merged_as_peft_does(tmp_path / "run", tiny_recipe)


@pytest.mark.slow
def test_what_is_kept_is_the_best_step_merged(tmp_path: Path, tiny_recipe: Path, in_tiny_cache: None):
    # What is held out looks like nothing in the data, so that learning makes it worse.
    turns = [{"role": "user", "content": "QQQ"}, {"role": "assistant", "content": "#~#~ %%%%"}]
    (tmp_path / "odd.jsonl").write_text(json.dumps({"messages": turns}) + "\n")
    settings = [*SETTINGS, "sft.keep_best=true", "sft.evaluate_every=2", "sft.checkpoint_every=2"]
    settings.append(f"sft.heldout=[{{path = '{tmp_path / 'odd.jsonl'}', format = 'messages'}}]")
    done = tiny.call("sft", tiny_recipe, *settings, "--run-dir", tmp_path / "run")
    assert done.code == 0, done.err
    run = Run(tmp_path / "run")
    held = [row["loss"] for row in run.metrics() if row["kind"] == "heldout"]
    assert held[-1] > min(held) + 0.01, "the last step is not the best"
    assert run.evidence("evaluation")["sft_loss"]["sft"] == pytest.approx(min(held), rel=1e-5)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (["sft.lora.targets=['q_proj', 'qproj']"], "sft.lora.targets.1"),
        (["sft.lora.targets=['q_proj', 'q_proj']"], "names a matrix twice"),
        (["sft.lora.rank=0"], "sft.lora.rank"),
        (["sft.lora.ranks=8"], "did you mean sft.lora.rank?"),
        (["sft.lora={}", "model.add_tokens=['<|tool|>']"], "model.add_tokens adds tokens whose embeddings sft.lora"),
    ],
)
def test_what_cannot_be_is_refused(settings: list[str], said: str, tiny_recipe: Path, tmp_path: Path):
    done = tiny.call("run", tiny_recipe, *settings, "--run-dir", tmp_path / "run")
    assert done.code == 2 and said in done.err, done.err
    assert not (tmp_path / "run").exists()


def test_tokens_that_the_model_does_not_have_are_refused(tiny_recipe: Path, tmp_path: Path, in_tiny_cache: None):
    base = Path(recipes.load(tiny_recipe).model.source)
    shutil.copytree(base, tmp_path / "base")
    tokenizers.save(tokenizers.load(base).add_tokens(("<|tool|>",)), tmp_path / "base", 512)
    settings = [*SETTINGS, f"model.source={tmp_path / 'base'}", "--run-dir", tmp_path / "run"]
    done = tiny.call("run", tiny_recipe, *settings)
    assert done.code == 2 and "sft.lora learns no embeddings, and the tokenizer has" in done.err, done.err
    assert not (tmp_path / "run").exists()
