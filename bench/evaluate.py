"""lm-eval on SmolLM2-135M through our engine and through `transformers` (`hf`), side by side.

    python bench/evaluate.py --data DIR [--tasks truthfulqa,mmlu,generation] [--items N] [--batch-sizes 1,8,16]

Each side runs in a process of its own, on the same local files (DIR/truthfulqa/mc_task.json,
DIR/mmlu/mmlu_test.jsonl.gz, DIR/gsm8k/test.jsonl), with the same weights and float32. Our side has its programs
compiled before the clock starts; `hf` is warmed on two items, runs once per batch size, and its fastest run counts.
Printed: seconds, and their ratio.
"""

import argparse
import json
import os
import platform
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import alternate
import training_data

ITEMS = {"truthfulqa": 24, "mmlu": 200, "generation": 24}
NAMES = {"truthfulqa": "truthfulqa", "mmlu": "mmlu", "generation": "gsm8k_cot"}
sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "evaluate"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--tasks", default="truthfulqa,mmlu,generation")
    parser.add_argument("--items", type=int, help="of each task")
    parser.add_argument("--batch-sizes", default="1,8,32", help="of hf")
    parser.add_argument("--side", choices=("bactrian", "hf"), help="run one side in this process and print its seconds")
    parser.add_argument("--batch-size", type=int, default=1)
    arguments = parser.parse_args()
    if arguments.side:
        task, items = arguments.tasks, arguments.items
        seconds = _seconds(arguments.side, task, items, arguments.data, arguments.batch_size)
        print(json.dumps({"seconds": seconds}))
        return
    for task in arguments.tasks.split(","):
        items = arguments.items or ITEMS[task]
        ours = _child(arguments, "bactrian", task, items, 0)
        print(f"{task:12} {items} items  bactrian            {ours:7.1f} s", flush=True)
        best = float("inf")
        for size in map(int, arguments.batch_sizes.split(",")):
            theirs = _child(arguments, "hf", task, items, size)
            print(f"{task:12} {items} items  hf, batches of {size:3}  {theirs:7.1f} s", flush=True)
            best = min(best, theirs)
        print(f"{task:12} bactrian is {best / ours:.2f} times as fast, {platform.machine()}, float32", flush=True)


def _child(arguments: argparse.Namespace, side: str, task: str, items: int, batch_size: int) -> float:
    command = [sys.executable, __file__, "--side", side, "--tasks", task, "--items", str(items)]
    command += ["--data", str(arguments.data), "--batch-size", str(batch_size)]
    return alternate.child(command)["seconds"]


def _seconds(side: str, task: str, items: int, data: Path, batch_size: int) -> float:
    """Seconds for all requests of a task, tokenization included, without the building of tasks."""
    import lm_eval
    import local_tasks  # pyright: ignore[reportMissingImports]  (tests/evaluate)
    from lm_eval.tasks import TaskManager

    model = _ours() if side == "bactrian" else _theirs(batch_size)
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        name = getattr(local_tasks, NAMES[task])(folder, data, items)
        simple_evaluate: Any = lm_eval.simple_evaluate  # whose decorators hide what it takes
        manager = TaskManager(include_path=str(folder), include_defaults=False)
        spent: list[float] = []
        # Warm: the same requests once, so that programs are compiled; torch needs a few of them at most.
        for limit in (None if side == "bactrian" else 2, None):
            spent.clear()
            with _timed(model, spent):
                simple_evaluate(
                    model=model, tasks=[name], task_manager=manager, limit=limit, bootstrap_iters=0, log_samples=False
                )
    return sum(spent)


@contextmanager
def _timed(model, spent: list[float]):
    """Adds up the seconds that a model spends on requests."""
    kinds = ("loglikelihood", "generate_until")

    def timed(own):
        def call(requests, **more):
            start = time.perf_counter()
            found = own(model, requests, **more)
            spent.append(time.perf_counter() - start)
            return found

        return call

    for kind in kinds:
        setattr(model, kind, timed(getattr(type(model), kind)))
    try:
        yield
    finally:
        for kind in kinds:
            delattr(model, kind)


def _ours():
    from bactrian import assistant
    from bactrian.evaluate.lm_eval_model import Model
    from bactrian.respond import Respondent

    respondent = Respondent(assistant.find(training_data.MODEL), "model")
    return Model(respondent, "smollm2", respondent.text)


def _theirs(batch_size: int):
    import torch
    from lm_eval.models.huggingface import HFLM

    torch.set_num_threads(os.cpu_count() or 1)
    reference: Any = HFLM
    return reference(pretrained=str(training_data.exported()), device="cpu", dtype="float32", batch_size=batch_size)


if __name__ == "__main__":
    main()
