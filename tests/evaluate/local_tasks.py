"""lm-eval's own tasks on local files: each includes the bundled task and names other data."""

import gzip
import json
from pathlib import Path
from typing import Any

import yaml


def bundled(*parts: str) -> Path:
    """The file of a task that lm-eval brings."""
    import lm_eval.tasks

    return Path(lm_eval.tasks.__file__).parent.joinpath(*parts)


def write(folder: Path, name: str, task: Path, rows: Path | list[dict[str, Any]], **changes: Any) -> str:
    """A task `name` like a bundled one, over rows of JSON lines; returns the name."""
    if isinstance(rows, list):
        path = folder / f"{name}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        rows = path
    content = {
        "include": str(task),
        "task": name,
        "dataset_path": "json",
        "dataset_name": None,
        "dataset_kwargs": {"data_files": {"test": str(rows)}},
        "test_split": "test",
        "validation_split": None,
        "training_split": None,
        "fewshot_split": "test",
        "tag": None,
        **changes,
    }
    (folder / f"{name}.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
    return name


def gsm8k(folder: Path, data: Path, count: int, **changes: Any) -> str:
    rows = [json.loads(line) for line in (data / "gsm8k" / "test.jsonl").read_text(encoding="utf-8").splitlines()]
    return write(folder, "local_gsm8k", bundled("gsm8k", "gsm8k.yaml"), rows[:count], **changes)


def gsm8k_cot(folder: Path, data: Path, count: int) -> str:
    """With the eight worked examples that the task brings."""
    rows = [json.loads(line) for line in (data / "gsm8k" / "test.jsonl").read_text(encoding="utf-8").splitlines()]
    return write(folder, "local_gsm8k_cot", bundled("gsm8k", "gsm8k-cot.yaml"), rows[:count], fewshot_split=None)


def mmlu(folder: Path, data: Path, count: int, **changes: Any) -> str:
    """The first `count` questions, each under its own subject's heading."""
    with gzip.open(data / "mmlu" / "mmlu_test.jsonl.gz", "rt", encoding="utf-8") as file:
        rows = [json.loads(line) for line in file][:count]
    about = "The following are multiple choice questions (with answers) about {{subject|replace('_', ' ')}}.\n\n"
    template = bundled("mmlu", "default", "_default_template_yaml")
    return write(folder, "local_mmlu", template, rows, description=about, fewshot_config=None, **changes)


def truthfulqa(folder: Path, data: Path, count: int) -> str:
    rows = json.loads((data / "truthfulqa" / "mc_task.json").read_text(encoding="utf-8"))[:count]
    rows = [
        {
            "question": row["question"],
            **{
                kind: {"choices": list(row[kind]), "labels": list(row[kind].values())}
                for kind in ("mc1_targets", "mc2_targets")
            },
        }
        for row in rows
    ]
    return write(folder, "local_truthfulqa", bundled("truthfulqa", "truthfulqa_mc2.yaml"), rows)


def bbh(folder: Path, data: Path, count: int) -> str:
    """With the three worked examples that the task brings."""
    rows = json.loads((data / "bbh" / "bbh__snarks.json").read_text(encoding="utf-8"))["examples"][:count]
    return write(folder, "local_bbh", bundled("bbh", "cot_fewshot", "snarks.yaml"), rows, fewshot_split=None)
