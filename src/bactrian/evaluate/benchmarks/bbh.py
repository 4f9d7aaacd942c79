"""BIG-Bench Hard (Suzgun et al. 2022): 27 tasks, three worked examples before each question."""

import random
import re
from typing import Any

from bactrian.errors import DataError
from bactrian.evaluate.benchmarks import bundled, files
from bactrian.evaluate.benchmarks.files import Origin, Rows
from bactrian.evaluate.benchmarks.task import SEED, Benchmark, Clip, Graded, answers, asked, plain, shown
from bactrian.evaluate.protocol import Responder, Settings

_COUNT = 40
_BEGUN = "A:"
_HEADING = 2  # lines of a prompt file that warn of training on it
_ANSWER = re.compile(r"[tT]he answer is (.*?)\.")


def read(origin: Origin) -> dict[str, dict[str, Any]]:
    """Of each task, in the order of their names, its `prompt` and the 40 `examples` drawn."""
    tasks = _of_hub() if origin.folder is None else _of_files(origin)
    draw = random.Random(SEED)
    for task in tasks.values():
        if len(task["examples"]) > _COUNT:
            task["examples"] = draw.sample(task["examples"], _COUNT)
    return tasks


def _of_hub() -> dict[str, dict[str, Any]]:
    prompts = bundled.bbh_prompts()
    return {
        name: {"prompt": text, "examples": files.hub("lukaemon/bbh", name, "test")} for name, text in prompts.items()
    }


def _of_files(origin: Origin) -> dict[str, dict[str, Any]]:
    """The authors' layout: bbh/TASK.json and cot-prompts/TASK.txt (the slash may be two underscores)."""
    prompts = {}
    for path in _either(origin, "cot-prompts", "txt"):
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
        prompts[_task(path)] = "".join(lines[_HEADING:]).strip()
    tasks = {}
    for path in _either(origin, "bbh", "json"):
        content = files.document(path)
        if not isinstance(content, dict) or "examples" not in content:
            raise DataError(f"{path}: no `examples` in it; is it the published file?")
        if _task(path) not in prompts:
            raise DataError(f"{path}: there is no cot-prompts/{_task(path)}.txt for it")
        examples: Rows = [files.columns(path, row, ("input", "target")) for row in content["examples"]]
        tasks[_task(path)] = {"prompt": prompts[_task(path)], "examples": examples}
    return tasks


def _either(origin: Origin, folder: str, suffix: str):
    try:
        return origin.files("BIG-Bench Hard", f"{folder}/*.{suffix}")
    except DataError:
        return origin.files(f"BIG-Bench Hard ({folder}/TASK.{suffix})", f"{folder}__*.{suffix}")


def _task(path) -> str:
    return path.stem.rpartition("__")[2]


def run(responder: Responder, clip: Clip, data: dict[str, dict[str, Any]]) -> list[Graded]:
    items = [(name, task["prompt"], row) for name, task in data.items() for row in task["examples"]]
    prompts = [asked(f"{opening}\n\nQ: {row['input']}", _BEGUN) for _, opening, row in items]
    said = answers(responder, prompts, Settings(max_tokens=512))
    graded = []
    for number, ((name, _, row), prompt, answer) in enumerate(zip(items, prompts, said, strict=True)):
        taken = answer_of(answer)
        value = float(plain(taken) == plain(row["target"]))
        graded.append(Graded(str(number), name, shown(prompt), answer, taken, row["target"], value))
    return graded


def answer_of(text: str) -> str:
    """What stands between "the answer is" and the next period; the whole text where nothing does."""
    found = _ANSWER.search(text)
    return (found[1] if found else text).strip()


BENCHMARK = Benchmark(
    name="bbh",
    title="BIG-Bench Hard, 3-shot chain of thought",
    metric="exact match, mean of the tasks",
    settings={
        "shots": 3,
        "items per task": _COUNT,
        "seed": SEED,
        "max_tokens": 512,
        "temperature": 0,
        "answer begins with": _BEGUN,
        # open-instruct draws from the tasks in the order in which its file system lists them.
        "draw": "tasks in the order of their names",
    },
    read=read,
    run=run,
    macro=True,
)
