"""MT-Bench's figures from judgments, whoever made them: FastChat's show_result.py, with intervals and comparisons.

A judgment without a rating on the scale (score -1) is left out of every mean and counted. The average is over all
judgments that remain, not the mean of the two turns' means: they differ where one was left out.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from itertools import combinations
from typing import Any

from bactrian.errors import DataError
from bactrian.evaluate import published, statistics
from bactrian.evaluate.mt_bench import category_of, on_scale, rating

Row = dict[str, Any]
Rows = Sequence[tuple[str, Row]]

_PAIR = {"model_1", "model_2", "g1_winner", "g2_winner"}  # the columns of a comparison
_WINNERS = ("model_1", "model_2", "tie", "error", None)


def is_pairwise(rows: Rows) -> bool:
    """Whether judgments compare two models. Raises `DataError` for rows that are no judgments."""
    kinds = set()
    for where, row in rows:
        if set(row) >= _PAIR:
            kinds.add(True)
            names = ("model_1", "model_2")
        elif {"model", "score", "question_id", "turn"} <= set(row):
            kinds.add(False)
            names = ("model",)
        else:
            raise DataError(
                f"{where}: not an MT-Bench judgment; it needs model, score, question_id and turn, or model_1, model_2, "
                f"g1_winner and g2_winner"
            )
        for name in names:
            published.text(row, name, where)
    if len(kinds) > 1:
        raise DataError(f"{rows[0][0].rpartition(':')[0]}: rated and compared answers in one file; split it")
    return kinds.pop()


def single(rows: Rows, categories: dict[int, str] | None = None) -> dict[str, Row]:
    """Per model: `average`, `turn1`, `turn2`, `categories`, `n` judgments averaged, `failed`, with intervals.

    `versus` compares with each other model, question by question. Categories are by question id where none are given.
    """
    by_model: dict[str, list[tuple[int, int, float | None]]] = {}
    for where, row in rows:
        by_model.setdefault(str(row["model"]), []).append(_judged(row, where))
    scores = {model: _single(judged, categories) for model, judged in by_model.items()}
    found_items = {model: _items(judged) for model, judged in by_model.items()}
    for first, second in combinations(scores, 2):
        one, other = found_items[first], found_items[second]
        questions = sorted(one.keys() & other.keys())
        found = statistics.compare([one[q] for q in questions], [other[q] for q in questions])
        if found:
            scores[first].setdefault("versus", {})[second] = found.as_row()
            scores[second].setdefault("versus", {})[first] = found.mirrored().as_row()
    return scores


def items(rows: Rows) -> dict[int, list[float]]:
    """The scores of each question in judgments of one model."""
    return _items([_judged(row, where) for where, row in rows])


def _judged(row: Row, where: str) -> tuple[int, int, float | None]:
    """Question, turn and score of a judgment."""
    return _whole(row.get("question_id"), where), _whole(row.get("turn"), where), _score(row, where)


def _single(judged: list[tuple[int, int, float | None]], categories: dict[int, str] | None) -> Row:
    scored = [(question, turn, score) for question, turn, score in judged if score is not None]

    def mean(kept: list[float]) -> float | None:
        return sum(kept) / len(kept) if kept else None

    by_category: dict[str, list[float]] = {}
    for question, _, score in scored:
        category = (categories or {}).get(question) or category_of(question)
        by_category.setdefault(category, []).append(score)
    found = statistics.interval(list(_items(judged).values()))
    return {
        "average": mean([score for _, _, score in scored]),
        "turn1": mean([score for _, turn, score in scored if turn == 1]),
        "turn2": mean([score for _, turn, score in scored if turn == 2]),
        "categories": {category: mean(kept) for category, kept in sorted(by_category.items())},
        "n": len(scored),
        "failed": len(judged) - len(scored),
        "interval": None if found is None else asdict(found),
    }


def _items(judged: list[tuple[int, int, float | None]]) -> dict[int, list[float]]:
    """The scores of each question; a question whose judgments all failed has none."""
    items: dict[int, list[float]] = {}
    for question, _, score in judged:
        items.setdefault(question, []).extend([] if score is None else [score])
    return items


def pairwise(rows: Rows, baseline: str | None = None) -> dict[str, Row]:
    """Per model: wins, losses and ties, their rates, and how many pairs failed.

    Both games must name the same winner, or the pair is a tie. With a baseline only its pairs count, and it has no row.
    """
    counts: dict[str, Counter[str]] = {}
    items: dict[str, list[list[float]]] = {}
    for where, row in rows:
        models = str(row["model_1"]), str(row["model_2"])
        if baseline is not None and baseline not in models:
            continue
        outcome = _outcome(row, where)
        for place, model in enumerate(models, start=1):
            if model != baseline:
                result = outcome if outcome in ("tie", "failed") else "win" if outcome == f"model_{place}" else "loss"
                counts.setdefault(model, Counter())[result] += 1
                value = {"win": [1.0], "tie": [0.5], "loss": [0.0], "failed": []}[result]
                items.setdefault(model, []).append(value)
    if not counts:
        raise DataError(f"no pair with {baseline!r} among the judgments; see the names in model_1 and model_2")
    return {model: _pairwise(counts[model], items[model]) for model in counts}


def _outcome(row: Row, where: str) -> str:
    games = row["g1_winner"], row["g2_winner"]
    for game in games:
        if game not in _WINNERS:
            raise DataError(f"{where}: the winner of a game is {game!r}; it should be model_1, model_2, tie or error")
    if "error" in games or None in games:
        return "failed"
    return str(games[0]) if games[0] == games[1] else "tie"


def _pairwise(count: Counter[str], items: list[list[float]]) -> Row:
    n = count["win"] + count["loss"] + count["tie"]
    found = statistics.share(items)
    return {
        "win": count["win"],
        "loss": count["loss"],
        "tie": count["tie"],
        "win_rate": count["win"] / n if n else None,
        "loss_rate": count["loss"] / n if n else None,
        "win_rate_adjusted": (count["win"] + 0.5 * count["tie"]) / n if n else None,
        "n": n,
        "failed": count["failed"],
        "interval": None if found is None else asdict(found),
        "sign_test": statistics.mcnemar(count["win"], count["loss"]),
    }


def disagreements(rows: Rows) -> list[str]:
    """Where a recorded score is not the one that the judgment's text holds."""
    return [
        where
        for where, row in rows
        if isinstance(row.get("judgment"), str)
        and "score" in row
        and "error" not in row
        # Off the scale one is as good as none.
        and on_scale(rating(row["judgment"])) != _score(row, where)
    ]


def failures(rows: Rows) -> dict[str, list[Row]]:
    """By model the judgments without a verdict, each with the reason as its `error`."""
    failed: dict[str, list[Row]] = {}
    for where, row in rows:
        if set(row) >= _PAIR:
            if _outcome(row, where) == "failed":
                lost = "g1" if row["g1_winner"] in ("error", None) else "g2"
                told = {"error": "a game has no winner", "reply": str(row.get(f"{lost}_judgment") or "")} | row
                for name in ("model_1", "model_2"):
                    failed.setdefault(row[name], []).append(told)
        elif _score(row, where) is None:
            told = {"error": f"the score is {row['score']}", "reply": str(row.get("judgment") or "")} | row
            failed.setdefault(row["model"], []).append(told)
    return failed


def repeated(rows: Rows) -> int:
    """How many judgments are of a question, turn and model that have one already; FastChat counts them all."""
    keys = [
        tuple(str(row.get(name)) for name in ("question_id", "turn", "model", "model_1", "model_2", "judge"))
        for _, row in rows
    ]
    return len(keys) - len(set(keys))


def _score(row: Row, where: str) -> float | None:
    score = row["score"]
    if score is None:
        return None
    if isinstance(score, bool) or not isinstance(score, int | float):
        raise DataError(f"{where}: `score` is {score!r}; it should be a number, -1 where there is none")
    return on_scale(score)


def _whole(value: Any, where: str) -> int:
    is_whole = isinstance(value, int) or (isinstance(value, float) and value.is_integer())
    if isinstance(value, bool) or not is_whole:
        raise DataError(f"{where}: {value!r} should be a whole number")
    return int(value)
