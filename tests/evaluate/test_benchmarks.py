"""The paper's benchmarks: data in every layout, prompts as open-instruct writes them, grades by its rules."""

import csv
import gzip
import json
import random
from collections.abc import Sequence
from pathlib import Path

import pytest

from bactrian.data.records import Message, Messages
from bactrian.errors import DataError
from bactrian.evaluate import sandbox
from bactrian.evaluate.benchmarks import bbh, bundled, gsm8k, humaneval, mmlu, task, tydiqa
from bactrian.evaluate.benchmarks.files import Origin
from bactrian.evaluate.benchmarks.task import Graded
from bactrian.evaluate.protocol import Prompt, Score, Settings

needs_lm_eval = pytest.mark.skipif(
    __import__("importlib.util").util.find_spec("lm_eval") is None, reason="lm-eval is not installed (extra `eval`)"
)


class Scripted:
    """Says what it is told to say, and remembers what it was asked."""

    def __init__(self, answers: Sequence[str] = (), logprobs: Sequence[float] = ()):
        self.answers, self.logprobs = list(answers), list(logprobs)
        self.prompts: list[Prompt] = []
        self.settings: Settings | None = None

    def generate(self, prompts: Sequence[Prompt], settings: Settings) -> list[str]:
        self.prompts, self.settings = list(prompts), settings
        return self.answers

    def score(self, contexts: Sequence[Prompt], continuations: Sequence[str]) -> list[Score]:
        self.prompts = list(contexts)
        assert list(continuations) == [" A", " B", " C", " D"] * (len(contexts) // 4)
        return [Score(value, False) for value in self.logprobs]


def conversation(prompt: Prompt) -> Messages:
    assert not isinstance(prompt, str)
    return prompt


def whole(text: str, tokens: int) -> str:
    return text


# MMLU


def mmlu_rows() -> list[dict]:
    return [
        {"subject": "world_religions", "question": "Which?", "choices": ["p", "q, r", "s", "t"], "answer": 1},
        {"subject": "abstract_algebra", "question": "How many?", "choices": ["1", "2", "3", "4"], "answer": 3},
    ]


def test_mmlu_is_read_in_the_original_tables_and_as_rows(tmp_path):
    by_subject = sorted(mmlu_rows(), key=lambda row: row["subject"])
    (tmp_path / "a" / "mmlu" / "test").mkdir(parents=True)
    for row in by_subject:
        with (tmp_path / "a" / "mmlu" / "test" / f"{row['subject']}_test.csv").open("w", newline="") as file:
            csv.writer(file).writerow([row["question"], *row["choices"], "ABCD"[row["answer"]]])
    (tmp_path / "b" / "mmlu").mkdir(parents=True)
    with gzip.open(tmp_path / "b" / "mmlu" / "mmlu_test.jsonl.gz", "wt") as file:
        file.write("".join(json.dumps(row) + "\n" for row in mmlu_rows()))
    assert mmlu.read(Origin(tmp_path / "a")) == mmlu.read(Origin(tmp_path / "b")) == by_subject


def test_mmlu_takes_the_likeliest_letter():
    responder = Scripted(logprobs=[-1, -2, -3, -4, -4, -3, -2, -1])
    graded = mmlu.run(responder, whole, sorted(mmlu_rows(), key=lambda row: row["subject"]))
    assert [(item.taken, item.wanted, item.value) for item in graded] == [("A", "D", 0.0), ("D", "B", 0.0)]
    question = (
        "The following are multiple choice questions (with answers) about  abstract algebra.\n\n"
        "How many?\nA. 1\nB. 2\nC. 3\nD. 4\nAnswer:"
    )
    assert responder.prompts[0] == (Message("user", question), Message("assistant", "The answer is:"))


def test_mmlu_real_data(shared_data):
    rows = mmlu.read(Origin(shared_data))
    assert len(rows) == 14042 and len({row["subject"] for row in rows}) == 57


# GSM8K


@needs_lm_eval
def test_gsm8k_draws_the_200_questions_of_the_paper_and_shows_eight_examples(shared_data):
    data = gsm8k.read(Origin(shared_data))
    lines = (shared_data / "gsm8k" / "test.jsonl").read_text(encoding="utf-8").splitlines()
    random.seed(42)
    expected = [json.loads(line)["question"] for line in random.sample(lines, 200)]
    assert [row["question"] for row in data["rows"]] == expected
    assert len(data["examples"]) == 8
    responder = Scripted(["I think 3 and then 1,234.", "none"])
    graded = gsm8k.run(responder, whole, {**data, "rows": [{"question": " Q? ", "answer": "1234"}] * 2})
    assert [item.value for item in graded] == [1.0, 0.0]
    question, begun = conversation(responder.prompts[0])
    assert question.content.startswith("Answer the following questions.\n\nQuestion: There are 15 trees")
    assert question.content.endswith("So the answer is 8.\n\nQuestion: Q?")
    assert begun == Message("assistant", "Answer:")
    assert responder.settings == Settings(max_tokens=512)


@pytest.mark.parametrize(
    ("text", "number"),
    [("so 2 + 3 = 5.", "5"), ("1,000,000 dollars", "1000000"), ("-7", "7"), ("0.5 or -1.25", "-1.25"), ("no", "no")],
)
def test_the_last_number(text, number):
    assert gsm8k.last_number(text) == number


def test_gsm8k_says_what_is_wrong_with_its_file(tmp_path):
    with pytest.raises(DataError, match=r"no GSM8K in it; it should hold gsm8k/test\.jsonl"):
        gsm8k.read(Origin(tmp_path))
    (tmp_path / "gsm8k").mkdir()
    (tmp_path / "gsm8k" / "test.jsonl").write_text('{"question": "Q", "answer": "no mark"}\n')
    with pytest.raises(DataError, match="an answer without ####"):
        gsm8k.read(Origin(tmp_path))


# BIG-Bench Hard


@needs_lm_eval
def test_bundled_prompts_are_the_published_ones(shared_data):
    prompts = bundled.bbh_prompts()
    assert len(prompts) == 27
    for name, prompt in prompts.items():
        published = (shared_data / "bbh" / f"cot-prompts__{name}.txt").read_text(encoding="utf-8")
        assert prompt == "".join(published.splitlines(keepends=True)[2:]).strip(), name


def test_bbh_real_data(shared_data, tmp_path):
    tasks = bbh.read(Origin(shared_data))
    assert len(tasks) == 27 and {len(each["examples"]) for each in tasks.values()} == {40}
    for path in (shared_data / "bbh").iterdir():
        folder, _, name = path.name.partition("__")
        if name.endswith((".json", ".txt")):
            (tmp_path / "bbh" / folder).mkdir(parents=True, exist_ok=True)
            (tmp_path / "bbh" / folder / name).symlink_to(path)
    assert bbh.read(Origin(tmp_path)) == tasks


def test_bbh_grades_what_stands_before_the_period():
    examples = [{"input": "Is it?", "target": "(B)"}, {"input": "Sort.", "target": "a b"}]
    responder = Scripted(["Hm. So the answer is (b). The answer is (A).", " A B. "])
    graded = bbh.run(responder, whole, {"snarks": {"prompt": "P", "examples": examples}})
    assert [(item.taken, item.value) for item in graded] == [("(b)", 1.0), ("A B.", 1.0)]
    assert responder.prompts[0] == (Message("user", "P\n\nQ: Is it?"), Message("assistant", "A:"))


# TyDi QA


@pytest.fixture
def tydiqa_folder(tmp_path) -> Path:
    folder = tmp_path / "tydiqa"
    folder.mkdir()

    def article(name: str, count: int) -> dict:
        questions = [
            {"id": f"{name}-{number}", "question": f"Where {number}?", "answers": [{"text": f"in {name} {number}"}]}
            for number in range(count)
        ]
        return {"paragraphs": [{"context": f"All is in {name}.", "qas": questions}]}

    for file, count in (("tydiqa-goldp-v1.1-dev.json", 120), ("tydiqa-goldp-v1.1-train.json", 3)):
        content = {"data": [article("finnish", count), article("english", count // 3)]}
        (folder / file).write_text(json.dumps(content))
    wordings = {"english": ("Do it.", "P:", "Q:", "A:"), "finnish": ("Tee se.", "K:", "K2:", "V:")}
    (folder / "run_eval.py").write_text(
        f"import os\nencoding_templates_with_context = {wordings!r}\n", encoding="utf-8"
    )
    return tmp_path


def test_tydiqa_draws_by_language_and_asks_in_it(tydiqa_folder):
    data = tydiqa.read(Origin(tydiqa_folder))
    draw = random.Random(42)
    expected = [f"english-{number}" for number in range(40)]
    expected += draw.sample([f"finnish-{number}" for number in range(120)], 100)
    assert [row["id"] for row in data["rows"]] == expected
    assert data["examples"]["english"]["id"] == "english-0"
    responder = Scripted(["In the English 0", *[""] * 139])
    clipped = []
    graded = tydiqa.run(responder, lambda text, tokens: clipped.append(tokens) or text[:9], data)
    assert set(clipped) == {512}
    assert graded[0].value == pytest.approx(1.0) and graded[1].value == 0.0
    example = data["examples"]["finnish"]
    question, begun = conversation(responder.prompts[-1])
    assert question.content == (
        f"Tee se.\n\nK: All is in\nK2: {example['question']}\nV: {example['answers'][0]}\n\n"
        f"K: All is in\nK2: {data['rows'][-1]['question']}\n"
    )
    assert begun == Message("assistant", "V:")
    assert responder.settings == Settings(max_tokens=50)
    assert set(task.score(graded, True)[1]) == {"english", "finnish"}


@pytest.mark.parametrize(
    ("said", "wanted", "value"),
    [("The cat.", "a cat", 1.0), ("black cat sat", "cat", 0.5), ("dog", "cat", 0.0), ("", "cat", 0.0)],
)
def test_f1(said, wanted, value):
    assert tydiqa.f1(said, wanted) == pytest.approx(value)


def test_tydiqa_says_what_is_wrong(tydiqa_folder):
    (tydiqa_folder / "tydiqa" / "run_eval.py").write_text("encoding_templates_with_context = {'english': ('a',)}\n")
    with pytest.raises(DataError, match="no prompt is known in finnish"):
        tydiqa.read(Origin(tydiqa_folder))
    (tydiqa_folder / "tydiqa" / "run_eval.py").write_text("other = 1\n")
    with pytest.raises(DataError, match="no encoding_templates_with_context in it"):
        tydiqa.read(Origin(tydiqa_folder))
    (tydiqa_folder / "tydiqa" / "tydiqa-goldp-v1.1-dev.json").write_text('{"rows": []}')
    with pytest.raises(DataError, match="not TyDi QA's layout"):
        tydiqa.read(Origin(tydiqa_folder))


# HumanEval


def test_pass_at_is_unbiased():
    assert humaneval.pass_at(10, 0, 20) == 0.0
    assert humaneval.pass_at(10, 11, 20) == 1.0
    assert humaneval.pass_at(1, 5, 20) == pytest.approx(0.25)
    assert humaneval.pass_at(10, 1, 20) == pytest.approx(0.5)


def test_humaneval_samples_twenty_times_and_counts(monkeypatch):
    rows = [
        {"task_id": "T/0", "prompt": "def f():\n", "entry_point": "f", "test": "def check(f):\n    assert f() == 1\n"},
        {"task_id": "T/1", "prompt": "def g():\n", "entry_point": "g", "test": "def check(g):\n    assert g() == 2\n"},
    ]
    good, bad = "    return 1", "    return 3"
    monkeypatch.setattr(sandbox, "require", lambda: None)
    monkeypatch.setattr(sandbox, "run", lambda programs: [_run(each) for each in programs])
    responder = Scripted([good, *[bad] * 19, *[bad] * 20])
    graded = humaneval.run(responder, whole, rows)
    assert [(item.id, item.value) for item in graded] == [("T/0", pytest.approx(0.5)), ("T/1", 0.0)]
    assert responder.prompts == ["def f():\n"] * 20 + ["def g():\n"] * 20
    assert responder.settings is not None
    assert (responder.settings.temperature, responder.settings.top_p) == (0.8, 0.95)


def _run(program: str) -> str:
    try:
        exec(program, {})
    except AssertionError:
        return "failed"
    return "passed"


# Scores


def item(group: str, value: float) -> Graded:
    return Graded("", group, "", "", "", "", value)


def test_a_macro_score_is_the_mean_of_the_groups_and_a_micro_score_of_all_items():
    items = [item("a", 1.0), item("b", 0.0), item("b", 0.0), item("b", 1.0)]
    macro, means = task.score(items, True)
    micro, _ = task.score(items, False)
    assert macro.mean == pytest.approx((100 + 100 / 3) / 2)
    assert micro.mean == pytest.approx(50.0)
    assert means == {"a": 100.0, "b": pytest.approx(100 / 3)}
    assert macro.low <= macro.mean <= macro.high and micro.low <= micro.mean <= micro.high


def test_the_interval_of_a_share_is_the_binomial_one():
    items = [item("a", float(index < 120)) for index in range(200)]
    interval, _ = task.score(items, False)
    deviation = 100 * (0.6 * 0.4 / 200) ** 0.5
    assert interval.low == pytest.approx(60 - 1.96 * deviation, abs=0.6)
    assert interval.high == pytest.approx(60 + 1.96 * deviation, abs=0.6)


def test_the_interval_of_few_items_is_not_a_point():
    none, _ = task.score([item("a", 0.0), item("a", 0.0)], False)
    assert (none.mean, none.low) == (0.0, 0.0) and none.high == pytest.approx(65.76, abs=0.01)
    each, _ = task.score([item("a", 0.0), item("b", 1.0)], True)
    assert each.mean == 50 and each.low == pytest.approx(50 - 39.7, abs=0.1) == 100 - each.high
