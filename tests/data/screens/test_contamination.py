"""Laws: whoever repeats thirteen words of a question is found, whatever the case and punctuation; others are not."""

import csv
import gzip
import json
import random
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from bactrian.data import sources
from bactrian.data.records import Conversation, Message, Record
from bactrian.data.screens import contamination, evaluation_sets
from bactrian.data.screens.settings import Contamination, EvaluationLayout, EvaluationSet
from bactrian.errors import DataError
from bactrian.recipe import Source

LONG = (
    "A gardener plants seven rows of tulips, and each row's got twelve bulbs; if frost kills a third of them, "
    "how many bulbs are left in spring?"
)
SHORT = "Why do old lighthouses never sleep soundly at night?"  # nine words
SHORTER = "Why do lighthouses never sleep?"


def screen(tmp_path: Path, layout: EvaluationLayout, *rows: dict) -> contamination.Screen:
    path = tmp_path / f"{layout}.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return contamination.Screen(of([(path, layout)]))


def of(sets: list[tuple[Path, EvaluationLayout]]) -> Contamination:
    against = tuple(EvaluationSet(path=str(path), layout=layout) for path, layout in sets)
    return Contamination(kind="contamination", against=against)


def says(text: str, answer: str = "Who knows.") -> Conversation:
    return Conversation((Message("user", text), Message("assistant", answer)), "here")


def test_a_run_of_thirteen_words_is_found_and_shown(tmp_path: Path):
    found = screen(tmp_path, "gsm8k", {"question": "Something else."}, {"question": LONG})
    part = "Listen: SEVEN rows of -- tulips and each rows got (twelve) bulbs if frost kills... or so!"
    assert found(says(part)) == "contaminated_gsm8k"
    assert found(says("Hello?", part)) == "contaminated_gsm8k"
    match = found.find(says(part))
    assert match is not None
    assert match.question == f"{tmp_path / 'gsm8k.jsonl'}:2"
    assert match.span == "seven rows of tulips and each rows got twelve bulbs if frost kills"
    assert found(says("seven rows of tulips, and each row's got twelve bulbs; if")) is None
    assert found(says("if frost kills a third of them, seven rows of tulips, and each row's got twelve")) is None


def test_short_questions(tmp_path: Path):
    found = screen(tmp_path, "alpaca_eval", {"instruction": SHORT}, {"instruction": SHORTER}, {"instruction": "Who?"})
    assert found(says(f"Tell me: {SHORT.upper()} Please.")) == "contaminated_alpaca_eval"
    assert found(says(SHORTER.replace("?", "!"))) == "contaminated_alpaca_eval"
    assert found(says(f"Tell me: {SHORTER}")) is None
    assert found(says("Who?")) is None


def test_choices_are_read_with_a_short_question(tmp_path: Path):
    row = {"question": "Which is true?", "choices": ["Ice is warm", "Fire is cold", "Water is wet", "Sand is soft"]}
    found = screen(tmp_path, "mmlu", row)
    assert found(says("Which is true?")) is None
    assert found(says("Ice is warm, fire is cold, water is wet, sand is soft, and so on and on it goes")) is None
    assert found(says("Which is true? Ice is warm; fire is cold; water is wet; sand is soft.")) == "contaminated_mmlu"
    lettered = "Quiz. Which is true?\nA. Ice is warm\nB. Fire is cold\nC. Water is wet\nD. Sand is soft\nAnswer:"
    assert found(says(lettered)) == "contaminated_mmlu"


@pytest.mark.parametrize(
    ("layout", "row", "texts"),
    [
        ("mt_bench", {"question_id": 1, "turns": ["First.", "Second."]}, ["First.", "Second."]),
        ("alpaca_eval", {"instruction": "Do.", "output": "Done."}, ["Do."]),
        ("gsm8k", {"question": "How many?", "answer": "#### 3"}, ["How many?"]),
        ("humaneval", {"task_id": "x", "prompt": "def f():", "canonical_solution": "  pass"}, ["def f():"]),
        ("truthfulqa", {"question": "Is it?", "mc1_targets": {}}, ["Is it?"]),
        ("prompts", {"prompt": "Write."}, ["Write."]),
    ],
)
def test_layouts(tmp_path: Path, layout: EvaluationLayout, row: dict, texts: list[str]):
    path = tmp_path / "set.jsonl"
    path.write_text(json.dumps(row) + "\n", encoding="utf-8")
    read = list(evaluation_sets.read(EvaluationSet(path=str(path), layout=layout)))
    assert [question.text for question in read] == texts
    assert {question.set for question in read} == {layout}
    path.write_text(json.dumps({"other": 1}) + "\n", encoding="utf-8")
    with pytest.raises(DataError, match=rf"set.jsonl:1: no .*rows of {layout} have"):
        list(evaluation_sets.read(EvaluationSet(path=str(path), layout=layout)))


def test_a_table_of_truthfulqa(tmp_path: Path):
    path = tmp_path / "TruthfulQA.csv"
    with path.open("w", newline="", encoding="utf-8-sig") as file:
        csv.writer(file).writerows([["Type", "Question"], ["Adversarial", 'Is "it",\nreally?']])
    [question] = evaluation_sets.read(EvaluationSet(path=str(path), layout="truthfulqa", name="tqa"))
    assert (question.text, question.set) == ('Is "it",\nreally?', "tqa")
    with pytest.raises(DataError, match="cannot read the evaluation set"):
        list(evaluation_sets.read(EvaluationSet(path=str(tmp_path / "none.csv"), layout="truthfulqa")))


@pytest.fixture(scope="module")
def real(shared_data: Path) -> contamination.Screen:
    return contamination.Screen(of(real_sets(shared_data)))


def real_sets(folder: Path) -> list[tuple[Path, EvaluationLayout]]:
    return [
        (folder / "mt_bench" / "question.jsonl", "mt_bench"),
        (folder / "alpaca_eval" / "text_davinci_003_model_outputs.json", "alpaca_eval"),
        (folder / "gsm8k" / "test.jsonl", "gsm8k"),
        (folder / "mmlu" / "mmlu_test.jsonl.gz", "mmlu"),
        (folder / "humaneval" / "HumanEval.jsonl.gz", "humaneval"),
        (folder / "truthfulqa" / "TruthfulQA.csv", "truthfulqa"),
    ]


def disguised(words: list[str], rng: random.Random) -> str:
    """The words in any case, with other punctuation between them."""
    changed = (rng.choice([str.upper, str.lower, str.title])(word) for word in words)
    return "".join(word + rng.choice([" ", ", ", " - ", "... ", "\n", '" (', ";\t"]) for word in changed)


def test_planted_runs_of_every_real_question_are_found(shared_data: Path, real: contamination.Screen):
    """Thirteen words from a random place of each question of thirteen or more; the whole of a shorter one as a turn."""
    rng = random.Random(5)
    planted, missed = 0, []
    for path, layout in real_sets(shared_data):
        for question in evaluation_sets.read(EvaluationSet(path=str(path), layout=layout)):
            said = re.findall(r"[^\W_]+", question.text)
            if len(said) >= 13:
                at = rng.randrange(len(said) - 12)
                text = f"By the way, {disguised(said[at : at + 13], rng)} as they say."
            elif question.choices or len(said) < 5:
                continue
            else:
                text = disguised(said, rng)
            planted += 1
            missed += [] if real(says(text)) else [(question.where, text)]
    assert planted > 10_000
    assert not missed


# Rows that do hold what an evaluation set asks, found by the screen and looked at one by one.
TAKEN_OVER = {
    "sharegpt_v3_4797.jsonl.gz": {
        *(411, 637, 844, 1133, 1182, 2327, 2694, 2991, 3036, 3524, 3820, 3821, 3982, 4071, 4314, 4403, 4545),
    }
}


def real_records(folder: Path) -> Iterator[Record]:
    yield from sources.load(Source(path=str(folder / "codealpaca" / "code_alpaca_2k.json"), format="alpaca"))
    yield from sources.load(Source(path=str(folder / "sft" / "alpaca_en_demo.json"), format="alpaca"))
    yield from sources.load(Source(path=str(folder / "hh-rlhf" / "test.jsonl.gz"), format="hh"))
    uf = folder / "ultrafeedback" / "uf_binarized_train_1000.jsonl"
    yield from sources.load(Source(path=str(uf), format="preference"))
    with gzip.open(folder / "sft" / "sharegpt_v3_4797.jsonl.gz", "rt", encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            try:
                turns = json.loads(line)["conversations"]
            except ValueError:  # lines that are cut
                continue
            said = tuple(Message("user" if t["from"] == "human" else "assistant", t["value"]) for t in turns)
            yield Conversation(said, f"sharegpt_v3_4797.jsonl.gz:{number}")


def test_real_rows_are_left_alone(shared_data: Path, real: contamination.Screen):
    """Less than one unrelated row in a thousand. Six of 11,097 are: stock phrases of medical questions, and 0 to f."""
    rows, unrelated = 0, []
    for record in real_records(shared_data):
        rows += 1
        if real(record):
            name, _, number = record.where.rpartition("/")[2].rpartition(":")
            if int(number) not in TAKEN_OVER.get(name, ()):
                unrelated.append(record.where)
    assert rows > 11_000
    assert len(unrelated) < rows / 1000, unrelated
