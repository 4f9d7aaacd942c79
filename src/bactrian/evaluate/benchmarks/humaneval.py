"""HumanEval (Chen et al. 2021): Python functions that are run against their tests, in a sandbox."""

from math import comb
from typing import Any

from bactrian.evaluate import sandbox
from bactrian.evaluate.benchmarks import files
from bactrian.evaluate.benchmarks.files import Origin, Rows
from bactrian.evaluate.benchmarks.task import Benchmark, Clip, Graded
from bactrian.evaluate.protocol import Responder, Settings

_SAMPLES, _K = 20, 10
_SETTINGS = Settings(
    max_tokens=512, temperature=0.8, top_p=0.95, stop=("\nclass", "\ndef", "\n#", "\nif", "\nprint"), seed=1
)
_COLUMNS = ("task_id", "prompt", "entry_point", "test")
_NAMES = tuple(f"{folder}/HumanEval.jsonl.gz" for folder in ("humaneval", "codex_humaneval", "data"))


def read(origin: Origin) -> Rows:
    """The 164 problems."""
    if origin.folder is None:
        return files.hub("openai/openai_humaneval", None, "test")
    path = origin.file("HumanEval", (*_NAMES, "HumanEval.jsonl.gz"))
    return [files.columns(path, row, _COLUMNS) for row in files.rows(path)]


def run(responder: Responder, clip: Clip, rows: Rows) -> list[Graded]:
    sandbox.require()
    prompts = [row["prompt"] for row in rows for _ in range(_SAMPLES)]
    completions = responder.generate(prompts, _SETTINGS) if rows else []
    programs = [
        program(row, completions[number * _SAMPLES + sample])
        for number, row in enumerate(rows)
        for sample in range(_SAMPLES)
    ]
    outcomes = sandbox.run(programs)
    graded = []
    for number, row in enumerate(rows):
        own = slice(number * _SAMPLES, (number + 1) * _SAMPLES)
        passed = outcomes[own].count("passed")
        said = completions[own][0]
        taken = f"{passed} of {_SAMPLES} passed"
        graded.append(
            Graded(
                row["task_id"],
                "humaneval",
                row["prompt"],
                said,
                taken,
                row["entry_point"],
                pass_at(_K, passed, _SAMPLES),
            )
        )
    return graded


def program(row: dict[str, Any], completion: str) -> str:
    """A problem with a completion and its tests, as one program that fails if a test does."""
    return f"{row['prompt']}{completion}\n{row['test']}\ncheck({row['entry_point']})\n"


def pass_at(k: int, passed: int, samples: int) -> float:
    """The chance that one of k of the samples passes, without bias: 1 - C(n - c, k) / C(n, k) (Chen et al., eq. 1)."""
    return 1.0 - comb(samples - passed, k) / comb(samples, k)


BENCHMARK = Benchmark(
    name="humaneval",
    title="HumanEval, pass@10",
    metric="pass@10 of 20 samples",
    settings={
        "shots": 0,
        "chat": "none: the function's beginning is continued",
        "samples": _SAMPLES,
        "temperature": _SETTINGS.temperature,
        "top_p": _SETTINGS.top_p,
        "max_tokens": _SETTINGS.max_tokens,
        "stop": list(_SETTINGS.stop),
        "seed": _SETTINGS.seed,
    },
    read=read,
    run=run,
    needs_code=True,
)
