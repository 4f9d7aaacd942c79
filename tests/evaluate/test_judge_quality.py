"""A judge's quality: a perfect judge, one that takes the first, one that takes the longer; and LLMBar's real files."""

import json
from pathlib import Path

import pytest
import question_set

from bactrian.errors import DataError
from bactrian.evaluate import judge_quality as quality
from bactrian.evaluate.calls import Call, Failure, Reply
from bactrian.evaluate.judge import Reward
from bactrian.evaluate.judge_quality import Item
from bactrian.evaluate.mt_bench import Template

PROMPT = Template("pair-v2", "pairwise", "Say [[A]], [[B]] or [[C]].", question_set.PAIR, "[[A]]")
# The better output is longer in every second item, and stands first in half.
ITEMS = [
    Item(f"q{n}", ("good" + "!" * (n % 2 * 9), "wrong!!") if n % 4 < 2 else ("wrong!!", "good" + "!" * (n % 2 * 9)),
         1 if n % 4 < 2 else 2, "odd" if n % 2 else "even")
    for n in range(40)
]  # fmt: skip


class Told:
    name = "told"

    def __init__(self, say):
        self.say = say

    def ask(self, calls: list[Call], usable) -> list:
        return [self.say(call) for call in calls]


def sides(call: Call) -> tuple[str, str]:
    text = call.messages[-1].content
    first, _, second = text.partition("\nA: ")[2].partition("\nB: ")
    return first, second


def choose(key) -> Told:
    return Told(lambda call: Reply("[[A]]" if key(sides(call)[0]) > key(sides(call)[1]) else "[[B]]"))


def measure(judge, **more) -> dict:
    return quality.measure(ITEMS, quality.judge(ITEMS, PROMPT, judge, **more))


def test_a_perfect_judge():
    found = measure(choose(lambda text: text.startswith("good")))
    assert found["agreement"]["mean"] == 1.0
    assert found["position"] == {"first_chosen": 0.5, "p_value": 1.0, "consistent": 1.0}
    assert found["length"]["longer_chosen"] == found["length"]["longer_preferred_by_people"] == 0.5
    assert found["sets"]["odd"]["length"]["longer_preferred_by_people"] == 1.0
    assert (found["items"], found["judgments"], found["failed"]) == (40, 80, 0)


def test_a_judge_that_takes_the_first():
    found = measure(Told(lambda call: Reply("[[A]]")))
    assert found["agreement"]["mean"] == 0.5
    assert found["position"]["first_chosen"] == 1.0 and found["position"]["consistent"] == 0.0
    assert found["position"]["p_value"] < 1e-20


def test_a_judge_that_takes_the_longer():
    found = measure(choose(len))
    assert found["length"] == {
        "longer_chosen": 1.0,
        "longer_preferred_by_people": 0.5,
        "agreement_where_longer_is_better": 1.0,
        "agreement_where_shorter_is_better": 0.0,
    }
    rewarded = measure(Reward("length", lambda talks: [len(talk[-1]["content"]) for talk in talks]))
    assert rewarded["length"] == found["length"] and rewarded["position"]["consistent"] == 1.0


def test_ties_are_half_and_failures_are_counted():
    found = measure(Told(lambda call: Reply("[[C]]") if "q1" in call.messages[-1].content else Failure("gone")))
    assert found["agreement"]["mean"] == 0.5 and found["failed"] == 2 * 29
    assert found["position"]["first_chosen"] is None and found["position"]["consistent"] == 1.0


def test_self_consistency_is_over_samples():
    found = measure(Told(lambda call: Reply("[[A]]" if call.sample < 2 else "[[B]]")), samples=3)
    assert found["self_consistency"] == pytest.approx(1 / 3)
    assert measure(Told(lambda call: Reply("[[A]]")))["self_consistency"] is None
    calls = quality.calls(ITEMS[:1], PROMPT, 3, 0.7)
    assert len({call.key("m") for call in calls}) == 6 and {call.temperature for call in calls} == {0.7}
    assert quality.calls(ITEMS[:1], PROMPT, 1, 0.7)[0].temperature == 0.0


@pytest.mark.parametrize("version", [1, 2])
def test_with_alpaca_evals_prompts(version):
    prompt = (question_set.RANKING if version == 1 else question_set.CHOOSING, version)
    calls = quality.calls(ITEMS[:1], prompt, 1, 0.0)
    assert "good\n" in calls[0].messages[-1].content.split("wrong")[0], "first as it stands, then switched"
    assert "good" not in calls[1].messages[-1].content.split("wrong")[0].split("\n", 1)[1]
    told = Told(lambda call: Reply("[{'model': 'model_1', 'rank': 1}]", logprobs={"m": -0.1, "M": -3.0}))
    found = quality.measure(ITEMS, quality.judge(ITEMS, prompt, told))
    assert found["position"]["first_chosen"] == 1.0


def test_wrong_rows_are_named(tmp_path: Path):
    row = {"input": "a", "output_1": "b", "output_2": "c", "label": 3}
    (tmp_path / "d.json").write_text(json.dumps([row]), encoding="utf-8")
    with pytest.raises(DataError, match=r"`label` is 3"):
        quality.read([tmp_path / "d.json"])


def test_the_real_sets(shared_data: Path):
    items = quality.read(sorted((shared_data / "llmbar").glob("LLMBar*.json")))
    assert len(items) == 419
    longer = Reward("longer", lambda talks: [len(talk[-1]["content"]) for talk in talks])
    found = quality.measure(items, quality.judge(items, PROMPT, longer))
    # The adversarial sets were made so that what looks better is worse.
    assert found["sets"]["LLMBar__Adversarial__Neighbor__dataset"]["agreement"]["mean"] < 0.4
    assert found["length"]["longer_chosen"] == 1.0 > found["length"]["longer_preferred_by_people"]
