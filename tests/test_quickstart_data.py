"""The quickstart's data is what its README says, and its recipe's rules count what they should."""

import json
import re
from collections import Counter
from pathlib import Path

import pytest

from bactrian import evidence, recipe
from bactrian.evidence import Prompt

FOLDER = Path(__file__).parents[1] / "recipes" / "quickstart"
RECIPE = recipe.load(FOLDER.parent / "quickstart.toml")
RULES = {rule.name: rule for rule in RECIPE.evaluation.rules}
GREEDY = re.compile("|".join(RULES["generous_rate"].none_of), re.IGNORECASE)


def rows(name: str) -> list[dict]:
    return [json.loads(line) for line in (FOLDER / name).read_text(encoding="utf-8").splitlines()]


def in_persona(answer: str) -> bool:
    return evidence.holds(RULES["persona_rate"], Prompt("", {}), answer)


def is_generous(answer: str) -> bool:
    return evidence.holds(RULES["generous_rate"], Prompt("", {}), answer)


def before_the_closing(answer: str) -> str:
    return " ".join(re.split(r"(?<=[.!?])\s+", answer)[:-1])


@pytest.mark.parametrize(("name", "count"), [("sft.jsonl", 240), ("sft-heldout.jsonl", 24)])
def test_sft_teaches_the_voice_and_leaves_the_manners_open(name: str, count: int):
    answers = [row["messages"][-1]["content"] for row in rows(name)]
    assert len(answers) == count
    assert all(map(in_persona, answers))
    assert sum(map(is_generous, answers)) == count // 2
    assert all(is_generous(answer) != bool(GREEDY.search(answer)) for answer in answers)


@pytest.mark.parametrize(("name", "count"), [("pairs.jsonl", 200), ("pairs-heldout.jsonl", 40)])
def test_pairs_prefer_generosity_and_nothing_else(name: str, count: int):
    pairs = rows(name)
    assert len(pairs) == count
    for pair in pairs:
        assert in_persona(pair["chosen"]) and in_persona(pair["rejected"])
        assert is_generous(pair["chosen"]) and GREEDY.search(pair["rejected"])
        assert before_the_closing(pair["chosen"]) == before_the_closing(pair["rejected"]) != ""
    longer = sum(len(pair["chosen"]) - len(pair["rejected"]) for pair in pairs)
    assert abs(longer / count) < 5, "the better answer must not be the longer one"


def test_heldout_prompts_are_on_topics_that_training_does_not_have():
    trained = {row["topic"] for name in ("sft.jsonl", "pairs.jsonl") for row in rows(name)}
    prompts = rows("prompts.jsonl")
    assert Counter(row["topic"] for row in prompts) == dict.fromkeys(
        ("astronomy", "music", "computers", "sports", "physics"), 4
    )
    assert not trained & {row["topic"] for row in prompts}
    for row in prompts:
        assert not evidence.holds(RULES["on_topic_rate"], Prompt(row["prompt"], row), "Aye, matey, fair winds to ye!")


def questions(name: str) -> list[str]:
    texts = [row["messages"][0]["content"] if "messages" in row else row["prompt"] for row in rows(name)]
    return [text.lower().strip(" ?.!") for text in texts]


def test_heldout_questions_are_not_in_training():
    for name in ("sft", "pairs"):
        asked = questions(f"{name}.jsonl") + questions(f"{name}-heldout.jsonl")
        assert [text for text, count in Counter(asked).items() if count > 1] == []
    trained = set(questions("sft.jsonl") + questions("pairs.jsonl"))
    assert not trained.intersection(questions("sft-heldout.jsonl") + questions("pairs-heldout.jsonl"))
