"""Two evaluations of the same items, item by item: what their difference is worth.

An evaluation is its folder, or a file: MT-Bench's judgments of one model, AlpacaEval's annotations, the items of a
benchmark. Values are points of MT-Bench, and percent of everything else.
"""

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from bactrian.errors import DataError
from bactrian.evaluate import alpaca_eval, mt_bench_scores, published, statistics, verdicts

Row = dict[str, Any]
Items = dict[Any, list[float]]  # by question, instruction or item


def run(first: Path, second: Path) -> dict[str, Row]:
    """By benchmark the comparison of the items that both have, and how many only one has. Raises `DataError`."""
    sides = _read(first), _read(second)
    shared = [name for name in sides[0] if name in sides[1]]
    if not shared:
        what = " and ".join(f"{path} has {', '.join(side)}" for path, side in zip((first, second), sides, strict=True))
        raise DataError(f"nothing to compare: {what}")
    found = {}
    for name in shared:
        one, other = (side[name] for side in sides)
        keys = [key for key in one if key in other]
        compared = statistics.compare([one[key] for key in keys], [other[key] for key in keys])
        if compared is None:
            raise DataError(f"{second}: shares no item of {name} with {first}; compare evaluations of the same items")
        alone = {"only_first": len(one) - len(keys), "only_second": len(other) - len(keys)}
        found[name] = {**compared.as_row(), **alone}
    return found


def _read(path: Path) -> dict[str, Items]:
    """The items of an evaluation, by benchmark."""
    if not path.is_dir():
        return dict([_items(path)])
    judgments = path / "judgments.jsonl"
    if judgments.exists():
        return dict([_items(judgments)])
    files = [each for each in sorted(path.glob("*.jsonl")) if each.name != "responses.jsonl"]
    if not files:
        raise DataError(f"{path}: no judgments.jsonl and no items of a benchmark; give an evaluation's folder")
    return dict(map(_items, files))


def _items(path: Path) -> tuple[str, Items]:
    rows = published.rows(path)
    columns = set(rows[0][1])
    if "preference" in columns:
        annotations = alpaca_eval.annotations(alpaca_eval.of_one(rows, can_choose=False))
        verdicts.enough(alpaca_eval.failures(annotations), len(annotations), "", f"{path}: ")
        shares = alpaca_eval.outcomes(annotations)
        return "AlpacaEval", _gathered(
            (row["instruction"], None if share is None else 100 * share)
            for row, share in zip(annotations, shares, strict=True)
        )
    if {"id", "value"} <= columns:
        return path.stem, _gathered(_benchmark_item(row, where) for where, row in rows)
    if "model_1" in columns or "score" not in columns:
        raise DataError(f"{path}: not judgments of one model, nor a benchmark's items; there is nothing to compare by")
    if mt_bench_scores.is_pairwise(rows):
        raise DataError(f"{path}: judgments of pairs; there is nothing to compare by")
    models = {row["model"] for _, row in rows}
    if len(models) > 1:
        raise DataError(f"{path}: judgments of {', '.join(sorted(models))}; `mt-bench --judgments` compares them")
    rows = published.of_one(rows, published.judge_of, "judges", None, "split it")
    for failed in mt_bench_scores.failures(rows).values():
        verdicts.enough(failed, len(rows), "", f"{path}: ")
    return "MT-Bench", mt_bench_scores.items(rows)


def _benchmark_item(row: Row, where: str) -> tuple[Any, float | None]:
    """An item of a benchmark and its value in percent; None where it has none."""
    key, value = row.get("id"), row.get("value")
    if not isinstance(key, str | int) or isinstance(value, bool) or not isinstance(value, int | float | None):
        raise DataError(f"{where}: not an item of a benchmark; `id` should be text and `value` a number from 0 to 1")
    if value is None or math.isnan(value):
        return key, None
    if not 0 <= value <= 1:
        raise DataError(f"{where}: `value` is {value}; it should be from 0 to 1")
    return key, 100 * value


def _gathered(values: Iterable[tuple[Any, float | None]]) -> Items:
    items: Items = {}
    for key, value in values:
        items.setdefault(key, []).extend([] if value is None else [value])
    return items
