"""Tasks of lm-eval on our engine, each score with an interval and the number of its items. Needs the extra `eval`.

TruthfulQA and ToxiGen are run here as lm-eval has them: the paper has a model judge the first and generates for the
second, so these scores are not to be compared with the paper's.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from bactrian.errors import InputError
from bactrian.evaluate import needs, statistics, task_errors
from bactrian.evaluate.benchmarks import files
from bactrian.evaluate.benchmarks.files import Origin
from bactrian.evaluate.protocol import Prompt, Responder
from bactrian.files import documents

Row = dict[str, Any]

TRUTHFULQA, TOXIGEN = "truthfulqa_mc2", "toxigen"


@dataclass(frozen=True)
class Tasks:
    """Tasks by lm-eval's names, and how to run them; None leaves a task's own setting.

    folder: more task files. chat: whether prompts are conversations in the model's chat format.
    """

    names: tuple[str, ...]
    folder: Path | None = None
    fewshot: int | None = None
    limit: int | None = None
    chat: bool = False


def prepare(tasks: Tasks) -> Any:
    """lm-eval's manager of tasks, with these and their data loaded. Raises `InputError`, which says what is missing."""
    if tasks.folder is not None and not tasks.folder.is_dir():
        raise InputError(f"--tasks-folder {tasks.folder}: there is no such folder; give one that holds task files")
    needs.load("lm_eval")
    kind = needs.load("lm_eval.tasks").TaskManager

    class Manager(kind):
        """Loads tasks once."""

        loaded: Any = None

        def load(self, task_list: Any) -> Any:
            if self.loaded is None:
                self.loaded = super().load(task_list)
            return self.loaded

    where = "lm-eval's tasks" if tasks.folder is None else f"--tasks-folder {tasks.folder}"
    with task_errors.one_line(where):
        manager = Manager(include_path=None if tasks.folder is None else str(tasks.folder))
    unknown = [each for each in tasks.names if each not in manager.all_tasks]
    if unknown:
        # lm-eval passes over files that it cannot read.
        fault = None if tasks.folder is None else _fault_in(tasks.folder)
        raise InputError(
            f"{unknown[0]}: lm-eval has no such task{f', and {fault}' if fault else ''}; `lm-eval ls tasks` lists "
            f"those that it brings, and --tasks-folder adds your own"
        )
    for name in tasks.names:
        with task_errors.one_line(name):
            kind.load(manager, [name])
    with task_errors.one_line(", ".join(tasks.names)):
        manager.load(list(tasks.names))
    return manager


def _fault_in(folder: Path) -> str | None:
    """What is wrong with the first task file in a folder that is not YAML, or no task."""
    import yaml

    class Loader(yaml.SafeLoader):
        """Takes lm-eval's `!function` for the text it is."""

    Loader.add_constructor("!function", lambda loader, node: node.value)
    for path in sorted(folder.glob("**/*.yaml")):
        try:
            content = yaml.load(path.read_text(encoding="utf-8"), Loader)
        except (yaml.YAMLError, OSError, ValueError) as error:
            mark = getattr(error, "problem_mark", None)
            where = f"{path}:{mark.line + 1}" if mark else str(path)
            return f"{where} is not YAML ({getattr(error, 'problem', None) or type(error).__name__})"
        if not isinstance(content, dict) or not {"task", "group", "class"} & set(content):
            return f"{path} names no task"
    return None


def run(
    responder: Responder, name: str, render: Callable[[Prompt], str], tasks: Tasks, manager: Any = None
) -> dict[str, Row]:
    """Of each task its metrics, `{task: {"metrics": {name: {score, low, high}}, "n": …, "version": …}}`.

    `name` identifies the model, `render` writes a conversation out, `manager` is what `prepare` made of the tasks.
    Raises `InputError`.
    """
    manager = manager or prepare(tasks)
    lm_eval = needs.load("lm_eval")
    from bactrian.evaluate.lm_eval_model import Model

    with task_errors.one_line(", ".join(tasks.names)):
        found = lm_eval.simple_evaluate(
            model=Model(responder, name, render),
            tasks=list(tasks.names),
            task_manager=manager,
            num_fewshot=tasks.fewshot,
            limit=tasks.limit,
            apply_chat_template=tasks.chat,
            fewshot_as_multiturn=tasks.chat,
            bootstrap_iters=0,
            log_samples=True,
        )
    return {task: _row(found, task) for task in found["results"]}


def _row(found: Row, task: str) -> Row:
    samples = found["samples"].get(task)
    metrics: dict[str, Row] = {}
    for key, value in found["results"][task].items():
        metric, comma, filtered = key.partition(",")
        if not comma or metric.endswith("_stderr") or not isinstance(value, int | float):
            continue
        row: Row = {"score": float(value)}
        if samples:
            row |= _interval([each for each in samples if each.get("filter", "none") == filtered], metric)
        metrics[metric if filtered == "none" else f"{metric} ({filtered})"] = row
    count = len({each["doc_id"] for each in samples}) if samples else None
    version, shots = found["versions"].get(task), found["n-shot"].get(task)
    return {"metrics": metrics, "n": count, "version": version, "shots": shots}


def _interval(samples: Sequence[Row], metric: str) -> Row:
    """The interval of a metric that is a mean over items; nothing for one that is not."""
    values = [each[metric] for each in samples if isinstance(each.get(metric), int | float)]
    if len(values) != len(samples):
        return {}
    is_share = all(0 <= value <= 1 for value in values)
    interval = (statistics.share if is_share else statistics.interval)([[float(value)] for value in values])
    return {} if interval is None else {"low": interval.low, "high": interval.high}


@contextlib.contextmanager
def beside_the_paper(origin: Origin) -> Iterator[tuple[dict[str, str], Path | None]]:
    """Names of TruthfulQA's and ToxiGen's tasks, and the folder of their files where they are on local data."""
    if origin.folder is None:
        yield {TRUTHFULQA: TRUTHFULQA, TOXIGEN: TOXIGEN}, None
        return
    with TemporaryDirectory() as made:
        yield _local(origin, Path(made)), Path(made)


def _local(origin: Origin, folder: Path) -> dict[str, str]:
    path = origin.file("TruthfulQA", ("truthfulqa/mc_task.json", "mc_task.json"))
    rows = [files.columns(path, row, ("question", "mc1_targets", "mc2_targets")) for row in files.rows(path)]
    kinds = ("mc1_targets", "mc2_targets")
    rows = [
        {"question": row["question"]}
        | {kind: {"choices": list(row[kind]), "labels": list(row[kind].values())} for kind in kinds}
        for row in rows
    ]
    return {TRUTHFULQA: _write_task(folder, TRUTHFULQA, ("truthfulqa", "truthfulqa_mc2.yaml"), rows, "validation")}


def _write_task(folder: Path, name: str, bundled: tuple[str, ...], rows: list[Row], split: str) -> str:
    """A task file that is lm-eval's own, but for where its data is; returns the task's name."""

    import yaml

    tasks = needs.load("lm_eval.tasks")
    assert tasks.__file__
    data = folder / f"{name}.jsonl"
    data.write_text("".join(documents.dumps(row) + "\n" for row in rows), encoding="utf-8")
    local = f"{name}_local"
    content = {
        "include": str(Path(tasks.__file__).parent.joinpath(*bundled)),
        "task": local,
        "tag": None,
        "dataset_path": "json",
        "dataset_name": None,
        "dataset_kwargs": {"data_files": {split: str(data)}},
    }
    (folder / f"{local}.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
    return local
