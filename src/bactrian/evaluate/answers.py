"""A model's answers to a question set: made block by block, each on disk before the next, or taken from a file.

Blocks are always the same, so answers that are drawn come out the same after a kill.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from bactrian import progress
from bactrian.data.records import Message, Messages
from bactrian.errors import DataError, JudgeError
from bactrian.evaluate import alpaca_eval, mt_bench, published
from bactrian.evaluate.alpaca_eval import Output
from bactrian.evaluate.artifacts import Folder
from bactrian.evaluate.mt_bench import Answer, Question
from bactrian.evaluate.protocol import Generator, Settings

_AT_ONCE = 32

Row = dict[str, Any]


def answer_mt_bench(
    folder: Folder, generator: Generator, name: str, questions: Sequence[Question], settings: Settings
) -> dict[int, Answer]:
    """Both turns of every question, at its category's temperature; the second turn sees the first and its answer."""
    blocks: list[list[Question]] = []
    for temperature in dict.fromkeys(question.temperature for question in questions):
        alike = [question for question in questions if question.temperature == temperature]
        blocks += [alike[start : start + _AT_ONCE] for start in range(0, len(alike), _AT_ONCE)]

    def answer(block: Sequence[Question], seed: int) -> list[Row]:
        drawn = replace(settings, temperature=block[0].temperature, seed=settings.seed + seed)
        talks: list[Messages] = [() for _ in block]
        for turn in range(max(len(question.turns) for question in block)):
            going = [place for place, question in enumerate(block) if len(question.turns) > turn]
            for place in going:
                talks[place] += (Message("user", block[place].turns[turn]),)
            said = generator.generate([talks[place] for place in going], drawn)
            for place, text in zip(going, said, strict=True):
                talks[place] += (Message("assistant", text.strip()),)
        return [_mt_bench_row(question.id, name, talk) for question, talk in zip(block, talks, strict=True)]

    path, made = folder.file("answers.jsonl"), made_mt_bench(folder, name)
    _check_turns(path, questions, made)
    rows = _blockwise(folder, blocks, lambda each: each.id, dict(zip(made, mt_bench_rows(made), strict=True)), answer)
    _check_said([turn for row in rows for turn in row["choices"][0]["turns"]], name, path)
    return {row["question_id"]: Answer(name, tuple(row["choices"][0]["turns"])) for row in rows}


def answer_alpaca_eval(
    folder: Folder, generator: Generator, name: str, references: Sequence[Output], settings: Settings
) -> list[Output]:
    """An output to every instruction of the reference model's outputs."""
    blocks = [references[start : start + _AT_ONCE] for start in range(0, len(references), _AT_ONCE)]

    def answer(block: Sequence[Output], seed: int) -> list[Row]:
        prompts: list[Any] = [(Message("user", each.instruction),) for each in block]
        said = generator.generate(prompts, replace(settings, seed=settings.seed + seed))
        return [
            {"instruction": each.instruction, "output": text.strip(), "generator": name, "dataset": each.dataset}
            for each, text in zip(block, said, strict=True)
        ]

    made = {each.instruction: asdict(each) for each in made_alpaca_eval(folder, name)}
    rows = _blockwise(folder, blocks, lambda each: each.instruction, made, answer)
    _check_said([row["output"] for row in rows], name, folder.file("answers.jsonl"))
    return [Output(row["instruction"], row["output"], row["generator"], row["dataset"]) for row in rows]


def _blockwise(
    folder: Folder,
    blocks: Sequence[Sequence[Any]],
    id_of: Callable[[Any], Any],
    rows: dict[Any, Row],
    answer: Callable[[Sequence[Any], int], list[Row]],
) -> list[Row]:
    """Answer the blocks that the folder has no answers to; `rows` are those it has, by item.

    Returns all rows in the order of the items.
    """
    total = sum(map(len, blocks))
    with progress.bar("answers", total, len(rows)) as bar:
        for number, block in enumerate(blocks):
            if not all(id_of(item) in rows for item in block):
                made = zip(map(id_of, block), answer(block, number), strict=True)
                # Of a block that was half-written only what is missing is added.
                lacking = [(key, row) for key, row in made if key not in rows]
                folder.append_answers([row for _, row in lacking])
                rows |= dict(lacking)
            bar.to(len(rows), total)
    return [rows[id_of(item)] for block in blocks for item in block]


def made_mt_bench(folder: Folder, name: str) -> dict[int, Answer]:
    """The answers that a folder has, by question. Raises `DataError`."""
    return dict(mt_bench.answer_of(row, where, name) for where, row in folder.answers())


def made_alpaca_eval(folder: Folder, name: str) -> list[Output]:
    """The outputs that a folder has. Raises `DataError`."""
    return [alpaca_eval.output_of(row, where, name) for where, row in folder.answers()]


def _mt_bench_row(question: int, name: str, talk: Messages) -> Row:
    turns = [message.content for message in talk if message.role == "assistant"]
    return {"question_id": question, "model_id": name, "choices": [{"index": 0, "turns": turns}]}


def _check_said(texts: Sequence[str], name: str, path: Path) -> None:
    empty = sum(not text.strip() for text in texts)
    if empty == len(texts):
        raise JudgeError(
            f"{name} answered nothing to any of {len(texts)} prompts; see --chat and whether it is a chat model "
            f"({path} has what it said)"
        )
    if empty:
        progress.say(
            f"warning: {name} answered nothing to {empty} of {len(texts)} prompts; they are judged as they are"
        )


def given_mt_bench(path: Path, name: str | None, questions: Sequence[Question]) -> dict[int, Answer]:
    """A model's answers in a file, which must be to these very questions. Raises `DataError`."""
    by_model = mt_bench.read_answers(path)
    if name is None and len(by_model) > 1:
        raise DataError(f"{path}: answers of {', '.join(by_model)}; say whose with --name")
    answers = by_model.get(name or next(iter(by_model)))
    if answers is None:
        # A file of one model may be called as one likes.
        if len(by_model) > 1:
            raise DataError(f"{path}: no answers of {name!r}; there are {', '.join(by_model)}")
        answers = {key: replace(each, model=str(name)) for key, each in next(iter(by_model.values())).items()}
    missing = [question.id for question in questions if question.id not in answers]
    if missing:
        raise DataError(
            f"{path}: no answer to {len(missing)} of the {len(questions)} questions, the first {missing[0]}: the "
            f"answers are to another question set, or not complete"
        )
    _check_turns(path, questions, answers)
    asked = {question.id: answers[question.id] for question in questions}
    said = [turn for question in questions for turn in asked[question.id].turns[: len(question.turns)]]
    _check_said(said, next(iter(asked.values())).model, path)
    return asked


def _check_turns(path: Path, questions: Sequence[Question], answers: dict[int, Answer]) -> None:
    short = [each.id for each in questions if each.id in answers and len(answers[each.id].turns) < len(each.turns)]
    if short:
        raise DataError(f"{path}: the answer to question {short[0]} has fewer turns than the question; answer it again")


def given_alpaca_eval(path: Path, name: str | None) -> list[Output]:
    """A model's outputs in a file. Raises `DataError`."""
    outputs = alpaca_eval.read_outputs(path, name)
    if name:
        outputs = [replace(output, generator=name) for output in outputs]
    _check_said([output.output for output in outputs], outputs[0].generator, path)
    return outputs


def mt_bench_rows(answers: dict[int, Answer]) -> list[Row]:
    """Answers in FastChat's layout."""
    return [
        {"question_id": key, "model_id": each.model, "choices": [{"index": 0, "turns": list(each.turns)}]}
        for key, each in answers.items()
    ]


def question_rows(path: Path) -> list[Row]:
    """The questions as their file has them."""
    return [row for _, row in published.rows(path)]
