"""Averages as FastChat has them: a -1 is left out and counted, repeats count, ties are disagreements."""

from pathlib import Path
from typing import Any

import pytest

from bactrian.errors import DataError
from bactrian.evaluate import mt_bench_scores as scores
from bactrian.evaluate import published

Rows = list[tuple[str, dict[str, Any]]]


def rated(*given: tuple[int, int, float | None], model: str = "ada") -> Rows:
    return [
        (f"f:{n}", {"question_id": q, "turn": t, "model": model, "score": s, "judge": ["j", "p"]})
        for n, (q, t, s) in enumerate(given)
    ]


def games(*winners: tuple[str, str]) -> Rows:
    named = {"model_1": "ada", "model_2": "bob"}
    return [
        (f"f:{n}", {"question_id": n, "turn": 1, **named, "g1_winner": a, "g2_winner": b})
        for n, (a, b) in enumerate(winners)
    ]


def test_a_failed_judgment_is_left_out_of_every_mean():
    found = scores.single(rated((81, 1, 8), (81, 2, -1), (111, 1, 2), (111, 2, 4), (999, 1, None)))["ada"]
    assert (found["average"], found["turn1"], found["turn2"]) == ((8 + 2 + 4) / 3, 5.0, 4.0)
    assert found["categories"] == {"writing": 8.0, "math": 3.0}
    assert (found["n"], found["failed"]) == (3, 2)


def test_the_average_is_of_judgments_not_of_turns():
    found = scores.single(rated((81, 1, 10), (82, 1, 10), (81, 2, 1), (82, 2, -1)))["ada"]
    assert found["average"] == 7.0 and (found["turn1"] + found["turn2"]) / 2 == 5.5


def test_nothing_but_failures():
    found = scores.single(rated((81, 1, -1), (81, 2, -1)))["ada"]
    assert (found["average"], found["n"], found["failed"], found["interval"]) == (None, 0, 2, None)


def test_categories_of_ones_own_questions():
    assert scores.single(rated((7, 1, 3)), {7: "poems"})["ada"]["categories"] == {"poems": 3.0}
    assert scores.single(rated((7, 1, 3)))["ada"]["categories"] == {"unknown": 3.0}


def test_models_are_compared_on_the_same_questions():
    same = [(81 + n, 1, 5) for n in range(20)]
    better = [(81 + n, 1, 6) for n in range(20)]
    found = scores.single([*rated(*same), *rated(*better, model="bob")])
    assert found["bob"]["versus"]["ada"]["difference"] == 1.0
    assert found["ada"]["versus"]["bob"]["difference"] == -1.0
    assert not found["ada"]["versus"]["bob"]["within_noise"]
    assert found["ada"]["versus"]["bob"]["mcnemar"] < 0.001


def test_repeats_count_as_in_fastchat_and_are_told():
    rows = [*rated((81, 1, 2)), *rated((81, 1, 2), (82, 1, 8))]
    assert scores.single(rows)["ada"]["average"] == 4.0
    assert scores.repeated(rows) == 1


def test_numbers_as_other_writers_have_them():
    rows: Rows = [
        (f"f:{n}", {"question_id": 81.0, "turn": float(n), "model": "a", "score": score})
        for n, score in ((1, 7.0), (2, float("nan")))
    ]
    found = scores.single(rows)["a"]
    assert (found["average"], found["turn2"], found["n"], found["failed"]) == (7.0, None, 1, 1)


def test_pairs():
    rows = games(
        ("model_1", "model_1"), ("model_2", "model_2"), ("model_1", "model_2"), ("tie", "model_1"), ("error", "model_1")
    )
    found = scores.pairwise(rows)
    expected = {"win": 1, "loss": 1, "tie": 2, "win_rate": 0.25, "win_rate_adjusted": 0.5, "n": 4, "failed": 1}
    assert {key: found["ada"][key] for key in expected} == expected
    assert list(scores.pairwise(rows, "ada")) == ["bob"]
    with pytest.raises(DataError, match="no pair with 'eve'"):
        scores.pairwise(rows, "eve")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"question_id": 1}, "not an MT-Bench judgment"),
        ({"question_id": 1, "turn": 1, "model": "a", "score": "5"}, "should be a number"),
        ({"question_id": "1", "turn": 1, "model": "a", "score": 5}, "whole number"),
        ({"question_id": 1, "turn": float("inf"), "model": "a", "score": 5}, "whole number"),
    ],
)
def test_wrong_rows_are_named(row: dict[str, Any], message: str):
    with pytest.raises(DataError, match=rf"f:3: .*{message}"):
        rows: Rows = [("f:3", row)]
        scores.is_pairwise(rows)
        scores.single(rows)


def test_the_published_scores(shared_data: Path):
    rows = published.rows(shared_data / "mt_bench" / "judged_vicuna7b_gpt-4_single.jsonl")
    assert not scores.is_pairwise(rows) and not scores.disagreements(rows) and not scores.repeated(rows)
    found = scores.single(rows)
    averages = {model.partition("-1-temperature")[0]: each["average"] for model, each in found.items()}
    assert averages == {
        "vicuna-7b-v1.3": 6.103125,
        "vicuna-7b-v1.3-greedy": 5.878125,
        "medusa-vicuna-7b-v1.3": 5.9875,
    }
    assert {each["n"] for each in found.values()} == {160}
    assert found["vicuna-7b-v1.3"]["versus"]["vicuna-7b-v1.3-greedy"]["within_noise"]


def test_the_published_scores_are_what_pandas_says(shared_data: Path):
    import pandas

    path = shared_data / "mt_bench" / "judged_vicuna7b_gpt-4_single.jsonl"
    table = pandas.read_json(path, lines=True)
    table.loc[table.index[::17], "score"] = -1
    kept = table[table["score"] != -1]
    rows = [(str(n), row) for n, row in enumerate(table.to_dict("records"))]
    found = scores.single(rows)
    for model in set(kept["model"]):
        mean = kept[kept["model"] == model]["score"].mean()
        assert found[str(model)]["average"] == pytest.approx(mean, abs=1e-12)
        second = kept[(kept["model"] == model) & (kept["turn"] == 2)]["score"].mean()
        assert found[str(model)]["turn2"] == pytest.approx(second, abs=1e-12)
        assert found[str(model)]["failed"] == (table["model"] == model).sum() - (kept["model"] == model).sum() > 0


def test_the_published_pairs(shared_data: Path):
    rows = published.rows(shared_data / "mt_bench" / "judged_phi3_vs_phi3dpo_gpt-4_pair.jsonl")
    assert scores.is_pairwise(rows)
    found = scores.pairwise(rows)["phi-3-dpo"]
    assert (found["win"], found["loss"], found["tie"], found["failed"]) == (20, 18, 35, 2)
    assert found["interval"]["low"] < 0.5 < found["interval"]["high"]
