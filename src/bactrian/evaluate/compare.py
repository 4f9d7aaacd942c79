"""Two evaluations of the same items, item by item: what their difference is worth.

An evaluation is its folder, or a file: MT-Bench's judgments of one model, AlpacaEval's annotations, the items of a
benchmark. Values are points of MT-Bench, and percent of everything else.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from bactrian.errors import DataError
from bactrian.evaluate import alpaca_eval, mt_bench_scores, published, statistics

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
        annotations = alpaca_eval.read_annotations(path)
        return "AlpacaEval", _gathered((row["instruction"], _percent(row["preference"], 1)) for row in annotations)
    if {"id", "value"} <= columns:
        return path.stem, _gathered((row["id"], _percent(row["value"], 0)) for _, row in rows)
    if "model_1" in columns or "score" not in columns:
        raise DataError(f"{path}: not judgments of one model, nor a benchmark's items; there is nothing to compare by")
    models = {str(row.get("model")) for _, row in rows}
    if len(models) > 1:
        raise DataError(f"{path}: judgments of {', '.join(sorted(models))}; `mt-bench --judgments` compares them")
    return "MT-Bench", mt_bench_scores.items(rows)


def _gathered(values: Iterable[tuple[Any, list[float]]]) -> Items:
    items: Items = {}
    for key, value in values:
        items.setdefault(key, []).extend(value)
    return items


def _percent(value: float | None, zero: float) -> list[float]:
    return [] if value is None else [100 * (value - zero)]
