"""Scores as a person reads them in a terminal."""

from typing import Any

from rich.table import Table

from bactrian import progress

Row = dict[str, Any]

_SIDE_BY_SIDE = 3  # models


def show(table: Table) -> None:
    """Print a table."""
    # Where it goes to a file, no cell needs to be broken.
    progress.table(140).print(table)


def _number(value: float | None, digits: int = 2) -> str:
    return "–" if value is None else f"{value:.{digits}f}"


def _range(interval: Row | None, digits: int = 2, scale: float = 1.0) -> str:
    if interval is None:
        return "–"
    return f"{scale * interval['low']:.{digits}f} to {scale * interval['high']:.{digits}f}"


def mt_bench(scores: dict[str, Row]) -> None:
    """A row per model, then what the differences between them are worth."""
    if any("win" in each for each in scores.values()):
        _pairwise(scores)
        return
    ranked = dict(sorted(scores.items(), key=lambda item: -(item[1]["average"] or 0)))
    categories = list(dict.fromkeys(name for each in ranked.values() for name in each["categories"]))
    rows: dict[str, list[str]] = {
        "average": [_number(each["average"], 4) for each in ranked.values()],
        "95 %": [_range(each["interval"]) for each in ranked.values()],
        "turn 1": [_number(each["turn1"], 4) for each in ranked.values()],
        "turn 2": [_number(each["turn2"], 4) for each in ranked.values()],
    }
    for name in categories:
        rows[name] = [_number(each["categories"].get(name)) for each in ranked.values()]
    rows["judgments"] = [str(each["n"]) for each in ranked.values()]
    rows["failed"] = [str(each["failed"]) for each in ranked.values()]
    # Many models do not fit side by side: then a row each, without the categories.
    if len(ranked) > _SIDE_BY_SIDE:
        _many(list(ranked), {name: cells for name, cells in rows.items() if name not in categories})
    else:
        table = Table(title="MT-Bench", title_justify="left")
        table.add_column("")
        for model in ranked:
            table.add_column(model, justify="right", overflow="fold")
        for name, cells in rows.items():
            table.add_row(name, *cells)
        show(table)
    models = list(scores)
    for place, first in enumerate(models):
        for second in models[place + 1 :]:
            found = scores[first].get("versus", {}).get(second)
            if found:
                _compare(first, second, found)


def compared(found: dict[str, Row], first: str, second: str) -> None:
    """A row per benchmark."""
    table = Table(title=f"{first} less {second}", title_justify="left")
    for name in ("benchmark", "difference", "95 %", "p", "McNemar", "better", "worse", "items", ""):
        table.add_column(name, justify="left" if name in ("benchmark", "") else "right")
    for benchmark, row in found.items():
        chance = [_number(row["p_value"], 4), _number(row["mcnemar"], 4)]
        counts = [str(row["better"]), str(row["worse"]), str(row["n"])]
        alone = row["only_first"] + row["only_second"]
        notes = (["within noise"] if row["within_noise"] else []) + ([f"{alone} of one alone"] if alone else [])
        table.add_row(benchmark, f"{row['difference']:+.3f}", _range(row, 3), *chance, *counts, "; ".join(notes))
    show(table)


def _many(models: list[str], rows: dict[str, list[str]]) -> None:
    table = Table(title="MT-Bench", title_justify="left")
    table.add_column("model", overflow="fold")
    for name in rows:
        table.add_column(name, justify="right")
    for model, *cells in zip(models, *rows.values(), strict=True):
        table.add_row(model, *cells)
    show(table)


def _compare(first: str, second: str, found: Row) -> None:
    gap = f"{first} less {second}: {found['difference']:+.3f} ({_range(found, 3)}), p = {found['p_value']:.3f}"
    noise = "; within noise: these judgments do not say which is better" if found["within_noise"] else ""
    progress.say(f"{gap}, better on {found['better']} items and worse on {found['worse']}{noise}")


def _pairwise(scores: dict[str, Row]) -> None:
    table = Table(title="MT-Bench, pairs", title_justify="left")
    table.add_column("model", overflow="fold")
    for name in ("win", "loss", "tie", "win rate", "ties as half", "95 %", "n", "failed"):
        table.add_column(name, justify="right")
    for model, each in sorted(scores.items(), key=lambda item: -(item[1]["win_rate_adjusted"] or 0)):
        counts = [str(each[name]) for name in ("win", "loss", "tie")]
        rates = [_number(each["win_rate"], 4), _number(each["win_rate_adjusted"], 4), _range(each["interval"], 3)]
        table.add_row(model, *counts, *rates, str(each["n"]), str(each["failed"]))
        if each["interval"] and each["interval"]["low"] <= 0.5 <= each["interval"]["high"]:
            progress.say(f"{model}: within noise of winning half of the pairs (sign test p = {each['sign_test']:.3f})")
    show(table)


def alpaca_eval(scores: Row, title: str) -> None:
    """The figures of one model."""
    table = Table(title=title, title_justify="left", show_header=False)
    error, counts = _number(scores["standard_error"], 4), (scores["n_wins"], scores["n_wins_base"], scores["n_draws"])
    rows = {
        "win rate": f"{scores['win_rate']:.4f} ± {error} (95 % {_range(scores['interval'])})",
        "length-controlled": _number(scores["length_controlled_winrate"], 4),
        "discrete win rate": _number(scores["discrete_win_rate"], 4),
        "won / lost / drawn": f"{' / '.join(map(str, counts))} of {scores['n_total']}",
        "failed": str(scores["failed"]),
        "mean length (characters)": str(scores["avg_length"]),
    }
    for name, value in rows.items():
        table.add_row(name, value)
    show(table)
    if scores["length_controlled_winrate"] is None:
        progress.say("no length-controlled win rate: it needs --difficulty and --gamed, or a --data folder with both")
    else:
        progress.say(f"length control: {scores['lc_basis']}")
    if "lc_aligned" in scores:
        progress.say(
            f"warning: rows are missing, and the published rule then gives later items their neighbours' difficulty; "
            f"with each item's own it is {scores['lc_aligned']:.4f}"
        )
    interval = scores["interval"]
    if interval and interval["low"] <= 50 <= interval["high"]:
        progress.say(f"within noise of the reference model (sign test p = {scores['sign_test']:.3f})")


def controlled(scores: dict[str, Row]) -> None:
    """Length-controlled win rates of many models."""
    table = Table(title="Length-controlled win rates from published weights", title_justify="left")
    for name in ("model", "win rate", "standard error"):
        table.add_column(name, justify="left" if name == "model" else "right")
    for model, each in sorted(scores.items(), key=lambda item: -item[1]["length_controlled_winrate"]):
        table.add_row(model, _number(each["length_controlled_winrate"], 4), _number(each["lc_standard_error"], 4))
    show(table)


def judge_quality(scores: Row, judge: str) -> None:
    """A judge's agreement and habits, by set and over all."""
    table = Table(title=f"Judge {judge}", title_justify="left")
    table.add_column("set", overflow="fold")
    heads = ("agreement", "95 %", "first chosen", "orders agree", "longer chosen", "longer is better")
    for name in (*heads, "if longer", "if shorter", "self-consistent", "judgments", "failed"):
        table.add_column(name, justify="right")
    for name, each in {**scores.get("sets", {}), "all": scores}.items():
        agreement, position, length = each["agreement"] or {}, each["position"], each["length"]
        cells = [agreement.get("mean"), None, position["first_chosen"], position["consistent"], length["longer_chosen"]]
        cells += [length["longer_preferred_by_people"], length["agreement_where_longer_is_better"]]
        cells += [length["agreement_where_shorter_is_better"], each["self_consistency"]]
        shown = [_number(cell, 3) for cell in cells]
        shown[1] = _range(each["agreement"], 3)
        table.add_row(name, *shown, str(each["judgments"]), str(each["failed"]))
    show(table)
