"""TyDi QA, gold passage (Clark et al. 2020): an answer from a passage in nine languages, after one worked example."""

import ast
import random
import re
import string
from collections import Counter
from pathlib import Path
from typing import Any

from bactrian.errors import DataError
from bactrian.evaluate import published
from bactrian.evaluate.benchmarks import files
from bactrian.evaluate.benchmarks.files import Origin, Rows
from bactrian.evaluate.benchmarks.task import SEED, Benchmark, Clip, Graded, answers, asked, shown
from bactrian.evaluate.protocol import Responder, Settings

_COUNT = 100
_PASSAGE_TOKENS = 512
_DEV, _TRAIN = "tydiqa-goldp-v1.1-dev.json", "tydiqa-goldp-v1.1-train.json"
_WORDINGS = "encoding_templates_with_context"
_WORDING_FILE = published.File(
    "the wording of TyDi QA's prompts in nine languages",
    "--data (as tydiqa/run_eval.py)",
    ("allenai/open-instruct", "60ceefa6d9339663843decb69a1e6546fc717c4f"),
    "eval/tydiqa/run_eval.py",
    "dcbe0c1c353012b460b464fc44db33fc606e037255a29d96b181e1653c678ed4",
    ("tydiqa/run_eval.py",),
)


def read(origin: Origin) -> dict[str, Any]:
    """`wordings` and one worked `examples` of each language, and 100 `rows` of each, drawn as open-instruct does."""
    if origin.folder is None:
        hub = ("google-research-datasets/tydiqa", "secondary_task")
        test, train = (_of_hub(files.hub(*hub, split)) for split in ("validation", "train"))
    else:
        test, train = (_of_file(origin.file("TyDi QA", (f"tydiqa/{name}", name))) for name in (_DEV, _TRAIN))
    wordings = _read_wordings(published.locate(_WORDING_FILE, None, origin.folder))
    languages = sorted({row["language"] for row in test})
    unknown = [language for language in languages if language not in wordings]
    if unknown:
        raise DataError(f"TyDi QA: no prompt is known in {', '.join(unknown)}; is it the published file?")
    draw = random.Random(SEED)
    rows: Rows = []
    for language in languages:
        own = [row for row in test if row["language"] == language]
        rows += draw.sample(own, _COUNT) if len(own) > _COUNT else own
    examples = {}
    for language in languages:
        own = [row for row in train if row["language"] == language]
        if not own:
            raise DataError(f"TyDi QA: no training example in {language}; is it the published file?")
        examples[language] = draw.sample(own, 1)[0]
    return {"wordings": wordings, "examples": examples, "rows": rows}


def _of_hub(rows: Rows) -> Rows:
    return [
        {
            "id": row["id"],
            "language": row["id"].split("-")[0],
            "passage": row["context"],
            "question": row["question"],
            "answers": row["answers"]["text"],
        }
        for row in rows
    ]


def _of_file(path: Path) -> Rows:
    """The published layout, SQuAD's: articles of paragraphs of questions."""
    try:
        return [
            {
                "id": each["id"],
                "language": each["id"].split("-")[0],
                "passage": paragraph["context"],
                "question": each["question"],
                "answers": [answer["text"] for answer in each["answers"]],
            }
            for article in files.document(path)["data"]
            for paragraph in article["paragraphs"]
            for each in paragraph["qas"]
        ]
    except (KeyError, TypeError) as error:
        raise DataError(f"{path}: not TyDi QA's layout (no {error}); is it the published file?") from None


def _read_wordings(path: Path) -> dict[str, tuple[str, ...]]:
    """Of each language: an instruction, and the words for passage, question and answer."""
    try:
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == _WORDINGS:
                return ast.literal_eval(node.value)
    except (OSError, SyntaxError, ValueError) as error:
        raise DataError(f"{path}: cannot be read: {error}; fetch it again") from None
    raise DataError(f"{path}: no {_WORDINGS} in it; is it open-instruct's eval/tydiqa/run_eval.py?")


def run(responder: Responder, clip: Clip, data: dict[str, Any]) -> list[Graded]:
    prompts = [
        _prompt(row, data["examples"][row["language"]], data["wordings"][row["language"]], clip) for row in data["rows"]
    ]
    said = answers(responder, prompts, Settings(max_tokens=50))
    graded = []
    for row, prompt, answer in zip(data["rows"], prompts, said, strict=True):
        taken = answer.strip()
        value = max((f1(taken, wanted) for wanted in row["answers"]), default=0.0)
        wanted = " | ".join(row["answers"])
        graded.append(Graded(row["id"], row["language"], shown(prompt), answer, taken, wanted, value))
    return graded


def _prompt(row: dict[str, Any], example: dict[str, Any], wording: tuple[str, ...], clip: Clip):
    instruction, passage, question, answer = wording

    def posed(each: dict[str, Any]) -> str:
        return f"{passage} {clip(each['passage'], _PASSAGE_TOKENS)}\n{question} {each['question']}\n"

    worked = f"{posed(example)}{answer} {example['answers'][0]}"
    return asked(f"{instruction}\n\n{worked}\n\n{posed(row)}", answer)


def f1(said: str, wanted: str) -> float:
    """Overlap of words after SQuAD's normalization (Rajpurkar et al. 2016): no case, punctuation or articles."""
    ours, theirs = _words(said), _words(wanted)
    same = sum((Counter(ours) & Counter(theirs)).values())
    return 2 * same / (len(ours) + len(theirs)) if same else 0.0


def _words(text: str) -> list[str]:
    text = text.lower().translate(str.maketrans("", "", string.punctuation))
    return re.sub(r"\b(a|an|the)\b", " ", text).split()


BENCHMARK = Benchmark(
    name="tydiqa",
    title="TyDi QA gold passage, 1-shot",
    metric="F1, mean of the languages",
    settings={
        "shots": 1,
        "items per language": _COUNT,
        "seed": SEED,
        "passage tokens": _PASSAGE_TOKENS,
        "max_tokens": 50,
        "temperature": 0,
    },
    read=read,
    run=run,
    macro=True,
)
