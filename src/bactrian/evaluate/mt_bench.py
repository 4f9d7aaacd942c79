"""MT-Bench: 80 questions of two turns each, judged by a model that rates answers or compares two of them.

The rules are those of FastChat's llm_judge (fastchat/llm_judge/common.py, gen_judgment.py, show_result.py); its files
are read and written in their own layouts. Zheng et al. 2023, https://arxiv.org/abs/2306.05685.
"""

import ast
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeGuard

from bactrian.data.records import Messages
from bactrian.errors import DataError
from bactrian.evaluate import published, reading
from bactrian.evaluate.calls import Call, Failure, Judge, Reply, chat
from bactrian.evaluate.reading import Missing

Mode = Literal["single", "pairwise"]

TEMPERATURES = {
    "writing": 0.7,
    "roleplay": 0.7,
    "extraction": 0.0,
    "math": 0.0,
    "coding": 0.0,
    "reasoning": 0.0,
    "stem": 0.1,
    "humanities": 0.1,
}
OTHER_TEMPERATURE = 0.7
WITH_REFERENCE = ("math", "reasoning", "coding", "arena-hard-200")
MAX_TOKENS = 1024  # of an answer
JUDGE_TOKENS = 2048
ERROR = "$ERROR$"  # the judgment of a judge that could not be asked
FAILED = -1  # the score of a judgment without a rating
LOWEST, HIGHEST = 1, 10  # of the scale that the judge is told to rate on

# Which category each of the published questions belongs to, for judgments that come without their questions.
_CATEGORIES = ("writing", "roleplay", "reasoning", "math", "coding", "extraction", "stem", "humanities")
_FIRST_ID, _PER_CATEGORY = 81, 10

_RATING = re.compile(r"\[\[(\d+\.?\d*)\]\]")
_RATING_BACKUP = re.compile(r"\[(\d+\.?\d*)\]")
_TWO_RATINGS = re.compile(r"\[\[(\d+\.?\d*),\s?(\d+\.?\d*)\]\]")
_TWO_RATINGS_BACKUP = re.compile(r"\[(\d+\.?\d*),\s?(\d+\.?\d*)\]")
_TIE = 0.1  # two ratings closer than that are a tie
_OFF_SCALE = f"the rating is not from {LOWEST} to {HIGHEST}"


@dataclass(frozen=True)
class Question:
    """One question, with as many turns as it has."""

    id: int
    category: str
    turns: tuple[str, ...]
    temperature: float


@dataclass(frozen=True)
class Template:
    """One judge prompt of judge_prompts.jsonl."""

    name: str
    kind: Mode
    system: str
    prompt: str
    output: str


@dataclass(frozen=True)
class Answer:
    """A model's turns to one question."""

    model: str
    turns: tuple[str, ...]


@dataclass(frozen=True)
class Bench:
    """Questions, judge prompts by name, and reference answers by question; `limit` where only the first are asked."""

    questions: tuple[Question, ...]
    templates: dict[str, Template]
    references: dict[int, tuple[str, ...]]
    limit: int | None = None


def category_of(question_id: int) -> str:
    """The category of a published question, by its id; `unknown` for any other."""
    place = (question_id - _FIRST_ID) // _PER_CATEGORY
    return _CATEGORIES[place] if 0 <= place < len(_CATEGORIES) else "unknown"


def read_questions(path: Path) -> tuple[Question, ...]:
    """Questions in FastChat's layout: `question_id`, `category`, `turns`. Raises `DataError`."""
    questions: dict[int, Question] = {}
    for where, row in published.rows(path):
        turns = row.get("turns")
        if not isinstance(row.get("question_id"), int) or not _are_texts(turns):
            raise DataError(f"{where}: not an MT-Bench question; it needs `question_id`, a number, and `turns`, texts")
        category = published.text(row, "category", where)
        temperature = row.get("required_temperature", TEMPERATURES.get(category, OTHER_TEMPERATURE))
        if isinstance(temperature, bool) or not isinstance(temperature, int | float) or not 0 <= temperature <= 100:
            raise DataError(f"{where}: `required_temperature` is {temperature!r}; it should be a number, 0 or more")
        if row["question_id"] in questions:
            raise DataError(f"{where}: question {row['question_id']} is there twice; remove one")
        questions[row["question_id"]] = Question(row["question_id"], category, tuple(turns), float(temperature))
    return tuple(questions.values())


def read_answers(path: Path) -> dict[str, dict[int, Answer]]:
    """Answers in FastChat's layout by model and question; of several to a question the last. Raises `DataError`."""
    answers: dict[str, dict[int, Answer]] = {}
    for where, row in published.rows(path):
        question, answer = answer_of(row, where, path.stem)
        answers.setdefault(answer.model, {})[question] = answer
    return answers


def answer_of(row: Any, where: str, name: str) -> tuple[int, Answer]:
    """The question that a row answers, and the answer, by `name` if the row says no model. Raises `DataError`."""
    try:
        question, turns = row["question_id"], row["choices"][0]["turns"]
    except (KeyError, IndexError, TypeError):
        question, turns = None, None
    if isinstance(question, bool) or not isinstance(question, int) or not _are_texts(turns):
        raise DataError(f"{where}: not an MT-Bench answer; it needs `question_id` and `choices[0].turns`, texts")
    return question, Answer(str(row.get("model_id") or name), tuple(turns))


def read_templates(path: Path) -> dict[str, Template]:
    """Judge prompts in FastChat's layout, by name. Raises `DataError`."""
    templates = {}
    for where, row in published.rows(path):
        texts = [published.text(row, name, where) for name in ("name", "system_prompt", "prompt_template")]
        kind, output = published.text(row, "type", where), published.text(row, "output_format", where)
        if kind not in ("single", "pairwise"):
            raise DataError(f"{where}: `type` is {kind!r}; it should be single or pairwise")
        templates[texts[0]] = Template(texts[0], kind, texts[1], texts[2], output)
    return templates


def _are_texts(value: Any) -> TypeGuard[list[str]]:
    return isinstance(value, list) and bool(value) and all(map(published.is_text, value))


# The judge's prompts


def template_for(bench: Bench, question: Question, turn: int, mode: Mode) -> Template:
    """The judge prompt for a turn of a question. Raises `DataError` where the file has none."""
    stem = {
        ("single", False): "single-v1",
        ("single", True): "single-math-v1",
        ("pairwise", False): "pair-v2",
        ("pairwise", True): "pair-math-v1",
    }[mode, question.category in WITH_REFERENCE]
    name = stem + ("-multi-turn" if turn == 2 else "")
    if name not in bench.templates:
        raise DataError(f"the judge prompts have no {name!r}; give FastChat's judge_prompts.jsonl with --judge-prompts")
    return bench.templates[name]


def user_prompt(bench: Bench, template: Template, question: Question, turn: int, answers: Sequence[Answer]) -> str:
    """What the judge is shown: one answer to rate, or two to compare. Raises `DataError` for a missing reference."""
    filled: dict[str, str] = {}
    if question.category in WITH_REFERENCE:
        reference = bench.references.get(question.id, ())
        if len(reference) < turn:
            raise DataError(f"question {question.id} ({question.category}) has no reference answer; see --references")
        filled |= {f"ref_answer_{i}": reference[i - 1] for i in range(1, turn + 1)}
    letters = ("",) if len(answers) == 1 else ("_a", "_b")
    for letter, answer in zip(letters, answers, strict=True):
        if turn == 1:
            filled[f"answer{letter}"] = answer.turns[0]
        else:
            filled |= {f"answer{letter}_{i}": answer.turns[i - 1] for i in range(1, turn + 1)}
    if turn == 1:
        filled["question"] = question.turns[0]
    else:
        filled |= {f"question_{i}": question.turns[i - 1] for i in range(1, turn + 1)}
    return fill(template, filled)


def fill(template: Template, filled: dict[str, str]) -> str:
    """A judge prompt with its slots filled in. Raises `DataError` where it has others."""
    try:
        return template.prompt.format(**filled)
    except (AttributeError, KeyError, IndexError, TypeError, ValueError) as error:
        raise DataError(f"judge prompt {template.name!r}: cannot be filled in: {error!r}; correct the file") from None


def messages(template: Template, prompt: str) -> Messages:
    """The conversation that the judge is asked in."""
    return chat(template.system, prompt)


# Verdicts


def rating(judgment: str) -> float | int:
    """The rating in a judgment: the first `[[5]]`, else the first `[5]`, else -1.

    >>> rating("Rating: [[7.5]]"), rating("[8] of ten"), rating("seven")
    (7.5, 8, -1)
    """
    found = _RATING.search(judgment) or _RATING_BACKUP.search(judgment)
    return _number(found[1]) if found else FAILED


def on_scale(score: float | int | None) -> float | int | None:
    """A score that counts; None for one that is missing (-1), NaN or off the scale of 1 to 10."""
    return score if score is not None and LOWEST <= score <= HIGHEST else None


def rated(outcome: Reply | Failure) -> float | int | Missing:
    """The rating that a judge gave. Of a truncated reply only a `[[5]]` counts: a `[5]` may stand anywhere."""

    def value(reply: Reply) -> float | int | None:
        is_said = reply.finish != reading.TRUNCATED or _RATING.search(reply.text)
        return on_scale(rating(reply.text)) if is_said else None

    def lacking(reply: Reply) -> str:
        off = rating(reply.text) != FAILED and on_scale(rating(reply.text)) is None
        return _OFF_SCALE if off else reading.lacking_in_text(reply, "there is no rating in the reply")

    return reading.verdict(outcome, value, lacking)


def compared(outcome: Reply | Failure, output: str = "[[A]]") -> Literal["A", "B", "tie"] | Missing:
    """Who won, by a judge's reply about two answers."""

    def value(reply: Reply) -> Literal["A", "B", "tie"] | None:
        found = verdict(reply.text, output)
        return None if found == "error" else found

    def lacking(reply: Reply) -> str:
        return reading.lacking_in_text(reply, f"there is no {output} in the reply")

    return reading.verdict(outcome, value, lacking)


def verdict(judgment: str, output: str = "[[A]]") -> Literal["A", "B", "tie", "error"]:
    """Who won, by a judgment of two answers."""
    if output == "[[rating_a,rating_b]]":
        found = _TWO_RATINGS.search(judgment) or _TWO_RATINGS_BACKUP.search(judgment)
        if not found:
            return "error"
        first, second = on_scale(_number(found[1])), on_scale(_number(found[2]))
        if first is None or second is None:
            return "error"
        if abs(first - second) <= _TIE:
            return "tie"
        return "A" if first > second else "B"
    if "[[A]]" in judgment:
        return "A"
    if "[[B]]" in judgment:
        return "B"
    return "tie" if "[[C]]" in judgment else "error"


def _number(text: str) -> float | int:
    try:
        return ast.literal_eval(text)
    except (SyntaxError, ValueError):  # digits of other scripts, or a zero in front: FastChat would stop there
        return float(text)


# Judging


def judge_single(bench: Bench, answers: dict[int, Answer], judge: Judge) -> list[dict[str, Any]]:
    """Rate every turn of every answer; rows in FastChat's layout, first all first turns."""
    asked = []
    for turn in (1, 2):
        for question in bench.questions:
            if len(question.turns) >= turn:
                template = template_for(bench, question, turn, "single")
                prompt = user_prompt(bench, template, question, turn, [answers[question.id]])
                asked.append((question, turn, template, prompt))
    calls = [Call(messages(template, prompt), JUDGE_TOKENS) for _, _, template, prompt in asked]
    outcomes = judge.ask(calls, lambda reply: not isinstance(rated(reply), Missing))
    rows = []
    for (question, turn, template, prompt), outcome in zip(asked, outcomes, strict=True):
        found = rated(outcome)
        rows.append(
            {
                "question_id": question.id,
                "model": answers[question.id].model,
                "judge": [judge.name, template.name],
                "user_prompt": prompt,
                "judgment": _judgment(outcome),
                "score": FAILED if isinstance(found, Missing) else found,
                "turn": turn,
                **_trouble(found),
            }
        )
    return rows


def judge_pairs(
    bench: Bench, first: dict[int, Answer], second: dict[int, Answer], judge: Judge
) -> list[dict[str, Any]]:
    """Compare two models turn by turn, each pair in both orders; rows in FastChat's layout."""
    asked, calls = [], []
    for turn in (1, 2):
        for question in bench.questions:
            if len(question.turns) < turn:
                continue
            template = template_for(bench, question, turn, "pairwise")
            pair = [first[question.id], second[question.id]]
            games = [user_prompt(bench, template, question, turn, order) for order in (pair, pair[::-1])]
            asked.append((question, turn, template, pair, games))
            calls += [Call(messages(template, prompt), JUDGE_TOKENS) for prompt in games]

    formats = {template.output for _, _, template, _, _ in asked}

    def usable(reply: Reply) -> bool:
        return any(not isinstance(compared(reply, output), Missing) for output in formats)

    outcomes = judge.ask(calls, usable)
    rows = []
    for place, (question, turn, template, pair, games) in enumerate(asked):
        both = outcomes[2 * place : 2 * place + 2]
        judgments = [_judgment(outcome) for outcome in both]
        found = [compared(outcome, template.output) for outcome in both]
        winners = ["error" if isinstance(each, Missing) else each for each in found]
        named = [{"A": "model_1", "B": "model_2"}, {"A": "model_2", "B": "model_1"}]
        rows.append(
            {
                "question_id": question.id,
                "model_1": pair[0].model,
                "model_2": pair[1].model,
                "g1_winner": named[0].get(winners[0], winners[0]),
                "g2_winner": named[1].get(winners[1], winners[1]),
                "judge": [judge.name, template.name],
                "g1_user_prompt": games[0],
                "g1_judgment": judgments[0],
                "g2_user_prompt": games[1],
                "g2_judgment": judgments[1],
                "turn": turn,
                **_trouble(*found),
            }
        )
    return rows


def _judgment(outcome: Reply | Failure) -> str:
    return reading.clean(outcome.text) if isinstance(outcome, Reply) else ERROR


def _trouble(*found: Any) -> dict[str, Any]:
    """Why a judgment has no verdict, beside the columns that FastChat has."""
    missing = [each for each in found if isinstance(each, Missing)]
    return missing[0].as_row() | {"was_asked": all(each.was_asked for each in missing)} if missing else {}
