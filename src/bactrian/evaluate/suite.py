"""`--suite tulu2`: the benchmarks of the Tulu 2 paper one after the other, each whole on disk before the next begins.

settings.json     what was asked of which model, and how
responses.jsonl   what the model said, as it said it
NAME.jsonl        a benchmark's items: question, answer, what was taken from it, what was wanted, what that is worth
scores.json       the scores so far
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bactrian import progress
from bactrian.errors import InputError, RunError
from bactrian.evaluate import paper, sandbox
from bactrian.evaluate.benchmarks import bbh, gsm8k, humaneval, mmlu, task, tydiqa
from bactrian.evaluate.benchmarks.files import Origin
from bactrian.evaluate.benchmarks.task import Benchmark, Clip
from bactrian.evaluate.kept import Kept
from bactrian.evaluate.protocol import Responder
from bactrian.files import documents
from bactrian.files.atomic import write_json, write_jsonl
from bactrian.masking import masked

Row = dict[str, Any]

PAPERS: dict[str, Benchmark] = {
    module.BENCHMARK.name: module.BENCHMARK for module in (mmlu, gsm8k, bbh, tydiqa, humaneval)
}
_ELSEWHERE = "choose another folder with --out"
NOT_THE_PAPERS = "not the paper's metric"


@dataclass(frozen=True)
class Wanted:
    """Which benchmarks, on which data (None: the Hub), on how many items of each (None: all that the paper takes).

    run_code: whether programs that the model writes may be run. expected: a model of the paper to compare with.
    """

    names: tuple[str, ...]
    data: Path | None = None
    limit: int | None = None
    run_code: bool = False
    expected: str | None = None

    def __post_init__(self):
        unknown = [name for name in self.names if name not in PAPERS]
        if unknown:
            raise InputError(f"{unknown[0]}: not a benchmark of this suite; it has {', '.join(PAPERS)}")
        if self.limit is not None and self.limit < 1:
            raise InputError(f"limit is {self.limit}: ask at least 1 item of each benchmark")
        if self.expected is not None:
            paper.expected(self.expected)


def run(responder: Responder, clip: Clip, wanted: Wanted, model: Row, out: Path) -> Row:
    """The scores, `{"model": …, "benchmarks": {name: …}}`; also what an earlier call in the same folder made.

    All data is read before the model is asked anything. Raises `DataError` and `InputError`, and `RunError` where the
    folder holds the answers of another model or of other settings.
    """
    benchmarks = [PAPERS[name] for name in wanted.names if wanted.run_code or not PAPERS[name].needs_code]
    left_out = [name for name in wanted.names if PAPERS[name] not in benchmarks]
    if left_out:
        progress.say(f"left out: {', '.join(left_out)}: it runs what the model writes; ask for it with --run-code")
    if any(benchmark.needs_code for benchmark in benchmarks):
        sandbox.require()
    data = {each.name: _cut(each.read(Origin(wanted.data)), wanted.limit) for each in benchmarks}
    settle(out, {"model": model, "limit": wanted.limit, "benchmarks": _settings(benchmarks)})
    kept = Kept(responder, out / "responses.jsonl")
    try:
        for benchmark in benchmarks:
            kept.name = benchmark.name
            items = benchmark.run(kept, clip, data[benchmark.name])
            write_jsonl(out / f"{benchmark.name}.jsonl", [item.as_row() for item in items])
            record(out, model, {benchmark.name: _row(benchmark, items, wanted)})
    finally:
        kept.close()
    return scores(out) if benchmarks else {"model": model, "benchmarks": {}}


def settle(out: Path, settings: Row) -> None:
    """Keep the settings of a folder, or check that it has the same. Raises `RunError`."""
    path = out / "settings.json"
    settings = json.loads(json.dumps(masked(settings)))
    if path.exists():
        before = _read(path)
        known = {**before.get("benchmarks", {}), **settings["benchmarks"]}
        for name in ("model", "limit"):
            if before.get(name) != settings[name]:
                raise RunError(
                    f"{out}: holds an evaluation with {name} {json.dumps(before.get(name))}, not "
                    f"{json.dumps(settings[name])}; choose another folder with --out"
                )
        settings = {**settings, "benchmarks": known}
    elif out.exists() and (not out.is_dir() or any(not path.name.startswith(".") for path in out.iterdir())):
        raise RunError(f"{out}: something else than an evaluation is there; choose another folder with --out")
    write_json(path, settings)


def record(out: Path, model: Row, found: dict[str, Row]) -> None:
    """Add scores to those of the folder."""
    before = scores(out).get("benchmarks", {}) if (out / "scores.json").exists() else {}
    rows = {**before, **found}
    results = [result for name, row in rows.items() for result in _results(name, row)]
    write_json(out / "scores.json", {"model": model, "benchmarks": rows, "results": results})


def _results(name: str, row: Row) -> list[Row]:
    """A benchmark's figures as a model card shows them."""
    if "lm_eval" in row:
        found = row["lm_eval"]
        return [
            {
                "name": f"{name}, {metric}",
                "dataset": name,
                "metric": metric,
                "value": value["score"],
                "n": found["n"] or 0,
            }
            | {bound: value[bound] for bound in ("low", "high") if bound in value}
            for metric, value in found["metrics"].items()
        ]
    shown = {"name": row["title"], "dataset": row["title"].partition(",")[0], "metric": row["metric"], "n": row["n"]}
    limit = (row.get("settings") or {}).get("limit")
    notes = [row["note"]] if "note" in row else []
    notes += [f"the first {limit} of each part"] if limit else []
    return [{**shown, "value": row["score"], "low": row["low"], "high": row["high"], "note": "; ".join(notes)}]


def scores(out: Path) -> Row:
    return _read(out / "scores.json")


def _read(path: Path) -> Row:
    found = documents.read_json(path, RunError, _ELSEWHERE)
    if not isinstance(found, dict) or not isinstance(found.get("benchmarks", {}), dict):
        raise RunError(f"{path}: not an evaluation's; {_ELSEWHERE}")
    return found


def _row(benchmark: Benchmark, items: Sequence[task.Graded], wanted: Wanted) -> Row:
    interval, groups = task.score(items, benchmark.macro)
    row: Row = {
        "title": benchmark.title,
        "metric": benchmark.metric,
        "score": interval.mean,
        "low": interval.low,
        "high": interval.high,
        "n": len(items),
        "settings": {**benchmark.settings, **({} if wanted.limit is None else {"limit": wanted.limit})},
    }
    if len(groups) > 1:
        row["groups"] = groups
    if wanted.expected is not None:
        row["paper"] = {"model": wanted.expected, "score": paper.expected(wanted.expected)[benchmark.name]}
    return row


def _settings(benchmarks: Sequence[Benchmark]) -> Row:
    return {benchmark.name: benchmark.settings for benchmark in benchmarks}


def _cut(data: Any, limit: int | None) -> Any:
    """The data with the first `limit` rows, of each group where there are groups."""
    if limit is None:
        return data
    if isinstance(data, list):
        return _first_of_each(data, limit)
    if "rows" in data:
        return {**data, "rows": _first_of_each(data["rows"], limit)}
    return {name: {**each, "examples": each["examples"][:limit]} for name, each in data.items()}


def _first_of_each(rows: list[Row], limit: int) -> list[Row]:
    seen: dict[Any, int] = {}
    kept = []
    for row in rows:
        group = row.get("subject", row.get("language"))
        seen[group] = seen.get(group, 0) + 1
        if seen[group] <= limit:
            kept.append(row)
    return kept
