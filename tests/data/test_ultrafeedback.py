"""Laws: UltraFeedback's raw rows give the pairs of each policy; a score is repaired only if that is asked for."""

import json
from collections.abc import Sequence
from typing import Any

import pytest

from bactrian.data.records import Dropped, Noted, Preference
from bactrian.data.sources import ultrafeedback
from bactrian.data.sources.kinds import UltraFeedback
from bactrian.errors import DataError

ASPECTS = ("instruction_following", "honesty", "truthfulness", "helpfulness")


def row(scores: Sequence[tuple[object, Sequence[object]]], source: str = "flan") -> dict[str, Any]:
    """A row of the published layout: an answer for each overall score and its aspects' ratings."""
    completions = [
        {
            "model": f"model-{index}",
            "principle": "helpfulness",
            "custom_system_prompt": "Be of use.",
            "response": f"answer {index}",
            "annotations": {
                aspect: {"Rating": rating, "Rationale": "Because.", "Type": ["1"]}
                for aspect, rating in zip(ASPECTS, ratings, strict=True)
            },
            "critique": "Good.",
            "fine-grained_score": 0.0,
            "overall_score": overall,
        }
        for index, (overall, ratings) in enumerate(scores)
    ]
    return {
        "source": source,
        "instruction": "Name a harbour.",
        "models": [completion["model"] for completion in completions],
        "completions": completions,
        "correct_answers": ["None"],
        "incorrect_answers": ["None"],
    }


FOUR = row([(7.0, "3333"), (9.0, "2222"), ("8", "5544"), (3.5, ("4", "N/A", "4", "N/A"))])


def parse(found: dict[str, Any], **settings: object) -> list:
    section = {"name": "uf", "path": "uf.jsonl", "format": "ultrafeedback", **settings}
    return list(ultrafeedback.parse(UltraFeedback.model_validate_json(json.dumps(section)), found, "uf.jsonl:1"))


def answers(records: list) -> list:
    """The answers of each record, by number, best first; of what is no record its name."""
    return [
        tuple(int(branch[-1].content[-1]) for branch in record.branches)
        if isinstance(record, Preference)
        else record[0]
        for record in records
    ]


def test_a_pair_is_prompt_and_answers_with_their_scores():
    [pair] = parse(FOUR, policy="best_worst")
    assert [[(turn.role, turn.content) for turn in branch] for branch in pair.branches] == [
        [("user", "Name a harbour."), ("assistant", "answer 1")],
        [("user", "Name a harbour."), ("assistant", "answer 3")],
    ]
    assert pair.scores == (9.0, 3.5)
    assert (pair.where, pair.dataset) == ("uf.jsonl:1", "uf.flan")


def test_policies():
    assert answers(parse(FOUR, policy="best_worst", score="mean_of_aspects")) == [(2, 1)]
    assert answers(parse(FOUR, policy="ranking")) == [(1, 2, 0, 3)]
    assert answers(parse(FOUR, policy="ranking", score="mean_of_aspects")) == [(2, 3, 0, 1)]
    assert answers(parse(FOUR, policy="all_pairs", min_margin=2)) == [
        *("small_margin", (1, 0), (1, 3)),
        *("small_margin", (2, 3), (0, 3)),
    ]
    best = {answers(parse(FOUR, policy="huggingfaceh4", seed=seed))[0] for seed in range(60)}
    assert best == {(1, 0), (1, 2), (1, 3)}
    cleaned = {answers(parse(FOUR, policy="cleaned", seed=seed))[0] for seed in range(60)}
    assert cleaned == {(2, 0), (2, 1), (2, 3)}


def test_ties():
    even = row([(8.0, "4444"), (8.0, "4444"), (8.0, "4444")])
    assert answers(parse(even, policy="cleaned")) == ["tie"]
    assert answers(parse(even, policy="best_worst")) == ["tie"]
    assert answers(parse(even, policy="huggingfaceh4")) in ([(0, 1)], [(0, 2)])  # as it was published


TENS = row([(10, "2222"), (10.0, "4433"), (10, "5554"), (6, "3333")])  # wrong, doubtful, right


def test_tens_as_published():
    assert answers(parse(TENS, policy="best_worst")) == ["ten_wrong_as_published", "ten_doubtful_as_published", (0, 3)]


def test_tens_repaired():
    found = parse(TENS, policy="ranking", tens="repaired")
    assert answers(found) == ["ten_wrong_repaired", "ten_doubtful_repaired", "answer_without_score", (2, 3, 0)]
    assert found[-1].scores == (10, 6, 1)
    assert all(isinstance(note, Noted) for note in found[:3])


def test_what_has_no_score_is_not_compared():
    bare = row([(None, "3333"), (5, ("N/A",) * 4), (7, "4444")])
    assert answers(parse(bare, policy="best_worst")) == ["answer_without_score", (2, 1)]
    assert answers(parse(bare, policy="cleaned")) == ["answer_without_score", (2, 0)]
    assert answers(parse(row([(5, "3333")]), policy="best_worst")) == ["too_few_answers"]
    assert answers(parse(row([]), policy="cleaned")) == ["too_few_answers"]


def test_prompts_of_some_sources_are_left_out():
    truthful = row([(5, "3333"), (7, "4444")], "truthful_qa")
    assert parse(truthful, policy="cleaned") == [Dropped("left_out", "uf.jsonl:1")]
    assert answers(parse(truthful, policy="cleaned", leave_out=[])) == [(1, 0)]
    assert answers(parse(truthful, policy="huggingfaceh4")) == [(1, 0)]
    assert answers(parse(truthful, policy="huggingfaceh4", leave_out=["truthful_qa", "flan"])) == ["left_out"]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"instruction": None}, "no 'instruction'"),
        ({"completions": None}, "no 'completions'"),
        ({"completions": "none"}, "completions is text, not a list"),
        ({"completions": ["x"]}, r"completions\[0\] is text, not an object"),
        ({"completions": [{"overall_score": 3}]}, r"completions\[0\].response is null, not text"),
        ({"completions": [{"response": "a", "overall_score": "high"}]}, r"overall_score is 'high', not a number"),
        ({"completions": [{"response": "a", "overall_score": float("nan")}]}, r"overall_score is nan, not a number"),
        ({"completions": [{"response": "a", "annotations": []}]}, None),
        ({"completions": [{"response": "a", "annotations": "x"}]}, "annotations is text, not an object"),
        (
            {"completions": [{"response": "a", "annotations": {"honesty": {"Rating": "?"}}}]},
            r"completions\[0\].annotations.honesty.Rating is '\?', not a number",
        ),
    ],
)
def test_a_row_that_does_not_fit_is_named(change: dict, says: str | None):
    broken = {**FOUR, **change}
    if says is None:
        assert answers(parse(broken, policy="best_worst")) == ["answer_without_score", "too_few_answers"]
        return
    with pytest.raises(DataError, match=f"^uf.jsonl:1: .*{says}"):
        parse(broken, policy="best_worst")


def test_a_score_of_its_own_is_not_to_be_changed():
    with pytest.raises(ValueError, match="policy cleaned has a score of its own"):
        parse(FOUR, policy="cleaned", score="overall")
