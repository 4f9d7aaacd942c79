"""The run's folder: resolved recipe, ledger, metrics and evidence, each written whole or not at all.

recipe.json       the recipe as it ran
ledger.json       what became of every row and token
metrics.jsonl     a line per step and per held-out evaluation
evaluation.json   the scores of the base model and of each stage
references/       a run on several hosts: the reference model's log-probabilities
samples.jsonl     answers to held-out prompts, base model and each stage
benchmarks/       answers, judgments and scores of `bactrian evaluate`, a folder per benchmark
plots/            PNG
checkpoints/      to resume from
earlier/          what a stage ended with that has since gone back to a checkpoint
export/           the model as a Hugging Face folder, with its card
"""

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bactrian import changes, progress
from bactrian import recipe as recipes
from bactrian.errors import RunError
from bactrian.files import documents
from bactrian.files.atomic import (
    is_left_behind,
    read_jsonl,
    replacing,
    sweep,
    whole_lines,
    write_json,
    write_jsonl,
    writing,
)
from bactrian.files.cache import cache_root
from bactrian.recipe import Recipe


class Run:
    """One run's folder. Opening it creates it, or checks that it belongs to the same recipe.

    Of the processes of a run one `writes`; what the others are told to write is dropped.
    """

    def __init__(self, folder: Path, writes: bool = True):
        self.folder = folder
        self.writes = writes
        self._held: int | None = None

    @classmethod
    def check(cls, folder: Path, recipe: Recipe) -> None:
        """Raise `RunError` if the folder holds anything but a run of this recipe, or of one that it can become."""
        run = cls(folder)
        if run.recipe_path.exists():
            why = changes.refused(folder, run.recipe(), recipe)
            if why is not None:
                raise RunError(f"{folder}: {why}; choose another --run-dir or undo the change")
        elif folder.exists() and (not folder.is_dir() or not all(map(is_left_behind, folder.iterdir()))):
            raise RunError(f"{folder}: something else than a run is there; choose another --run-dir")

    @classmethod
    def open(cls, folder: Path, recipe: Recipe) -> "Run":
        """Create the folder of a run, or take up an existing one of the same recipe. Raises `RunError`.

        What a killed process was still writing is removed.
        """
        cls.check(folder, recipe)
        run = cls(folder)
        run._lock()
        sweep(folder)
        before = run.recipe() if run.recipe_path.exists() else None
        if before is not None:
            for stage, step in changes.longer(folder, before, recipe).items():
                run.go_back(stage, step)
        if before != recipe:
            write_json(run.recipe_path, recipe.model_dump(mode="json"))
        return run

    def go_back(self, stage: str, step: int) -> None:
        """Make a stage go on from a checkpoint of it. What came after is set aside in `earlier/`. Raises `RunError`.

        Cut short, it is done by the next call; the run is whole at any moment.
        """
        kept = changes.checkpoints(self.folder, stage)
        if step not in kept:
            known = f"those after the steps {', '.join(map(str, kept))} are" if kept else "none is"
            raise RunError(f"{self.folder}: no checkpoint of {stage} after step {step} is kept; {known}")
        names: list[str] = list(recipes.STAGES)
        later, last = names[names.index(stage) + 1 :], [row["step"] for row in self.metrics() if row["stage"] == stage]
        aside = self.folder / "earlier" / f"{stage}-{max(last, default=step)}"
        while aside.exists():
            aside = aside.with_name(f"{aside.name}-again")
        with replacing(aside) as temporary:
            temporary.mkdir()
            for name in ("recipe.json", "ledger.json", "evaluation.json", "samples.jsonl", "metrics.jsonl"):
                if (self.folder / name).exists():
                    shutil.copyfile(self.folder / name, temporary / name)
        for name in ("export", "benchmarks", "plots"):
            self._move(self.folder / name, aside / name)
        forgotten = [stage, *later]
        self.record("evaluation", lambda scores: _forget(scores, forgotten))
        for row in (samples := self.samples()):
            _forget({"answers": row["answers"], "rules": row["rules"]}, forgotten)
        if samples:
            self.write_samples(samples)
        for name in reversed(later):
            self._move(self.checkpoints(name), aside / "checkpoints" / name)
        for number in kept[kept.index(step) + 1 :]:
            self._move(
                self.checkpoints(stage) / "steps" / str(number), aside / "checkpoints" / stage / "steps" / str(number)
            )
        for name in ("adapter", "final"):
            self._move(self.checkpoints(stage) / name, aside / "checkpoints" / stage / name)
        progress.say(f"{stage}: goes on from step {step}; what came after it is set aside in {aside}")

    def is_exported(self, dtype: str) -> bool:
        """Whether the last stage's model is there in the numbers that are asked for."""
        path = self.export / "config.json"
        return path.exists() and documents.read_json(path, RunError).get("torch_dtype") == dtype

    def _move(self, path: Path, to: Path) -> None:
        if path.exists():
            with writing(to):
                to.parent.mkdir(parents=True, exist_ok=True)
                os.replace(path, to)

    def _lock(self) -> None:
        """Keep other processes out for as long as this object lives."""
        lock = cache_root() / "locks" / hashlib.sha256(str(self.folder.resolve()).encode()).hexdigest()
        with writing(lock):
            lock.parent.mkdir(parents=True, exist_ok=True)
            self._held = os.open(lock, os.O_RDWR | os.O_CREAT)
        try:
            fcntl.lockf(self._held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            raise RunError(f"{self.folder}: another process is working on this run; wait for it or stop it") from None

    def __del__(self):
        if self._held is not None:
            os.close(self._held)

    @classmethod
    def existing(cls, folder: Path) -> "Run":
        """A run that is there to be read. Raises `RunError`."""
        run = cls(folder)
        if not run.recipe_path.exists():
            raise RunError(f"{folder}: not a run folder (it has no recipe.json)")
        return run

    @property
    def recipe_path(self) -> Path:
        return self.folder / "recipe.json"

    @property
    def metrics_path(self) -> Path:
        return self.folder / "metrics.jsonl"

    @property
    def samples_path(self) -> Path:
        return self.folder / "samples.jsonl"

    @property
    def plots(self) -> Path:
        return self.folder / "plots"

    @property
    def export(self) -> Path:
        return self.folder / "export"

    def checkpoints(self, stage: str) -> Path:
        return self.folder / "checkpoints" / stage

    def recipe(self) -> Recipe:
        tree = documents.read_json(self.recipe_path, RunError, "choose another --run-dir")
        return recipes.parse(tree, str(self.recipe_path))

    def evidence(self, name: str) -> dict[str, Any]:
        """What `ledger.json` or `evaluation.json` holds so far."""
        path = self.folder / f"{name}.json"
        return documents.read_json(path, RunError) if path.exists() else {}

    def record(self, name: str, update: Callable[[dict[str, Any]], None]) -> None:
        """Change `ledger.json` or `evaluation.json` in place, whole or not at all."""
        if not self.writes:
            return
        content = self.evidence(name)
        update(content)
        write_json(self.folder / f"{name}.json", content)

    def benchmarks(self) -> list[dict[str, Any]]:
        """The figures of benchmarks that were run on this model, in the order of their folders' names."""
        paths = sorted((self.folder / "benchmarks").glob("*/scores.json"))
        return [result for path in paths for result in documents.read_json(path, RunError).get("results", [])]

    def samples(self) -> list[dict[str, Any]]:
        return read_jsonl(self.samples_path)

    def write_samples(self, rows: list[dict[str, Any]]) -> None:
        if self.writes:
            write_jsonl(self.samples_path, rows)

    def append_metrics(self, row: dict[str, Any]) -> None:
        """Add a line to the metrics; it is on disk when this returns."""
        if not self.writes:
            return
        with writing(self.metrics_path), self.metrics_path.open("a", encoding="utf-8") as file:
            file.write(documents.dumps(row) + "\n")
            file.flush()
            os.fsync(file.fileno())

    def metrics(self) -> list[dict[str, Any]]:
        """The lines of the metrics; one that a killed run left half-written, the last, is left out."""
        return [row for line in whole_lines(self.metrics_path) if (row := _whole(line)) is not None]

    def cut_metrics(self, stage: str, step: int) -> None:
        """Drop what a stage wrote after `step`, and what later stages wrote: they are about to be written again."""
        order: list[str] = list(recipes.STAGES)

        def kept(row: dict[str, Any]) -> bool:
            earlier = order.index(row["stage"]) < order.index(stage)
            return earlier or (row["stage"] == stage and row["step"] <= step)

        if self.writes:
            write_jsonl(self.metrics_path, [row for row in self.metrics() if kept(row)])


def _forget(by_label: dict[str, Any], labels: list[str]) -> None:
    """Drop what is known of some models, in place, from scores or answers by their labels."""
    for of_labels in by_label.values():
        for label in labels:
            of_labels.pop(label, None)


def _whole(line: str) -> dict[str, Any] | None:
    try:
        return json.loads(line)
    except json.JSONDecodeError:
        return None
