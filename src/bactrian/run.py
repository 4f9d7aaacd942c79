"""The run's folder: resolved recipe, ledger, metrics and evidence, each written whole or not at all.

recipe.json       the recipe as it ran, and when the run began (`began`)
ledger.json       what became of every row and token
metrics.jsonl     a line per step and per held-out evaluation
evaluation.json   the scores of the base model and of each stage
sums.json         SHA-256 of those files, and of the metrics of the stages that are over
references/       a run on several hosts: the reference model's log-probabilities
samples.jsonl     answers to held-out prompts, base model and each stage
benchmarks/       answers, judgments and scores of `bactrian evaluate`, a folder per benchmark
plots/            PNG
checkpoints/      to resume from
earlier/          what a stage ended with that has since gone back to a checkpoint
export/           the model as a Hugging Face folder, with its card
.lock             of the process that works on the run, while it does
"""

import hashlib
import json
import shutil
import zlib
from collections.abc import Callable, Iterable
from datetime import datetime
from pathlib import Path
from typing import Any

from bactrian import changes, ends, progress
from bactrian import recipe as recipes
from bactrian.errors import RunError
from bactrian.files import atomic, documents, folders, lock
from bactrian.files.atomic import read_jsonl, write_json
from bactrian.files.lock import Lock
from bactrian.recipe import Recipe

_SUMS = "sums.json"
_NO_CRC = "0" * 8
_RESTORE = "restore it from a copy, or choose another --run-dir to begin anew"


class Run:
    """One run's folder. Opening it creates it, or checks that it belongs to the same recipe.

    Of the processes of a run one `writes`; what the others are told to write is dropped.
    """

    def __init__(self, folder: Path, writes: bool = True):
        self.folder = folder
        self.writes = writes
        self._held: Lock | None = None

    @classmethod
    def check(cls, folder: Path, recipe: Recipe) -> None:
        """Raise `RunError` if the folder holds anything but a run of this recipe, or of one that it can become."""
        run = cls(folder)
        if run.recipe_path.exists():
            why = changes.refused(folder, run.recipe(), recipe)
            if why is not None:
                raise RunError(f"{folder}: {why}; choose another --run-dir or undo the change")
        elif folder.exists() and (not folder.is_dir() or not all(map(_is_no_content, folder.iterdir()))):
            raise RunError(f"{folder}: something else than a run is there; choose another --run-dir")

    @classmethod
    def open(cls, folder: Path, recipe: Recipe, began: datetime | None = None) -> "Run":
        """Create the folder of a run, or take up an existing one of the same recipe. Raises `RunError`.

        began: the time that the run keeps, by default now. What a killed process was still writing is removed.
        """
        cls.check(folder, recipe)
        run = cls(folder)
        run._lock()
        atomic.sweep(folder)
        before = run.recipe() if run.recipe_path.exists() else None
        if before is not None:
            for stage, step in changes.longer(folder, before, recipe).items():
                run.go_back(stage, step)
        if before != recipe:
            time = (run.began() or began or datetime.now()).isoformat()
            write_json(run.recipe_path, {**recipe.model_dump(mode="json"), "began": time})
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
        with folders.replacing(aside) as temporary:
            for name in ("recipe.json", "ledger.json", "evaluation.json", "samples.jsonl", "metrics.jsonl", _SUMS):
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
        """Whether the last stage's model is there in the numbers that are asked for. Raises as `has_model` does."""
        if not self.has_model(self.export, f"remove {self.export}, and the same command writes it again"):
            return False
        return documents.read_json(self.export / "config.json", RunError).get("torch_dtype") == dtype

    def _move(self, path: Path, to: Path) -> None:
        if path.exists():
            with atomic.writing(to):
                atomic.make_folder(to.parent)
                path.rename(to)

    def _lock(self) -> None:
        """Keep other processes out until `close`, or for as long as this object lives."""
        self._held = Lock(self.folder, "run", progress.say, ends.at_once)

    def close(self) -> None:
        """Let other processes work on the run."""
        if self._held is not None:
            self._held.release()
            self._held = None

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
        tree = self._recipe_tree()
        tree.pop("began", None)
        return recipes.parse(tree, str(self.recipe_path))

    def began(self) -> datetime | None:
        """When the run began, in the time of the machine that it began on; None where that is not kept."""
        stated = self._recipe_tree().get("began") if self.recipe_path.exists() else None
        try:
            return None if stated is None else datetime.fromisoformat(stated)
        except (TypeError, ValueError):
            raise RunError(f"{self.recipe_path}: began is {stated!r}, which is no time; restore the file") from None

    def _recipe_tree(self) -> dict[str, Any]:
        advice = "choose another --run-dir"
        text = documents.read_bytes(self.recipe_path, RunError, advice=advice)
        tree = documents.parse_json(text, f"{self.recipe_path}: not the recipe of a run", RunError, advice)
        if not isinstance(tree, dict):
            raise RunError(f"{self.recipe_path}: not a recipe; choose another --run-dir")
        return tree

    def evidence(self, name: str) -> dict[str, Any]:
        """What `ledger.json` or `evaluation.json` holds so far."""
        path = self.folder / f"{name}.json"
        if not path.exists() and not self._sums().get(path.name):
            return {}
        self._check(path)
        return documents.read_json(path, RunError, _RESTORE) if path.exists() else {}

    def record(self, name: str, update: Callable[[dict[str, Any]], None]) -> None:
        """Change `ledger.json` or `evaluation.json` in place, whole or not at all."""
        if not self.writes:
            return
        content = self.evidence(name)
        update(content)
        self._replace(self.folder / f"{name}.json", documents.dumps(content, indent=2) + "\n")

    def benchmarks(self) -> list[dict[str, Any]]:
        """The figures of benchmarks that were run on this model, in the order of their folders' names."""
        paths = sorted((self.folder / "benchmarks").glob("*/scores.json"))
        return [result for path in paths for result in documents.read_json(path, RunError).get("results", [])]

    def samples(self) -> list[dict[str, Any]]:
        self._check(self.samples_path)
        return read_jsonl(self.samples_path)

    def write_samples(self, rows: list[dict[str, Any]]) -> None:
        if self.writes:
            self._replace(self.samples_path, _lines(rows))

    def append_metrics(self, row: dict[str, Any]) -> None:
        """Add a line to the metrics, with a checksum in its timing; it is on disk when this returns."""
        if self.writes:
            atomic.append(self.metrics_path, f"{_with_crc(row)}\n")

    def metrics(self) -> list[dict[str, Any]]:
        """The lines of the metrics; one that a killed run left half-written, the last, is left out.

        Raises `RunError` where another is not what was written.
        """
        self._check(self.metrics_path)
        lines = self.metrics_path.read_bytes().split(b"\n") if self.metrics_path.exists() else []
        rows = [_row(line, f"{self.metrics_path}:{number}") for number, line in enumerate(lines[:-1], 1) if line]
        last = _whole(lines[-1]) if lines else None
        return rows if last is None else [*rows, last]

    def cut_metrics(self, stage: str, step: int) -> None:
        """Drop what a stage wrote after `step`, and what later stages wrote: they are about to be written again."""
        order: list[str] = list(recipes.STAGES)

        def kept(row: dict[str, Any]) -> bool:
            earlier = order.index(row["stage"]) < order.index(stage)
            return earlier or (row["stage"] == stage and row["step"] <= step)

        if self.writes:
            self._replace(self.metrics_path, _lines(row for row in self.metrics() if kept(row)))

    def has_model(self, folder: Path, otherwise: str) -> bool:
        """Whether a model of the run is there; `otherwise` says how it is made again. Raises `RunError` where it was
        damaged."""
        if not folders.has_manifest(folder):  # as of earlier versions
            return (folder / "config.json").exists()
        fault = folders.fault(folder)
        if fault is not None:
            raise RunError(f"{folder}: damaged: {fault}; {otherwise}")
        return True

    def _replace(self, path: Path, text: str) -> None:
        """Write a file whose sum is kept, and with it the sum of the metrics as they are."""
        if path.exists() and _content(path) == text.encode():
            return
        self._check(self.metrics_path)
        sums = self._sums()
        sums[self.metrics_path.name] = [_sum(_content(self.metrics_path))]
        # Before the file is: a process may be killed between the two.
        sums[path.name] = [_sum(_content(path)), _sum(text.encode())]
        write_json(self.folder / _SUMS, sums)
        with atomic.replacing(path) as temporary:
            temporary.write_text(text, encoding="utf-8")

    def _sums(self) -> dict[str, list[list[Any]]]:
        """What each file may hold, as it was and as it is: how many bytes, and their SHA-256."""
        path = self.folder / _SUMS
        found = documents.read_json(path, RunError, _RESTORE) if path.exists() else {}
        if not isinstance(found, dict):
            raise RunError(f"{path}: damaged: it does not hold what was written; {_RESTORE}")
        return found

    def _check(self, path: Path) -> None:
        expected = self._sums().get(path.name)
        if not expected:
            return
        content = _content(path)
        # Metrics grow, a line at a time with a checksum of its own; other files are what was written and no more.
        grows = path == self.metrics_path
        if not any((grows or len(content) == each[0]) and _sum(content[: each[0]]) == each for each in expected):
            raise RunError(f"{path}: damaged: it does not hold what was written; {_RESTORE}")


def _forget(by_label: dict[str, Any], labels: list[str]) -> None:
    """Drop what is known of some models, in place, from scores or answers by their labels."""
    for of_labels in by_label.values():
        for label in labels:
            of_labels.pop(label, None)


def _is_no_content(path: Path) -> bool:
    """Whether a file in a folder makes it no other's: of a process that was killed, or works there."""
    return atomic.is_left_behind(path) or path.name == lock.NAME


def _content(path: Path) -> bytes:
    return path.read_bytes() if path.exists() else b""


def _sum(content: bytes) -> list[Any]:
    return [len(content), hashlib.sha256(content).hexdigest()]


def _lines(rows: Iterable[dict[str, Any]]) -> str:
    return "".join(documents.dumps(row) + "\n" for row in rows)


def _with_crc(row: dict[str, Any]) -> str:
    """A row as a line; where it has a `timing`, with the checksum of the line in it."""
    if "timing" not in row:
        return documents.dumps(row)
    line = documents.dumps({**row, "timing": {**row["timing"], "crc": _NO_CRC}})
    return line.replace(f'"crc": "{_NO_CRC}"', f'"crc": "{zlib.crc32(line.encode()):08x}"')


def _row(line: bytes, where: str) -> dict[str, Any]:
    row = _whole(line)
    if row is None:
        raise RunError(f"{where}: damaged: not the line that was written; {_RESTORE}")
    return row


def _whole(line: bytes) -> dict[str, Any] | None:
    """A line's row; None where the line is not as it was written."""
    try:
        row = json.loads(line)
        crc = row.get("timing", {}).get("crc")
    except (ValueError, AttributeError, RecursionError):
        return None
    if crc is not None and f"{zlib.crc32(line.replace(str(crc).encode(), _NO_CRC.encode())):08x}" != crc:
        return None
    return row
