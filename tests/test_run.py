"""Laws: a run belongs to one recipe; a file is written whole or not at all; nothing half-written stays."""

import errno
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from bactrian import recipe as recipes
from bactrian.errors import RunError, RunFailed
from bactrian.files import folders
from bactrian.files.atomic import read_jsonl, replacing, write_json, write_jsonl
from bactrian.files.cache import cache_root
from bactrian.recipe import Recipe
from bactrian.run import Run


@pytest.fixture
def tree() -> dict[str, Any]:
    source = {"path": "/pairs.jsonl", "format": "preference"}
    stage = {
        "batch_size": 2,
        "max_length": 16,
        "row_length": 32,
        "optimizer": {"learning_rate": 1e-3},
        "data": [source],
    }
    return {"name": "tiny", "model": {"source": "/base"}, "dpo": stage}


@pytest.fixture
def recipe(tree: dict[str, Any]) -> Recipe:
    return recipes.parse(tree, "tiny.toml")


def files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


# The folder


def test_a_run_is_taken_up_by_its_own_recipe_alone(tmp_path: Path, tree: dict[str, Any], recipe: Recipe):
    folder = tmp_path / "runs" / "tiny"
    assert Run.open(folder, recipe).recipe() == recipe
    write_json(folder / "ledger.json", {"kept": 1})
    assert Run.open(folder, recipe).evidence("ledger") == {"kept": 1}
    other = recipes.parse({**tree, "seed": 3, "dpo": {**tree["dpo"], "beta": 0.5}}, "tiny.toml")
    with pytest.raises(RunError) as caught:
        Run.open(folder, other)
    message = str(caught.value)
    assert message.startswith(f"{folder}: this run has another recipe (dpo.beta: 0.1 -> 0.5; seed: 0 -> 3)")
    assert "\n" not in message
    assert Run.existing(folder).recipe() == recipe


def test_what_is_not_a_run_is_left_alone(tmp_path: Path, recipe: Recipe):
    (tmp_path / "notes.txt").write_text("mine")
    for folder in (tmp_path, tmp_path / "notes.txt", tmp_path / "notes.txt" / "run"):
        with pytest.raises(RunError, match="choose another"):
            Run.open(folder, recipe)
        with pytest.raises(RunError, match="not a run folder"):
            Run.existing(folder)
    assert files(tmp_path) == ["notes.txt"]
    (tmp_path / "empty").mkdir()
    assert Run.open(tmp_path / "empty", recipe).recipe() == recipe


def test_evidence_grows(tmp_path: Path, recipe: Recipe):
    run = Run.open(tmp_path, recipe)
    assert run.evidence("evaluation") == {}
    run.record("evaluation", lambda content: content.update(base=0.1))
    run.record("evaluation", lambda content: content.update(dpo=0.9))
    assert run.evidence("evaluation") == {"base": 0.1, "dpo": 0.9}


def test_the_cache_is_where_the_environment_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("BACTRIAN_CACHE", str(tmp_path))
    assert cache_root() == tmp_path
    monkeypatch.setenv("BACTRIAN_CACHE", "")
    assert cache_root() == Path.home() / ".cache" / "bactrian"


# Whole or not at all


def put(path: Path, folder: bool):
    return folders.replacing(path) if folder else replacing(path)


def fill(path: Path, folder: bool, text: str) -> None:
    (path / text if folder else path).write_text(text)


def held(path: Path) -> list[str]:
    return [name for name in files(path) if name != folders.NAME] if path.is_dir() else [path.read_text()]


@pytest.mark.parametrize("folder", [False, True])
def test_replacing_puts_the_new_in_place_of_the_old(tmp_path: Path, folder: bool):
    path = tmp_path / "deep" / "thing"
    for text in ("old", "new"):
        with put(path, folder) as temporary:
            fill(temporary, folder, text)
            assert temporary.parent == path.parent
            assert not path.exists() or held(path) == ["old"]
        assert held(path) == [text]
    assert os.listdir(path.parent) == ["thing"]


@pytest.mark.parametrize("folder", [False, True])
@pytest.mark.parametrize("error", [ValueError("broken"), KeyboardInterrupt(), OSError(errno.EIO, "Input/output error")])
def test_an_error_leaves_the_old_and_nothing_else(tmp_path: Path, folder: bool, error: BaseException):
    path = tmp_path / "thing"
    for before in ([], ["thing"]):
        # A disk that fails ends in one line, which names the path.
        raised = RunFailed if isinstance(error, OSError) else type(error)
        with pytest.raises(raised) as caught, put(path, folder) as temporary:
            fill(temporary, folder, "half")
            raise error
        assert any(each is error for each in (caught.value, caught.value.__cause__))
        if raised is RunFailed:
            assert str(caught.value).startswith(f"{path}: cannot write: Input/output error; see to the disk")
        assert os.listdir(tmp_path) == before
        if not before:
            with put(path, folder) as temporary:
                fill(temporary, folder, "old")
    assert held(path) == ["old"]


def test_a_block_that_writes_nothing_leaves_the_old(tmp_path: Path):
    path = tmp_path / "thing"
    path.write_text("old")
    with pytest.raises(FileNotFoundError), replacing(path):
        pass
    assert held(path) == ["old"]
    assert os.listdir(tmp_path) == ["thing"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full, a device that is always full")
def test_a_full_disk_is_one_line_and_leaves_the_old(tmp_path: Path):
    path = tmp_path / "ledger.json"
    write_json(path, {"kept": 1})
    with pytest.raises(RunError) as caught, replacing(path) as temporary:
        temporary.symlink_to("/dev/full")
        temporary.write_text("x" * 100)
    assert str(caught.value) == (
        f"{path}: cannot write: No space left on device; free some space or choose another folder"
    )
    assert os.listdir(tmp_path) == ["ledger.json"]
    assert json.loads(path.read_text()) == {"kept": 1}


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES])
def test_a_disk_that_fills_up_while_writing_json_leaves_the_old(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
):
    path = tmp_path / "metrics.jsonl"
    write_jsonl(path, [{"step": 1}])

    def write_half(self: Path, text: str, **_: Any) -> int:
        with self.open("w") as file:
            file.write(text[: len(text) // 2])
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(Path, "write_text", write_half)
    with pytest.raises(RunError, match=os.strerror(number)):
        write_jsonl(path, [{"step": 1}, {"step": 2}])
    assert os.listdir(tmp_path) == ["metrics.jsonl"]
    assert read_jsonl(path) == [{"step": 1}]


def test_rows_come_back_whatever_their_text(tmp_path: Path):
    rows = [{"answer": text} for text in ("a\nb", "line\u2028paragraph\u2029next\x85", "\x0b\x0c\x1c\r\n", "é😀", "")]
    path = tmp_path / "samples.jsonl"
    assert read_jsonl(path) == []
    write_jsonl(path, rows)
    assert read_jsonl(path) == rows
    write_jsonl(path, [])
    assert read_jsonl(path) == []


# Metrics


def row(stage: str, step: int) -> dict[str, Any]:
    return {"stage": stage, "step": step, "loss": 1.0 / (step + 1)}


@pytest.mark.parametrize(
    ("stage", "step", "kept"),
    [
        ("sft", 2, [("sft", 1), ("sft", 2), ("sft", 2)]),
        ("sft", 0, []),
        ("dpo", 1, [("sft", 1), ("sft", 2), ("sft", 2), ("sft", 3), ("dpo", 1)]),
        ("dpo", 0, [("sft", 1), ("sft", 2), ("sft", 2), ("sft", 3)]),
    ],
)
def test_resuming_drops_later_rows_and_a_half_line(
    tmp_path: Path, recipe: Recipe, stage: str, step: int, kept: list[tuple[str, int]]
):
    run = Run.open(tmp_path, recipe)
    written = [("sft", 1), ("sft", 2), ("sft", 2), ("sft", 3), ("dpo", 1), ("dpo", 2)]
    write_jsonl(run.metrics_path, [row(*each) for each in written])
    whole = json.dumps(row("dpo", 3))
    for length in range(len(whole)):
        with run.metrics_path.open("a") as file:
            file.write(whole[:length])
        run.cut_metrics(stage, step)
        assert run.metrics() == [row(*each) for each in kept]
        assert run.metrics_path.read_text().count("\n") == len(kept)


def test_a_run_without_metrics_has_nothing_to_cut(tmp_path: Path, recipe: Recipe):
    run = Run.open(tmp_path, recipe)
    run.cut_metrics("dpo", 0)
    assert run.metrics() == []


def test_another_process_is_kept_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("BACTRIAN_CACHE", str(tmp_path / "cache"))
    held = Run(tmp_path / "run")
    held._lock()
    code = f"from bactrian.run import Run; from pathlib import Path; Run(Path({str(tmp_path / 'run')!r}))._lock()"
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "another process is working on this run" in other.stderr
    del held
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0
