"""The questions of evaluation sets, read from the files in which their owners publish them.

mt_bench      `turns`, a list: lm-sys/FastChat, fastchat/llm_judge/data/mt_bench/question.jsonl
alpaca_eval   `instruction`: tatsu-lab/alpaca_eval, results/*/model_outputs.json
gsm8k         `question`: openai/grade-school-math, grade_school_math/data/test.jsonl
mmlu          `question`, `choices`, a list: cais/mmlu
humaneval     `prompt`: openai/human-eval, data/HumanEval.jsonl.gz
truthfulqa    `question` (mc_task.json) or `Question` (TruthfulQA.csv): sylinrl/TruthfulQA
prompts       `prompt`: any file of the user's, IFEval's among them

Answers are no part of it: a training set may well say that Paris is the capital of France.
"""

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from bactrian.data.screens.settings import EvaluationSet
from bactrian.data.sources import fields, reader
from bactrian.errors import DataError
from bactrian.recipe import Source

_KEYS = {
    "alpaca_eval": ("instruction",),
    "gsm8k": ("question",),
    "mmlu": ("question",),
    "humaneval": ("prompt",),
    "truthfulqa": ("question", "Question"),
    "prompts": ("prompt",),
}


class Question(NamedTuple):
    """One question; `set` names the evaluation set, `where` the row."""

    text: str
    choices: tuple[str, ...]
    set: str
    where: str


def read(evaluation: EvaluationSet) -> Iterator[Question]:
    """The questions of one set. Raises `DataError`, also where a row is not laid out as the set's rows are."""
    named = evaluation.name or evaluation.layout
    for where, row in _rows(evaluation.path):
        if evaluation.layout == "mt_bench":
            turns = row.get("turns")
            if not isinstance(turns, list) or not turns:
                raise _foreign(where, "turns", evaluation)
            for index, turn in enumerate(turns):
                yield Question(fields.text(turn, f"turns[{index}]", where), (), named, where)
            continue
        key = next((key for key in _KEYS[evaluation.layout] if row.get(key) is not None), None)
        if key is None:
            raise _foreign(where, " or ".join(_KEYS[evaluation.layout]), evaluation)
        choices = row.get("choices") if evaluation.layout == "mmlu" else ()
        if not isinstance(choices, list | tuple):
            raise _foreign(where, "choices", evaluation)
        texts = tuple(fields.text(choice, f"choices[{index}]", where) for index, choice in enumerate(choices))
        yield Question(fields.text(row[key], key, where), texts, named, where)


def _rows(path: str) -> Iterator[tuple[str, dict[str, Any]]]:
    if Path(path).suffix != ".csv":
        yield from reader.read(Source(path=path, format="messages"))
        return
    try:
        with Path(path).open(encoding="utf-8-sig", newline="") as file:
            for number, row in enumerate(csv.DictReader(file), 1):
                yield f"{path}: row {number}", row
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}: cannot read the evaluation set: {error}; check the path in the recipe") from None


def _foreign(where: str, key: str, evaluation: EvaluationSet) -> DataError:
    return DataError(f"{where}: no {key!r}, which rows of {evaluation.layout} have; set `layout` to the file's own")
