"""A page to read answers side by side with their judgments: one file, nothing fetched, no server.

What models and judges wrote is data to the page, never markup: it is put there as text.
"""

import json
from collections.abc import Iterable, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2

from bactrian.evaluate import alpaca_eval
from bactrian.evaluate.mt_bench import Answer, Question, on_scale
from bactrian.files.atomic import replacing
from bactrian.masking import mask, masked

Row = dict[str, Any]

_TEMPLATE = "templates/evaluation.html.jinja"


def write_mt_bench(
    path: Path, judgments: Sequence[Row], questions: Iterable[Question], answers: Sequence[dict[int, Answer]]
) -> None:
    """The page of rated answers (one model) or compared ones (two)."""
    judged: dict[tuple[int, int], Row] = {(row["question_id"], row["turn"]): row for row in judgments}
    names = [next(iter(each.values())).model for each in answers]
    items = []
    for question in questions:
        turns, marks = [], []
        for turn, prompt in enumerate(question.turns, start=1):
            row = judged.get((question.id, turn), {})
            verdicts, mark = _rated(row) if len(names) == 1 else _compared(row, names)
            said = [each[question.id].turns[turn - 1] for each in answers]
            turns.append({"prompt": prompt, "answers": said, "judgments": verdicts})
            marks.append(mark)
        items.append({"id": str(question.id), "group": question.category, "turns": turns, "mark": " · ".join(marks)})
    _write(path, "MT-Bench", " and ".join(names), names, items)


def write_alpaca_eval(path: Path, annotations: Sequence[Row]) -> None:
    """The page of AlpacaEval's pairs, the reference's output beside the model's."""
    first = annotations[0]
    names = [str(first.get("generator_1") or "reference"), str(first.get("generator_2") or "model")]
    items = []
    for number, row in enumerate(annotations):
        verdict, mark = _preferred(row["preference"], names)
        judgment = {"label": verdict, "text": str(row.get("raw_completion") or row.get("error") or "")}
        turn = {
            "prompt": row["instruction"],
            "answers": [row["output_1"], row["output_2"]],
            "judgments": [judgment],
        }
        items.append({"id": str(number), "group": str(row.get("dataset") or "all"), "turns": [turn], "mark": mark})
    _write(path, "AlpacaEval", f"{names[1]} against {names[0]}", names, items)


def _rated(row: Row) -> tuple[list[Row], str]:
    if not row:
        return [], "–"
    score = on_scale(row["score"])
    mark = "failed" if score is None else f"{score:g}"
    return [{"label": f"rated {mark} by {row['judge'][0]}", "text": row["judgment"]}], mark


def _compared(row: Row, names: Sequence[str]) -> tuple[list[Row], str]:
    if not row:
        return [], "–"
    shown = {"model_1": names[0], "model_2": names[1], "tie": "neither", "error": "failed"}
    winners = [shown.get(row[game], str(row[game])) for game in ("g1_winner", "g2_winner")]
    orders = (f"{names[0]} shown first", f"{names[1]} shown first")
    verdicts = [
        {"label": f"{order}: {winner}", "text": row.get(f"g{game}_judgment", "")}
        for game, (order, winner) in enumerate(zip(orders, winners, strict=True), start=1)
    ]
    return verdicts, winners[0] if winners[0] == winners[1] else "tie"


def _preferred(preference: float | None, names: Sequence[str]) -> tuple[str, str]:
    share = alpaca_eval.share(preference)
    if share is None:
        return "no verdict", "failed"
    if share == 0.5:
        return "a draw", "draw"
    sure = "" if share in (0, 1) else f" ({100 * max(share, 1 - share):.1f} %)"
    return f"prefers {names[int(share > 0.5)]}{sure}", "won" if share > 0.5 else "lost"


def _write(path: Path, title: str, subtitle: str, names: Sequence[str], items: list[Row]) -> None:
    content = json.dumps(masked({"names": names, "items": items}), ensure_ascii=False, allow_nan=False)
    # Within a script element nothing but these can end it or begin a comment.
    content = content.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")
    template = resources.files("bactrian").joinpath(_TEMPLATE).read_text(encoding="utf-8")
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    text = environment.from_string(template).render(title=title, subtitle=mask(subtitle), content=content)
    with replacing(path) as temporary:
        temporary.write_bytes(text.encode("utf-8", "replace"))
