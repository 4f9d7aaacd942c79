"""The folder of one evaluation, each file made from those before it and replaceable by one's own.

questions.jsonl   what was asked, in the benchmark's own layout
settings.json     how it was answered
answers.jsonl     a model's answers
calls.jsonl       every request to a judge or an address, and what came back
judgments.jsonl   the judge's verdicts
scores.json       the figures: `scores` in full, `results` as the card has them
page.html         answers side by side with judgments; and pictures
"""

import hashlib
import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import bactrian
from bactrian.errors import RunError
from bactrian.evaluate.calls import Store
from bactrian.files import documents
from bactrian.files.atomic import read_jsonl, write_json, write_jsonl, writing
from bactrian.masking import masked

Row = dict[str, Any]


@dataclass(frozen=True)
class Result:
    """One figure for the card: its value and interval, the number of items, and what it was measured with."""

    metric: str
    name: str
    dataset: str
    value: float
    n: int
    low: float | None = None
    high: float | None = None
    judge: str | None = None
    note: str | None = None


class Folder:
    """The folder of one evaluation of one model."""

    def __init__(self, path: Path):
        if path.exists() and not path.is_dir():
            raise RunError(f"{path}: a file is there; choose another --out")
        self.path = path

    def file(self, name: str) -> Path:
        return self.path / name

    def store(self) -> Store:
        return Store(self.file("calls.jsonl"))

    def settle(self, settings: Row) -> None:
        """Record how answers are made, or check that it is how those in the folder were. Raises `RunError`."""
        settings = masked({**settings, "version": bactrian.__version__})
        path = self.file("settings.json")
        if path.exists():
            earlier = documents.read_json(path, RunError, "choose another --out")
            if not isinstance(earlier, dict):
                raise RunError(f"{path}: not the settings of an evaluation; choose another --out")
            # Another version of this program does not make other answers of them.
            changed = [key for key in settings if key != "version" and earlier.get(key) != settings[key]]
            if changed:
                what = ", ".join(f"{key} was {earlier.get(key)!r}, is {settings[key]!r}" for key in changed)
                raise RunError(f"{self.path}: the answers there were made otherwise ({what}); choose another --out")
        elif self.file("answers.jsonl").exists():
            raise RunError(
                f"{self.path}: answers of unknown origin are there; give them as MODEL, or choose another --out"
            )
        else:
            write_json(path, settings)

    def keep_questions(self, rows: list[Row]) -> None:
        """Write what is asked. Raises `RunError` where answers to something else are there."""
        before = read_jsonl(self.file("questions.jsonl"))
        if before and self.file("answers.jsonl").exists() and before != _as_read(masked(rows)):
            raise RunError(f"{self.path}: answers to other questions are there; choose another --out")
        self.write_rows("questions.jsonl", rows)

    def keep_given(self, path: Path, rows: list[Row]) -> None:
        """Copy a file's answers into the folder. Raises `RunError` where answers that a model made are there."""
        own = self.file("answers.jsonl")
        if own.exists() and path.samefile(own):
            return
        if self.file("settings.json").exists():
            raise RunError(f"{self.path}: the answers of a model are there; choose another --out")
        self.write_rows("answers.jsonl", rows)

    def answers(self) -> list[tuple[str, Any]]:
        """The answers that are there, each with its place; a line that a kill left half-written is cut off."""
        path = self.file("answers.jsonl")
        if not path.exists():
            return []
        content = path.read_bytes()
        whole = content[: content.rfind(b"\n") + 1]
        if len(whole) < len(content):
            with writing(path), path.open("r+b") as file:
                file.truncate(len(whole))
        placed = [(f"{path}:{number}", line) for number, line in enumerate(whole.split(b"\n")[:-1], start=1)]
        advice = "restore it, or choose another --out"
        return [(where, documents.parse_json(line, where, advice=advice, nan=True)) for where, line in placed]

    def append_answers(self, rows: list[Row]) -> None:
        """Add answers; they are on disk when this returns."""
        path = self.file("answers.jsonl")
        text = "".join(documents.dumps(row) + "\n" for row in masked(rows))
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("ab") as file:
                file.write(text.encode())
                file.flush()
                os.fsync(file.fileno())

    def write_rows(self, name: str, rows: list[Row]) -> None:
        write_jsonl(self.file(name), rows)

    def write_scores(self, scores: Row, results: list[Result], **about: Any) -> Row:
        """Write scores.json, with the digests of the files that it was made from; returns what was written."""
        made_from = {name: _digest(self.file(name)) for name in ("questions.jsonl", "answers.jsonl", "judgments.jsonl")}
        content = {
            **about,
            "scores": scores,
            "results": [asdict(result) for result in results],
            "files": {name: digest for name, digest in made_from.items() if digest},
            "version": bactrian.__version__,
        }
        write_json(self.file("scores.json"), content)
        return content


def _as_read(rows: list[Row]) -> list[Row]:
    """Rows as they are read when they were written."""
    return [json.loads(documents.dumps(row)) for row in rows]


def _digest(path: Path) -> str | None:
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.exists() else None
