"""The law of a run: however often it is cut short, it ends as one that was not, bit for bit.

A moment to cut it is told by what the run has written, never by the clock.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import tiny

from bactrian import recipe as recipes
from bactrian.files.atomic import read_jsonl
from bactrian.pipeline import Pipeline
from bactrian.run import Run
from bactrian.stage import Training

INTERRUPTED = re.compile(
    r"interrupted, after step (\d+) of \d+ of (sft|dpo), which is saved; the same command resumes it"
)
Moment = Callable[[Path], bool]


def has_steps(stage: str, count: int) -> Moment:
    """Whether a stage has made so many steps; reads nothing of a line that is still being written."""

    def reached(folder: Path) -> bool:
        path = folder / "metrics.jsonl"
        lines = path.read_text().splitlines() if path.exists() else []
        return sum(f'"stage": "{stage}", "kind": "train"' in line for line in lines) >= count

    return reached


def has_measured(label: str) -> Moment:
    def reached(folder: Path) -> bool:
        path = folder / "evaluation.json"
        return path.exists() and f'"{label}"' in path.read_text()

    return reached


def start_and_cut(recipe: Path, folder: Path, cache: Path, moment: Moment, how: signal.Signals) -> tiny.Done:
    """Start the command and send it a signal at a moment; an error if it ends before."""
    command = tiny.command("run", recipe, "--run-dir", folder)
    # A shell that runs the tests in the background has the signal ignored, which processes inherit.
    ours = signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        process = subprocess.Popen(
            command, env=tiny.environment(cache), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
    finally:
        signal.signal(signal.SIGINT, ours)
    with process:
        try:
            give_up = time.monotonic() + 120
            while not moment(folder):
                assert process.poll() is None, f"it ended before: {process.communicate()}"
                assert time.monotonic() < give_up, "the moment never came"
                time.sleep(0.002)
            process.send_signal(how)
            out, err = process.communicate(timeout=60)
        finally:
            process.kill()
    return tiny.Done(process.returncode, out, err)


def without_timing(folder: Path) -> list[dict]:
    return [{key: value for key, value in row.items() if key != "timing"} for row in Run(folder).metrics()]


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def assert_same_results(folder: Path, other: Path) -> None:
    assert without_timing(folder) == without_timing(other)
    for name in (
        "ledger.json",
        "evaluation.json",
        "samples.jsonl",
        "export/model.safetensors",
        "export/tokenizer.json",
    ):
        assert (folder / name).read_bytes() == (other / name).read_bytes(), name


def is_left_behind(path: Path) -> bool:
    return path.suffix in (".tmp", ".old") or "checkpoint-tmp" in path.name or path.name.endswith(".partial.npy")


@pytest.fixture
def own_cache(tmp_path: Path, tiny_cache: Path) -> Path:
    """A cache with the compiled programs alone: the tokens and the reference are to be made again."""
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "xla").symlink_to(tiny_cache / "xla")
    return tmp_path / "cache"


def test_a_run_cut_short_resumes_to_the_same_bits(tmp_path: Path, tiny_recipe: Path, tiny_run: Path, own_cache: Path):
    folder = tmp_path / "run"
    moments = {
        "a step of SFT": has_steps("sft", 8),
        "the reference pass, or just before": has_measured("sft"),
        "a step of DPO": has_steps("dpo", 5),
    }
    for name, moment in moments.items():
        cut = start_and_cut(tiny_recipe, folder, own_cache, moment, signal.SIGKILL)
        assert cut.code == -signal.SIGKILL, f"{name}: {cut}"
        assert not (folder / "export").exists(), f"{name}: it was over already"
    # Ctrl-C saves, and says where.
    cut = start_and_cut(tiny_recipe, folder, own_cache, has_steps("dpo", 7), signal.SIGINT)
    assert cut.code == 130, cut
    assert (said := INTERRUPTED.fullmatch(cut.err.splitlines()[-1])), cut.err
    assert "Traceback" not in cut.err

    done = tiny.run(["run", tiny_recipe, "--run-dir", folder], own_cache)
    assert done.code == 0, done.err
    assert f"{said[2]}: resuming after step {said[1]} of" in done.err
    assert_same_results(folder, tiny_run)
    left = [path for place in (folder, own_cache / "references", own_cache / "corpora") for path in place.rglob("*")]
    assert not [path for path in left if is_left_behind(path)]


def interrupt_when(monkeypatch: pytest.MonkeyPatch, holder: type, method: str, moment: Callable[..., bool]) -> None:
    """Ctrl-C as soon as a method has been called at a moment."""
    original = getattr(holder, method)

    def then_interrupt(*given, **named):
        result = original(*given, **named)
        if moment(*given):
            os.kill(os.getpid(), signal.SIGINT)
        return result

    monkeypatch.setattr(holder, method, then_interrupt)


def at_step(number: int) -> Callable[..., bool]:
    return lambda run, row: (row["kind"], row["step"]) == ("train", number)


@pytest.mark.parametrize("step", [6, 18], ids=["an evaluation", "the last evaluation"])
def test_ctrl_c_saves_where_no_checkpoint_is_due(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, tiny_recipe: Path, tiny_run: Path, in_tiny_cache: None, step: int
):
    folder = tmp_path / "run"
    command = ("sft", tiny_recipe, "sft.checkpoint_every=0", "evaluation={}", "--run-dir", folder)
    with monkeypatch.context() as patched:
        interrupt_when(patched, Run, "append_metrics", at_step(step))
        cut = tiny.call(*command)
    assert cut.code == 130
    assert (said := INTERRUPTED.fullmatch(cut.err.splitlines()[-1])), cut.err
    assert int(said[1]) in (step, step + 1)
    assert os.listdir(folder / "checkpoints" / "sft" / "steps") == [said[1]]
    done = tiny.call(*command)
    assert done.code == 0, done.err
    assert f"sft: resuming after step {said[1]} of 18" in done.err
    assert without_timing(folder) == [row for row in without_timing(tiny_run) if row["stage"] == "sft"]


def test_ctrl_c_while_a_stage_is_saved_loses_no_step(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, tiny_recipe: Path, tiny_run: Path, in_tiny_cache: None
):
    folder = tmp_path / "run"
    command = ("sft", tiny_recipe, "sft.checkpoint_every=0", "evaluation={}", "--run-dir", folder)
    with monkeypatch.context() as patched:
        interrupt_when(patched, Training, "execute", lambda *_: True)
        cut = tiny.call(*command)
    assert cut.code == 130
    assert cut.err.splitlines()[-1] == "interrupted, while the model sft was measured; the same command goes on there"
    done = tiny.call(*command)
    assert (done.code, "resuming" in done.err) == (0, False)
    assert without_timing(folder) == [row for row in without_timing(tiny_run) if row["stage"] == "sft"]


@pytest.mark.slow
def test_so_does_one_that_takes_less_memory(tmp_path: Path, tiny_recipe: Path, tiny_cache: Path):
    world = tmp_path / "world"
    world.mkdir()
    for path in tiny_recipe.parent.iterdir():
        (world / path.name).symlink_to(path)
    recipe = world / "less.toml"
    text = tiny.RECIPE.replace("[model]", '[model]\nparameters = "bfloat16"')
    recipe.write_text(text.replace("optimizer = { ", 'optimizer = { moments = "int8", '), encoding="utf-8")
    done = tiny.run(["run", recipe, "--run-dir", tmp_path / "whole"], tiny_cache)
    assert done.code == 0, done.err
    folder = tmp_path / "run"
    for moment in (has_steps("sft", 8), has_steps("dpo", 5)):
        assert start_and_cut(recipe, folder, tiny_cache, moment, signal.SIGKILL).code == -signal.SIGKILL
    done = tiny.run(["run", recipe, "--run-dir", folder], tiny_cache)
    assert done.code == 0, done.err
    assert_same_results(folder, tmp_path / "whole")


def test_a_finished_run_is_left_as_it_is(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, tiny_recipe: Path, tiny_run: Path, in_tiny_cache: None
):
    folder = tmp_path / "run"
    shutil.copytree(tiny_run, folder)
    before = files(folder)
    monkeypatch.setattr("bactrian.assistant.Assistant.parameters", lambda *_: pytest.fail("the weights were read"))
    done = tiny.call("run", tiny_recipe, "--run-dir", folder)
    assert done.code == 0, done.err
    assert files(folder) == before


def test_another_recipe_is_refused(tmp_path: Path, tiny_recipe: Path, tiny_run: Path, in_tiny_cache: None):
    folder = tmp_path / "run"
    shutil.copytree(tiny_run, folder)
    before = files(folder)
    done = tiny.call("run", tiny_recipe, "dpo.beta=0.3", "sft.epochs=1", "--run-dir", folder)
    assert done.code == 2
    assert done.err.count("\n") == 1
    assert done.err.startswith(
        f"error: {folder}: this run has another recipe (dpo.beta: 0.1 -> 0.3; sft.epochs: 3 -> 1)"
    )
    assert files(folder) == before


CHANGED = {
    "pairs.jsonl": ("chosen", "the data of dpo"),
    "pairs-heldout.jsonl": ("rejected", "the data of dpo"),
    "prompts.jsonl": ("prompt", "the held-out prompts"),
}


@pytest.mark.parametrize("file", CHANGED)
def test_changed_data_is_refused(tmp_path: Path, in_tiny_cache: None, file: str):
    recipe, folder = tiny.make(tmp_path / "world"), tmp_path / "run"
    Pipeline.open(recipes.load(recipe), folder)
    before = files(folder)
    column, what = CHANGED[file]
    first, *others = read_jsonl(tmp_path / "world" / file)
    tiny.write_rows(tmp_path / "world" / file, [{**first, column: "Something else."}, *others])
    done = tiny.call("run", recipe, "--run-dir", folder)
    assert done.code == 2
    assert done.err.startswith(f"error: {folder}: {what} changed since this run began; restore it or")
    assert files(folder) == before


# Which checkpoint a stage ends with


def open_sft(recipe: Path, folder: Path, rude: Path, *overrides: str) -> Pipeline:
    """SFT alone, of a model that learns so fast to be kind that it is ever worse at the held-out rudeness."""
    wild = [f"sft.heldout.0.path={rude}", "sft.optimizer.learning_rate=0.03", "sft.optimizer.schedule=constant"]
    whole = recipes.load(recipe, [*wild, "sft.evaluate_every=2", "evaluation={}", *overrides])
    return Pipeline.open(recipes.only(whole, ["sft"], "recipe.toml"), folder)


@pytest.fixture
def rude(tmp_path: Path) -> Path:
    said = [f"Go away, {thing} are not for {person}." for thing, person in zip(tiny.THINGS, tiny.PEOPLE, strict=False)]
    thanks = {"role": "user", "content": "Thanks!"}
    rows = [{"messages": [thanks, {"role": "assistant", "content": answer}]} for answer in said]
    tiny.write_rows(tmp_path / "rude.jsonl", rows)
    return tmp_path / "rude.jsonl"


def heldout_losses(folder: Path) -> dict[int, float]:
    return {row["step"]: row["loss"] for row in Run(folder).metrics() if row["kind"] == "heldout"}


def cut_after(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """The process is interrupted as soon as a step is on record."""
    record = Run.append_metrics

    def append(run: Run, row: dict) -> None:
        record(run, row)
        if row["kind"] == "train" and row["step"] == step:
            raise KeyboardInterrupt

    monkeypatch.setattr(Run, "append_metrics", append)


@pytest.mark.parametrize(
    "overrides",
    [["sft.keep_best=true", "sft.checkpoint_every=2"], ["sft.patience=2"]],
    ids=["keep_best", "patience"],
)
def test_the_choice_of_an_end_survives_an_interruption(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    tiny_recipe: Path,
    in_tiny_cache: None,
    rude: Path,
    overrides: list[str],
):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    open_sft(tiny_recipe, whole, rude, *overrides).execute()
    losses = heldout_losses(whole)
    best = min(losses, key=lambda step: losses[step])
    final = json.loads((whole / "evaluation.json").read_text())["sft_loss"]["sft"]
    assert best < 10, "the recipe is not wild enough for this test"
    if "sft.patience=2" in overrides:
        # Two evaluations after the best one, and no more; the end is the last step, not the best.
        assert max(losses) == best + 4
        assert final == pytest.approx(losses[best + 4], rel=1e-6)
    else:
        assert max(losses) == 18
        assert final == pytest.approx(losses[best], rel=1e-6)

    with monkeypatch.context() as patched:
        cut_after(patched, step=best + 3)
        with pytest.raises(KeyboardInterrupt):
            open_sft(tiny_recipe, cut, rude, *overrides).execute()
    open_sft(tiny_recipe, cut, rude, *overrides).execute()
    assert without_timing(cut) == without_timing(whole)
    assert (cut / "export" / "model.safetensors").read_bytes() == (whole / "export" / "model.safetensors").read_bytes()


def test_a_half_written_line_is_forgotten(tmp_path: Path, tiny_recipe: Path, tiny_run: Path):
    run = Run(tmp_path)
    lines = (tiny_run / "metrics.jsonl").read_text().splitlines(keepends=True)
    run.metrics_path.write_text("".join(lines[:5]) + lines[5][: len(lines[5]) // 2])
    run.cut_metrics("sft", 4)
    assert read_jsonl(run.metrics_path) == [json.loads(line) for line in lines[:4]]
    assert sorted(os.listdir(tmp_path)) == ["metrics.jsonl", "sums.json"]
