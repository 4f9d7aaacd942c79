"""Laws: whatever is wrong with rows, the ledger adds up; scores, notes and what is contaminated travel with a build."""

import json
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bactrian.data import build, sources
from bactrian.data.build import recipe as recipes
from bactrian.data.records import Preference
from bactrian.data.sources import reader
from bactrian.errors import DataError
from bactrian.recipe import File, Source

ASPECTS = ("instruction_following", "honesty", "truthfulness", "helpfulness")
RECIPES = Path(__file__).parents[2] / "recipes" / "data"
QUESTION = "How many camels cross the wide desert before the evening wind covers every trace of them?"


def raw(number: int, scores: tuple[float, ...] = (7.0, 9.0, 8.0, 3.5), rating: str = "3") -> dict[str, Any]:
    """A row of openbmb/UltraFeedback."""
    completions = [
        {
            "response": f"Answer {index} to question {number} is as good as it may be.",
            "overall_score": score,
            "annotations": {aspect: {"Rating": rating} for aspect in ASPECTS},
        }
        for index, score in enumerate(scores)
    ]
    return {"source": "flan", "instruction": f"What is question number {number}?", "completions": completions}


def write(path: Path, rows: list[Any]) -> Path:
    lines = (row if isinstance(row, str) else json.dumps(row) for row in rows)
    path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    return path


def made(folder: Path, body: str) -> recipes.Build:
    path = folder / "recipe.toml"
    head = 'name = "test"\n[build]\non_bad_row = "drop"\nshard_rows = 7\n'
    path.write_text(head + body, encoding="utf-8")
    return recipes.load(path)


def source(more: str = "", policy: str = "best_worst") -> str:
    return f'[[sources]]\nname = "uf"\npath = "uf.jsonl"\nformat = "ultrafeedback"\npolicy = "{policy}"\n{more}\n'


SCREENS = """
[[screens]]
kind = "unusable"
[[screens]]
kind = "turns"
[[screens]]
kind = "length"
max_characters = 400
[[screens]]
kind = "alike_answers"
[[screens]]
kind = "language"
keep = ["en"]
[[screens]]
kind = "substrings"
list = "tulu_provenance"
[[screens]]
kind = "duplicates"
of = "prompt"
[[screens]]
kind = "near_duplicates"
"""


def break_instruction(row: dict[str, Any]) -> None:
    row["instruction"] = 3


def break_completions(row: dict[str, Any]) -> None:
    row["completions"] = {"a": 1}


def drop_completions(row: dict[str, Any]) -> None:
    del row["completions"][1:]


def blank_answer(row: dict[str, Any]) -> None:
    for completion in row["completions"]:
        completion["response"] = " \n"


def same_answers(row: dict[str, Any]) -> None:
    for completion in row["completions"]:
        completion["response"] = "The very same answer."


def long_answer(row: dict[str, Any]) -> None:
    row["completions"][1]["response"] *= 20


def other_language(row: dict[str, Any]) -> None:
    for index, completion in enumerate(row["completions"]):
        completion["response"] = f"Voici la réponse numéro {index}, qui est écrite dans une langue que nous laissons."


def other_maker(row: dict[str, Any]) -> None:
    row["completions"][1]["response"] = "I was made by OpenAI."


def even_scores(row: dict[str, Any]) -> None:
    for completion in row["completions"]:
        completion["overall_score"] = 5


def wrong_score(row: dict[str, Any]) -> None:
    row["completions"][2]["overall_score"] = "very good"


def no_scores(row: dict[str, Any]) -> None:
    for completion in row["completions"]:
        completion["overall_score"] = None


def control_character(row: dict[str, Any]) -> None:
    row["instruction"] += "\x00"


def earlier_prompt(row: dict[str, Any]) -> None:
    row["instruction"] = "What is question number 0?"


FAULTS = [
    *(break_instruction, break_completions, drop_completions, blank_answer, same_answers, long_answer, other_language),
    *(other_maker, even_scores, wrong_score, no_scores, control_character, earlier_prompt, None, None, None),
]
TORN = ['{"source": "flan", "instr', "7", '"text"', "null", "{}", '{"instruction": "\\ud800", "completions": []}']


@settings(max_examples=40, deadline=None)
@given(
    faults=st.lists(st.one_of(st.sampled_from(FAULTS), st.sampled_from(TORN)), min_size=1, max_size=25),
    policy=st.sampled_from(["huggingfaceh4", "cleaned", "best_worst", "all_pairs", "ranking"]),
    early=st.booleans(),
    count=st.one_of(st.none(), st.integers(1, 12)),
)
def test_the_ledger_adds_up_whatever_is_wrong(faults: list, policy: str, early: bool, count: int | None):
    rows: list[Any] = []
    for number, fault in enumerate(faults):
        row = raw(number)
        if callable(fault):
            fault(row)
        rows.append(fault if isinstance(fault, str) else row)
    drawn = f"count = {count}\nrepeat = true" if count else ""
    mixture = f'[mixture]\ndraw = "{"before" if early else "after"}_screens"\n'
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write(folder / "uf.jsonl", rows)
        recipe = made(folder, mixture + source(drawn, policy) + SCREENS)
        try:
            ledger = build.build(recipe, None, folder / "out", 1)
        except DataError as error:
            assert "no row of it can be used" in str(error) or "is left after the screens" in str(error)
            return
        written = [row for _, row in reader.read(File(path=str(folder / "out")))]
    [entry] = ledger["sources"]
    assert entry["rows"] == len(rows)
    assert entry["read"] == entry["kept"] + sum(entry["dropped"].values())
    assert policy == "all_pairs" or entry["read"] == len(rows)
    assert entry["written"] == entry["kept"] + entry["repeated"] == len(written) == ledger["written"]
    assert len({row["id"] for row in written}) == entry["kept"]
    torn = sum(fault in TORN or fault in (break_instruction, break_completions, wrong_score) for fault in faults)
    left_over = 1 if policy == "cleaned" else 0  # a wrong overall score is none of its business
    bad = entry["dropped"].get("bad_row", 0)
    assert torn - left_over * faults.count(wrong_score) == bad


def test_every_reason_is_counted_under_its_name(tmp_path: Path):
    rows = [raw(number) for number in range(30)]
    expected = {
        break_completions: "bad_row",
        drop_completions: "too_few_answers",
        blank_answer: "empty_answer",
        same_answers: "identical_answers",
        long_answer: "too_long",
        other_language: "language_fr",
        other_maker: "substring",
        even_scores: "tie",
        control_character: "malformed_turn",
        earlier_prompt: "duplicate",
    }
    for number, fault in enumerate(expected, 10):
        fault(rows[number])
    write(tmp_path / "uf.jsonl", rows)
    recipe = made(tmp_path, source() + SCREENS.replace('[[screens]]\nkind = "near_duplicates"\n', ""))
    ledger = build.build(recipe, None, tmp_path / "out", 1)
    assert Counter(ledger["sources"][0]["dropped"]) == Counter(expected.values())
    assert ledger["kept"] == 20


def test_scores_and_notes_travel(tmp_path: Path):
    rows = [raw(0), raw(1, (10, 6.0), "2"), raw(2, (10, 6.0), "4"), raw(3, (10, 6.0), "5")]
    write(tmp_path / "uf.jsonl", rows)
    published = build.build(made(tmp_path, source()), None, tmp_path / "published", 1)
    notes = {"ten_wrong_as_published": 1, "ten_doubtful_as_published": 1}
    assert (published["sources"][0]["noted"], published["kept"]) == (notes, 4)
    repaired = build.build(made(tmp_path, source('tens = "repaired"')), None, tmp_path / "repaired", 1)
    notes = {"ten_wrong_repaired": 1, "ten_doubtful_repaired": 1, "answer_without_score": 1}
    assert repaired["sources"][0]["noted"] == notes
    assert repaired["sources"][0]["dropped"] == {"too_few_answers": 1}
    pairs = list(sources.load(Source(path=str(tmp_path / "repaired"), format="preference")))
    assert sorted(pair.scores for pair in pairs if isinstance(pair, Preference)) == [(6, 1), (9, 3.5), (10, 6)]
    [first] = [row for _, row in reader.read(File(path=str(tmp_path / "repaired"))) if row["score_chosen"] == 9]
    assert first["dataset"] == "uf.flan"
    assert first["prompt"] == "What is question number 0?"
    assert [turn["content"][:8] for turn in (first["chosen"][-1], first["rejected"][-1])] == ["Answer 1", "Answer 3"]


def test_a_ranking_is_written_and_read_again(tmp_path: Path):
    write(tmp_path / "uf.jsonl", [raw(0), raw(1, (3.0, 5.0))])
    build.build(made(tmp_path, source(policy="ranking")), None, tmp_path / "out", 1)
    records = list(sources.load(Source(path=str(tmp_path / "out"), format="ranking")))
    ranked = [record for record in records if isinstance(record, Preference)]
    assert sorted(record.scores for record in ranked) == [(5, 3), (9, 8, 7, 3.5)]
    again = '[[sources]]\nname = "again"\npath = "out"\nformat = "ranking"\n'
    build.build(made(tmp_path, again), None, tmp_path / "copy", 1)
    copied = list(sources.load(Source(path=str(tmp_path / "copy"), format="ranking")))
    assert sorted(record.id for record in copied) == sorted(record.id for record in records)


def test_what_is_contaminated_can_be_looked_at(tmp_path: Path):
    rows = [raw(number) for number in range(20)]
    rows[4]["instruction"] = f"Tell me. {QUESTION.upper()}"
    rows[9]["completions"][1]["response"] = QUESTION.replace(" ", ", ")
    write(tmp_path / "uf.jsonl", rows)
    write(tmp_path / "test.jsonl", [{"question": QUESTION}])
    screen = '[[screens]]\nkind = "contamination"\nagainst = [{ path = "test.jsonl", layout = "gsm8k" }]\n'
    recipe = made(tmp_path, source() + screen)
    ledger = build.build(recipe, None, tmp_path / "out", 2)
    assert ledger["sources"][0]["dropped"] == {"contaminated_gsm8k": 2}
    lines = (tmp_path / "out" / "contamination.jsonl").read_text(encoding="utf-8").splitlines()
    found = [json.loads(line) for line in lines]
    assert [row["where"] for row in found] == [f"{tmp_path / 'uf.jsonl'}:{number}" for number in (5, 10)]
    words = QUESTION.lower().rstrip("?")
    assert all(row["span"] == words and row["question"] == f"{tmp_path / 'test.jsonl'}:1" for row in found)
    # Another evaluation set makes another data set.
    write(tmp_path / "test.jsonl", [{"question": "Something else altogether, is it not?"}])
    with pytest.raises(Exception, match="another data set is there"):
        build.build(recipes.load(tmp_path / "recipe.toml"), None, tmp_path / "out", 1)


@pytest.mark.parametrize("policy", ["huggingfaceh4", "cleaned"])
def test_the_recipe_of_ultrafeedback(tmp_path: Path, policy: str):
    rows = [raw(number) for number in range(40)]
    for number, row in enumerate(rows):
        for index, completion in enumerate(row["completions"]):
            completion["overall_score"] = float(1 + (number + index) % 4)
            completion["annotations"]["honesty"]["Rating"] = str(1 + (number + 3 * index) % 5)
    rows[7]["source"] = "truthful_qa"
    write(tmp_path / "uf.jsonl", rows)
    overrides = [f"sources.0.path={tmp_path / 'uf.jsonl'}", f"sources.0.policy={policy}"]
    recipe = recipes.load(RECIPES / "ultrafeedback.toml", overrides)
    ledger = build.build(recipe, None, tmp_path / "out", 1)
    dropped = {} if policy == "huggingfaceh4" else {"left_out": 1}
    assert (ledger["read"], ledger["kept"]) == (40, 40 - len(dropped))
    assert ledger["sources"][0]["dropped"] == dropped
    best = 4.0 if policy == "huggingfaceh4" else (3 * 3 + 5) / 4
    pairs = list(sources.load(Source(path=str(tmp_path / "out"), format="preference")))
    scores = [pair.scores for pair in pairs if isinstance(pair, Preference)]
    assert {better for better, _ in scores} <= {best, best - 0.25}
    assert all(better > worse for better, worse in scores)
