"""GSM8K (Cobbe et al. 2021): the last number of an answer after eight worked examples (Wei et al. 2022, table 20)."""

import random
import re
from typing import Any

from bactrian.errors import DataError
from bactrian.evaluate.benchmarks import bundled, files
from bactrian.evaluate.benchmarks.files import Origin, Rows
from bactrian.evaluate.benchmarks.task import SEED, Benchmark, Clip, Graded, answers, asked, plain, shown
from bactrian.evaluate.protocol import Responder, Settings

_COUNT = 200
_BEGUN = "Answer:"
_NAMES = ("gsm8k/test.jsonl", "gsm/test.jsonl", "grade_school_math/data/test.jsonl")


def read(origin: Origin) -> dict[str, Any]:
    """`examples`: worked questions; `rows`: the 200 test questions that open-instruct draws."""
    if origin.folder is None:
        found = files.hub("openai/gsm8k", "main", "test")
    else:
        path = origin.file("GSM8K", _NAMES)
        found = [files.columns(path, row, ("question", "answer")) for row in files.rows(path)]
    rows = [{"question": row["question"], "answer": _number(row["answer"])} for row in found]
    if len(rows) > _COUNT:
        rows = random.Random(SEED).sample(rows, _COUNT)
    return {"examples": bundled.worked_examples(), "rows": rows}


def _number(answer: str) -> str:
    _, mark, number = answer.partition("####")
    if not mark:
        raise DataError(f"GSM8K: an answer without ####: {answer[:80]!r}; is it the published file?")
    return _without_commas(number.strip())


def run(responder: Responder, clip: Clip, data: dict[str, Any]) -> list[Graded]:
    rows: Rows = data["rows"]
    worked = "\n\n".join(f"Question: {each['question']}\nAnswer: {each['answer']}" for each in data["examples"])
    opening = f"Answer the following questions.\n\n{worked}\n\n"
    prompts = [asked(f"{opening}Question: {row['question'].strip()}", _BEGUN) for row in rows]
    graded = []
    for number, (row, said) in enumerate(zip(rows, answers(responder, prompts, Settings(max_tokens=512)), strict=True)):
        taken = last_number(said)
        value = float(plain(taken) == plain(row["answer"]))
        graded.append(Graded(str(number), "gsm8k", shown(prompts[number]), said, taken, row["answer"], value))
    return graded


def last_number(text: str) -> str:
    """The last number of a text, without the commas of thousands; the text itself where there is none."""
    text = _without_commas(text)
    numbers = re.findall(r"[-+]?\d*\.\d+|\d+", text)
    return numbers[-1] if numbers else text


def _without_commas(text: str) -> str:
    return re.sub(r"(\d),(\d)", r"\1\2", text)


BENCHMARK = Benchmark(
    name="gsm8k",
    title="GSM8K, 8-shot chain of thought",
    metric="exact match of the last number",
    settings={
        "shots": 8,
        "items": _COUNT,
        "seed": SEED,
        "max_tokens": 512,
        "temperature": 0,
        "answer begins with": _BEGUN,
    },
    read=read,
    run=run,
)
