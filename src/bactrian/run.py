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
export/           the model as a Hugging Face folder, with its card
"""

import fcntl
import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bactrian import recipe as recipes
from bactrian.errors import RunError
from bactrian.files import documents
from bactrian.files.atomic import is_left_behind, read_jsonl, sweep, whole_lines, write_json, write_jsonl, writing
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
        """Raise `RunError` if something else than a run of this recipe is in the folder."""
        run = cls(folder)
        if run.recipe_path.exists():
            # A run may go on over other devices.
            changed = [key for key in recipes.differences(run.recipe(), recipe) if not key.startswith("mesh.")]
            if changed:
                raise RunError(
                    f"{folder}: this run has another recipe ({'; '.join(changed)}); "
                    f"choose another --run-dir or undo the change"
                )
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
        if not run.recipe_path.exists():
            write_json(run.recipe_path, recipe.model_dump(mode="json"))
        return run

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


def _whole(line: str) -> dict[str, Any] | None:
    try:
        return json.loads(line)
    except json.JSONDecodeError:
        return None
