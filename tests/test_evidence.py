"""Rules count what they say, and evidence is kept beside what was there before."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny

from bactrian import assistant, evidence
from bactrian.errors import DataError
from bactrian.evidence import Prompt
from bactrian.recipe import Evaluation, Rule
from bactrian.run import Run

MOON = Prompt("What is the Moon?", {"prompt": "What is the Moon?", "about": ["moon", r"\brock\b"]})


@pytest.mark.parametrize(
    ("rule", "answer", "expected"),
    [
        ({"any_of": ("ahoy", "matey")}, "AHOY there", True),
        ({"any_of": ("ahoy", "matey")}, "hello", False),
        ({"any_of": ("ahoy", "matey"), "at_least": 2}, "ahoy ahoy", False),
        ({"any_of": ("ahoy", "matey"), "at_least": 2}, "ahoy, matey", True),
        ({"any_of": ("ahoy",), "none_of": ("gold",)}, "ahoy, Gold!", False),
        ({"column": "about"}, "a big rock", True),
        ({"column": "about"}, "a rocket", False),
        ({"column": "about", "at_least": 2}, "the moon is a rock", True),
    ],
)
def test_rules(rule: dict[str, Any], answer: str, expected: bool):
    assert evidence.holds(Rule(name="r", **rule), MOON, answer) is expected


def test_preference_is_over_the_base_model():
    base, later = np.array([[-3.0, -2.0], [-5.0, -9.0]]), np.array([[-1.0, -3.0], [-6.0, -9.5]])
    assert evidence.preference(base, None) == {"preference_accuracy": 0.5, "preference_margin": 1.5}
    # The first pair gained 2 and lost 1, the second lost 1 and lost 0.5.
    assert evidence.preference(later, base) == {"preference_accuracy": 0.5, "preference_margin": 1.25}


def test_answers_and_scores_are_kept_by_label(tmp_path: Path):
    run = Run(tmp_path)
    settings = Evaluation(rules=(Rule(name="greets", any_of=("good day",)),))
    prompts = [MOON, Prompt("Hi", {"prompt": "Hi"})]
    assert not evidence.is_recorded(run, "base")
    assert evidence.record_answers(run, "base", settings, prompts, ["a rock", "Good day!"]) == {"greets": 0.5}
    evidence.record_scores(run, "base", {"greets": 0.5}, {"prompts": 2})
    assert evidence.record_answers(run, "sft", settings, prompts, ["Good day!", "Good day!\u2028"]) == {"greets": 1.0}
    assert evidence.is_recorded(run, "base")
    assert not evidence.is_recorded(run, "sft")
    evidence.record_scores(run, "sft", {"greets": 1.0}, {"prompts": 2})
    assert evidence.is_recorded(run, "sft")
    first, second = run.samples()
    assert first["answers"] == {"base": "a rock", "sft": "Good day!"}
    assert first["about"] == MOON.row["about"]
    assert second["rules"] == {"base": {"greets": True}, "sft": {"greets": True}}
    assert run.evidence("evaluation") == {"greets": {"base": 0.5, "sft": 1.0}, "counts": {"prompts": 2}}


def test_a_recipe_without_scores_is_measured_once(tmp_path: Path):
    run = Run(tmp_path)
    assert not evidence.is_recorded(run, "base")
    evidence.record_scores(run, "base", {}, {})
    assert evidence.is_recorded(run, "base")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"text": "Hi"}, "prompts.jsonl:1: a held-out prompt needs a `prompt` that is text"),
        ({"prompt": "Hi"}, "prompts.jsonl:1: rule on_topic needs a list of patterns in `about`"),
        ({"prompt": "Hi", "about": "moon"}, "prompts.jsonl:1: rule on_topic needs a list of patterns in `about`"),
        ({"prompt": "Hi", "about": ["("]}, "prompts.jsonl:1: about: '(' is not a regular expression"),
    ],
)
def test_a_prompt_that_cannot_be_counted_is_named(
    tmp_path: Path, tiny_recipe: Path, in_tiny_cache: None, row: dict[str, Any], message: str
):
    tiny.write_rows(tmp_path / "prompts.jsonl", [row])
    settings = Evaluation(prompts=str(tmp_path / "prompts.jsonl"), rules=(Rule(name="on_topic", column="about"),))
    with pytest.raises(DataError) as caught:
        chat = assistant.find(str(tiny_recipe.parent / "base")).chat("model")
        evidence.read_prompts(settings, chat, 512)
    assert message in str(caught.value)


def test_a_held_out_prompt_has_its_system_message():
    row = {"prompt": "Hi", "system": "Be kind."}
    assert [turn.content for turn in Prompt("Hi", row).messages] == ["Be kind.", "Hi"]
    assert [turn.content for turn in MOON.messages] == [MOON.text]
