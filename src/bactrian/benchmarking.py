"""What `bactrian evaluate MODEL` puts together: our engine, the benchmarks that are wanted, and a folder for them."""

import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from bactrian import assistant as assistants
from bactrian.assistant import ChatFormat
from bactrian.errors import InputError
from bactrian.evaluate import harness, suite, tables
from bactrian.evaluate.benchmarks.files import Origin
from bactrian.evaluate.harness import Tasks
from bactrian.evaluate.kept import Kept
from bactrian.model import weights
from bactrian.model.llama import Dtype
from bactrian.respond import Respondent

Row = dict[str, Any]

_BESIDE = {"truthfulqa": harness.TRUTHFULQA, "toxigen": harness.TOXIGEN}
_TITLES = {"truthfulqa": "TruthfulQA MC2 (lm-eval)", "toxigen": "ToxiGen (lm-eval)"}


@dataclass(frozen=True)
class Subject:
    """The model that is evaluated, and how it is read and asked."""

    model: str
    format: ChatFormat = "model"
    dtype: Dtype = "float32"


def folder(model: str, evaluation: str) -> Path:
    """Where an evaluation is kept if nobody says: in a run's folder, or beside the runs."""
    if (Path(model) / "recipe.json").is_file():
        return Path(model) / "benchmarks" / evaluation
    last = model.rstrip("/").rpartition("/")[2] or model
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", last.removesuffix(".gguf")).strip("-.") or "model"
    return Path("runs") / f"{name}-{evaluation}"


def names(given: str | None) -> tuple[str, ...]:
    """The benchmarks of `--only`, in the suite's order; by default those of the paper. Raises `InputError`."""
    known = [*suite.PAPERS, *_BESIDE]
    if given is None:
        return tuple(suite.PAPERS)
    wanted = [name.strip() for name in given.split(",")]
    unknown = [name for name in wanted if name not in known]
    if unknown:
        raise InputError(f"--only {unknown[0]}: not a benchmark of the suite; it has {', '.join(known)}")
    return tuple(name for name in known if name in wanted)


def run_suite(subject: Subject, wanted: suite.Wanted, beside: Sequence[str], out: Path) -> Row:
    """The scores of the paper's benchmarks, and of those `beside` them that are not the paper's metric."""
    respondent, model = _open(subject)
    scores = suite.run(respondent, respondent.clip, wanted, model, out)
    if beside:
        with harness.beside_the_paper(Origin(wanted.data)) as (task_names, folder):
            tasks = {name: task_names.get(_BESIDE[name], _BESIDE[name]) for name in beside}
            asked = Tasks(tuple(tasks.values()), folder, limit=wanted.limit)
            found = _run_tasks(respondent, model, asked, {each: {} for each in beside}, out)
        rows = {name: _beside_row(name, found[task], wanted.limit) for name, task in tasks.items()}
        suite.record(out, model, rows)
        scores = suite.scores(out)
    return scores


def run_tasks(subject: Subject, tasks: Tasks, out: Path) -> Row:
    """The scores of lm-eval's own tasks, also kept in the folder's tasks.json."""
    manager = harness.prepare(tasks)  # before the model is read: what is missing is known at once
    respondent, model = _open(subject)
    how = {"fewshot": tasks.fewshot, "chat": tasks.chat}
    settings = {name: how for name in tasks.names}
    found = _run_tasks(respondent, model, tasks, settings, out, manager)
    suite.record(out, model, {name: {"lm_eval": row, "settings": how} for name, row in found.items()})
    return suite.scores(out)


def _open(subject: Subject) -> tuple[Respondent, Row]:
    found = assistants.find(subject.model)
    respondent = Respondent(found, subject.format, subject.dtype)
    model = {
        "name": found.path.name,
        "weights": weights.fingerprint(found.path),
        "chat": subject.format,
        "dtype": subject.dtype,
    }
    return respondent, model


def _run_tasks(
    respondent: Respondent, model: Row, tasks: Tasks, settings: Row, out: Path, manager: Any = None
) -> dict[str, Row]:
    manager = manager or harness.prepare(tasks)
    is_new = not out.exists()
    suite.settle(out, {"model": model, "limit": tasks.limit, "benchmarks": settings})
    kept = Kept(respondent, out / "responses.jsonl")
    kept.name = ", ".join(tasks.names)
    try:
        return harness.run(kept, f"{model['weights'][:16]}-{model['chat']}", respondent.text, tasks, manager)
    except InputError:
        if is_new and not (out / "responses.jsonl").stat().st_size:  # nothing to go on from
            shutil.rmtree(out)
        raise
    finally:
        kept.close()


def _beside_row(name: str, found: Row, limit: int | None) -> Row:
    metric = found["metrics"]["acc"]
    percent = {key: 100 * value for key, value in metric.items()}
    about = {"title": _TITLES[name], "metric": "acc", "note": suite.NOT_THE_PAPERS, "settings": {"limit": limit}}
    return {**about, **percent, "n": found["n"]}


def show(scores: Row) -> None:
    """The scores as a table."""
    table = Table(title=scores["model"]["name"], title_justify="left")
    for name, justify in (
        ("benchmark", "left"),
        ("metric", "left"),
        ("score", "right"),
        ("95 %", "right"),
        ("n", "right"),
    ):
        table.add_column(name, justify=justify)  # pyright: ignore[reportArgumentType]
    has_paper = any("paper" in row for row in scores["benchmarks"].values())
    table.add_column("the paper's" if has_paper else "")
    for name, row in scores["benchmarks"].items():
        if "lm_eval" in row:
            for metric, value in row["lm_eval"]["metrics"].items():
                table.add_row(
                    name, metric, f"{value['score']:.4f}", _range(value, 4), str(row["lm_eval"]["n"] or ""), ""
                )
            continue
        beside = f"{row['paper']['score']:.1f}" if "paper" in row else row.get("note", "")
        table.add_row(row["title"], row["metric"], f"{row['score']:.2f}", _range(row, 2), str(row["n"]), beside)
    tables.show(table)


def _range(row: Row, digits: int) -> str:
    return f"{row['low']:.{digits}f} to {row['high']:.{digits}f}" if "low" in row else "–"
