"""Laws: a ranking keeps any number of answers in their order; HuggingFaceH4's pairs are read as they are published."""

import json
from pathlib import Path

import pytest

from bactrian.data import sources
from bactrian.data.records import Preference
from bactrian.errors import DataError
from bactrian.recipe import Layout

ASK = {"role": "user", "content": "Name a harbour."}


def answered(text: str) -> list[dict]:
    return [ASK, {"role": "assistant", "content": text}]


def preference(layout: Layout, row: dict, where: str) -> Preference:
    record = sources.parse(layout, row, where)
    assert isinstance(record, Preference)
    return record


def test_a_ranking():
    row = {"ranked": [answered("a"), answered("b"), answered("c")], "scores": [3, 2.5, 1], "id": "x"}
    record = preference("ranking", row, "r.jsonl:1")
    assert [branch[-1].content for branch in record.branches] == ["a", "b", "c"]
    assert (record.scores, record.id) == ((3.0, 2.5, 1.0), "x")
    del row["scores"]
    assert preference("ranking", row, "r.jsonl:1").scores == ()


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({}, "no 'ranked'"),
        ({"ranked": "a"}, "ranked is not two conversations or more"),
        ({"ranked": [answered("a")]}, r"ranked is not two conversations or more \(1 of them\)"),
        ({"ranked": [answered("a"), [ASK]]}, r"ranked\[1\] does not end in an assistant's turn"),
        ({"ranked": [answered("a"), answered("b")], "scores": [1]}, "scores is not a list of 2 numbers"),
        ({"ranked": [answered("a"), answered("b")], "scores": [1, "x"]}, r"scores\[1\] is 'x', not a number"),
    ],
)
def test_what_is_no_ranking_is_named(row: dict, says: str):
    with pytest.raises(DataError, match=f"^r.jsonl:1: {says}"):
        sources.parse("ranking", row, "r.jsonl:1")


def test_pairs_as_huggingfaceh4_publishes_them(tmp_path: Path):
    """The columns of HuggingFaceH4/ultrafeedback_binarized, from its dataset card at 2a3fb93."""
    row = {
        "prompt": ASK["content"],
        "prompt_id": "f0e37e9f7800261167ce91143f98f511f768847236f133f2d0aed60b444ebe57",
        "chosen": answered("Hamburg."),
        "rejected": answered("Bern."),
        "messages": answered("Hamburg."),
        "score_chosen": 8.0,
        "score_rejected": 3.5,
    }
    record = preference("preference", row, "h4.jsonl:1")
    assert [branch[-1].content for branch in record.branches] == ["Hamburg.", "Bern."]
    assert all(branch[0].content == ASK["content"] and len(branch) == 2 for branch in record.branches)
    assert (record.scores, record.id) == ((8.0, 3.5), row["prompt_id"])
    path = tmp_path / "h4.jsonl"
    path.write_text(json.dumps(row) + "\n", encoding="utf-8")
    assert sources.layout_of(path) == "preference"
