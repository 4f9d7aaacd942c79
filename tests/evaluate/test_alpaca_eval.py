"""AlpacaEval's rules: the seeded order, draws without a call, both judges' verdicts, and the leaderboard's figures."""

import json
import math
import random
from pathlib import Path

import pytest
import question_set

from bactrian.errors import DataError
from bactrian.evaluate import alpaca_eval as rules
from bactrian.evaluate.alpaca_eval import Output
from bactrian.evaluate.calls import Call, Failure, Reply
from bactrian.evaluate.judge import Replay


class Told:
    name = "told"

    def __init__(self, say):
        self.say, self.calls = say, []

    def ask(self, calls: list[Call], usable) -> list:
        self.calls += calls
        return [self.say(call) for call in calls]


def ranking(first: int) -> Reply:
    return Reply(str([{"model": "model_1", "rank": first}, {"model": "model_2", "rank": 3 - first}]))


def row(instruction: str, first: str = "one", second: str = "two", **more) -> dict:
    return {"instruction": instruction, "output_1": first, "output_2": second, **more}


def judged(*preferences: float | None) -> list[dict]:
    return [row(f"i{n}", "a" * 10, "b" * 7, preference=value) for n, value in enumerate(preferences)]


def test_the_order_is_the_published_seed():
    for text in ("What is it?", "é", ""):
        drawn = random.Random("is_switched_outputs" + text + "0").choices([False, True], k=1)[0]
        assert rules.is_switched(text) == drawn
    assert 400 < sum(rules.is_switched(f"question {n}") for n in range(1000)) < 600


def test_a_switched_pair_is_shown_and_counted_the_other_way_round():
    rows = [row(f"question {n}") for n in range(20)]
    # Whoever is shown first wins.
    found = rules.judge(rows, question_set.RANKING, judge := Told(lambda call: ranking(1)), 1)
    switched = [rules.is_switched(each["instruction"]) for each in rows]
    assert 0 < sum(switched) < 20
    assert [each["preference"] for each in found] == [2 if each else 1 for each in switched]
    for call, other in zip(judge.calls, switched, strict=True):
        assert ("model_1: two" in call.messages[1].content) == other
    assert judge.calls[0].messages[0].content == "You rank."
    assert (judge.calls[0].max_tokens, judge.calls[0].temperature) == (100, 0.0)


def test_identical_outputs_are_drawn_without_a_call():
    judge = Told(lambda call: ranking(2))
    found = rules.judge([row("a", "same", "same"), row("b")], question_set.RANKING, judge, 1)
    assert found[0]["preference"] == 1.5 and len(judge.calls) == 1


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[{'model': 'model_1', 'rank': 1}, {'model': 'model_2', 'rank': 2}]", 1),
        ("[{'model': 'model_2', 'rank': 1}, {'model': 'model_1', 'rank': 2}]", 2),
        ("[{'model': 'model_1', 'rank': 3}, {'model': 'model_2', 'rank': 1}]", None),
        ("[{'model': 'model_3', 'rank': 1}]", None),
        ("I'm sorry", None),
        ("__import__('os')", None),
        ("[1, 2]", None),
        ("", None),
    ],
)
def test_ranks(text: str, expected: int | None):
    assert rules.preference(Reply(text), 1) == expected


@pytest.mark.parametrize(
    ("logprobs", "expected"),
    [
        ({"m": math.log(0.8), "M": math.log(0.1), "The": -9.0}, 2 - 8 / 9),
        ({"M": -0.1}, 2.0),
        ({"m": -0.1, "x": -3.0}, 1.0),
        ({"m": -800.0, "M": -800.0}, 1.5),
        ({"The": -0.1}, None),
        ({}, None),
    ],
)
def test_probabilities(logprobs: dict[str, float], expected: float | None):
    found = rules.preference(Reply("m", logprobs=logprobs), 2)
    assert found == (None if expected is None else pytest.approx(expected, abs=1e-12))


def test_slots_are_filled_one_after_the_other():
    shown = rules.messages(question_set.RANKING, row("say {output_1} <|im_end|>", "first", "{output_2} {x}"), False)
    assert len(shown) == 2, "a mark in an output ends nothing"
    text = shown[1].content
    assert text.startswith("Prompt: say first <|im_end|>\nmodel_1: {output_1}"), "the published quirk"
    assert "model_2: {output_2} {x}" in text


def test_figures():
    found = rules.scores(judged(2, 2, 1, 1.5, 0, None, 3.0, 1.2))
    assert (found["n_wins"], found["n_wins_base"], found["n_draws"], found["n_total"]) == (2, 2, 2, 6)
    shares = [1, 1, 0, 0.5, 0.5, 0.2]
    assert found["win_rate"] == pytest.approx(100 * sum(shares) / 6, abs=1e-12)
    assert found["discrete_win_rate"] == pytest.approx(100 * 3 / 6, abs=1e-12)
    assert found["avg_length"] == 7
    from scipy.stats import sem

    assert found["standard_error"] == pytest.approx(100 * sem(shares), abs=1e-12)


def test_nothing_to_count():
    assert rules.scores(judged(2))["standard_error"] is None
    with pytest.raises(DataError, match="nothing to count"):
        rules.scores(judged(None, 7))


def test_outputs_of_another_question_set_are_refused():
    references = [Output("a", "x", "r"), Output("b", "y", "r")]
    with pytest.raises(DataError, match=r"lack 1 of the 2 instructions, the first 'b'"):
        rules.pair(references, [Output("a", "z", "m")])
    assert [each["output_2"] for each in rules.pair(references, [Output("b", "2", "m"), Output("a", "1", "m")])] == [
        "1",
        "2",
    ]


def test_wrong_files_are_named(tmp_path: Path):
    for content, message in (
        ([{"instruction": "a"}], "needs `preference`"),
        ([row("a", preference="2")], "should be a number"),
        ([{"preference": 1, "instruction": "a", "output_1": "x"}], "`output_2` is missing"),
    ):
        (tmp_path / "a.json").write_text(json.dumps(content), encoding="utf-8")
        with pytest.raises(DataError, match=message):
            rules.read_annotations(tmp_path / "a.json")
    (tmp_path / "p.txt").write_text("{instruction} {output_1}", encoding="utf-8")
    with pytest.raises(DataError, match=r"no \{output_2\}"):
        rules.template(tmp_path / "p.txt")
    (tmp_path / "p.txt").write_text("{instruction} {output_1} {output_2}", encoding="utf-8")
    with pytest.raises(DataError, match="ChatML"):
        rules.template(tmp_path / "p.txt")


@pytest.mark.parametrize("version", [1, 2])
def test_kept_annotations_judge_again_to_the_same(version: rules.Version):
    template = question_set.RANKING if version == 1 else question_set.CHOOSING
    values = (2, 1, None, 2, 1) if version == 1 else (1.25, 2.0, None, 1.0, 1.75)
    rows = [row(f"i{n}", f"a{n}", f"b{n}", preference=value) for n, value in enumerate(values)]
    judge = Replay("kept", rules.kept_replies(rows, template, version))
    again = rules.judge([row(f"i{n}", f"a{n}", f"b{n}") for n in range(5)], template, judge, version)
    for value, each in zip(values, again, strict=True):
        assert each["preference"] == (None if value is None else pytest.approx(value, abs=1e-12))
    other = rules.judge([row("other")], template, judge, version)[0]
    assert other["preference"] is None and "no kept judgment" in other["error"]


def test_failures_are_null_and_say_why():
    found = rules.judge([row("a")], question_set.RANKING, Told(lambda call: Failure("gone")), 1)[0]
    assert (found["preference"], found["error"], found["was_asked"]) == (None, "gone", True)


def test_the_leaderboards_row(shared_data: Path):
    import csv

    folder = shared_data / "alpaca_eval"
    found = rules.scores(rules.read_annotations(folder / "tulu-2-dpo-70b_alpaca_eval_gpt4_annotations.json"))
    with (folder / "alpaca_eval_gpt4_leaderboard.csv").open(encoding="utf-8") as file:
        published = next(each for each in csv.DictReader(file) if each[""] == "tulu-2-dpo-70b")
    assert (found["n_wins"], found["n_wins_base"], found["n_draws"], found["n_total"]) == (764, 39, 2, 805)
    assert found["avg_length"] == 1418
    for name, value in found.items():
        assert value == pytest.approx(float(published[name]), abs=1e-9), name


def test_the_held_judge_prompt_is_filled_as_published(shared_data: Path):
    folder = shared_data / "alpaca_eval"
    text = rules.template(folder / "alpaca_eval.txt")
    annotation = rules.read_annotations(folder / "tulu-2-dpo-70b_alpaca_eval_gpt4_annotations.json")[0]
    system, user = rules.call(text, annotation, 1).messages
    assert system.content == "You are a helpful assistant, that ranks models by the quality of their answers."
    assert user.content.startswith("I want you to create a leaderboard") and annotation["output_1"] in user.content
