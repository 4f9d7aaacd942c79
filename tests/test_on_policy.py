"""Laws: a model's answers become pairs by their scores; cut short, the work goes on to the same answers."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import tiny

from bactrian import assistant, on_policy
from bactrian.assistant import Assistant
from bactrian.data import sources
from bactrian.data.records import Message, Messages, Preference
from bactrian.errors import DataError, InputError, RunError
from bactrian.inference.engine import Settings
from bactrian.on_policy import Sampling
from bactrian.recipe import Source

pytestmark = pytest.mark.usefixtures("in_tiny_cache")

PROMPTS: list[Messages] = [(Message("user", f"Where does Ada find lamp {n}?"),) for n in range(7)]
SAMPLING = Sampling(4, Settings(max_tokens=6, temperature=1.0, seed=3), "best_worst", keep_cut=True)


def by_length(prompt: list[dict[str, str]], answers: list[str]) -> list[float]:
    """Longer is better."""
    assert prompt[-1]["role"] == "user"
    return [float(len(answer)) for answer in answers]


@pytest.fixture(scope="module")
def model(tiny_recipe: Path, tiny_cache: Path) -> Iterator[Assistant]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BACTRIAN_CACHE", str(tiny_cache))
        yield assistant.find(str(tiny_recipe.parent / "base"))


@pytest.fixture(autouse=True)
def small_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(on_policy, "_AT_ONCE", 12)  # three prompts at a time


def sample(model: Assistant, out: Path, judge: on_policy.Judge = by_length, **changes: object) -> dict:
    sampling = replace(SAMPLING, **changes)  # pyright: ignore[reportArgumentType]
    return on_policy.sample(model, model.chat("model"), PROMPTS, ("test:judge", judge), sampling, out)


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def whole(model: Assistant, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("whole") / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(on_policy, "_AT_ONCE", 12)
        sample(model, out)
    return out


def test_the_best_answer_is_set_against_the_worst(whole: Path):
    rows = lines(whole / "answers.jsonl")
    assert [row["prompt"] for row in rows] == [[{"role": "user", "content": p[0].content}] for p in PROMPTS]
    assert all(len(set(row["answers"])) > 1 for row in rows)
    pairs = list(sources.load(Source(path=str(whole / "pairs.jsonl"), format="preference")))
    assert len(pairs) == 7
    for row, pair in zip(rows, pairs, strict=True):
        assert isinstance(pair, Preference)
        lengths = [len(answer) for answer in row["answers"]]
        assert (
            [len(branch[-1].content) for branch in pair.branches] == [max(lengths), min(lengths)] == list(pair.scores)
        )
        assert pair.branches[0][:-1] == (Message("user", row["prompt"][0]["content"]),)
    ledger = json.loads((whole / "ledger.json").read_text())
    assert (ledger["prompts"], ledger["answers"], ledger["read"], ledger["kept"]) == (7, 28, 7, 7)
    assert ledger["answers_cut"] == sum(finish == "length" for row in rows for finish in row["finish"])


class Failing:
    """A judge that fails at its n-th prompt."""

    def __init__(self, at: int):
        self.left = at

    def __call__(self, prompt: list[dict[str, str]], answers: list[str]) -> list[float]:
        self.left -= 1
        if not self.left:
            raise ConnectionError("nobody there")
        return by_length(prompt, answers)


def test_cut_short_it_goes_on_to_the_same_answers(model: Assistant, whole: Path, tmp_path: Path):
    out = tmp_path / "out"
    with pytest.raises(DataError, match=r"^test:judge: prompt 5: ConnectionError: nobody there; repair the judge$"):
        sample(model, out, Failing(5))
    answers = out / "answers.jsonl"
    assert len(lines(answers)) == 3
    with answers.open("a", encoding="utf-8") as file:  # what a killed run leaves: a row of a group, and half of another
        file.write(json.dumps({"prompt": [], "answers": []}) + '\n{"prompt": [{"ro')
    sample(model, out)
    for name in ("answers.jsonl", "pairs.jsonl", "ledger.json"):
        assert (out / name).read_bytes() == (whole / name).read_bytes()
    asked: list[int] = []
    sample(model, out, lambda prompt, answers: asked.append(1) or [])
    assert not asked, "nothing is judged twice"


def test_another_policy_costs_no_answer(model: Assistant, whole: Path, tmp_path: Path):
    out = tmp_path / "out"
    sample(model, out)
    before = (out / "answers.jsonl").read_bytes()
    ledger = sample(model, out, policy="ranking")
    assert (out / "answers.jsonl").read_bytes() == before
    for record in sources.load(Source(path=str(out / "ranking.jsonl"), format="ranking")):
        assert isinstance(record, Preference)
        assert list(record.scores) == sorted(set(record.scores), reverse=True)
    ledger = sample(model, out, policy="all_pairs", min_margin=3.0)
    assert ledger["read"] == 7 * 6 == ledger["kept"] + sum(ledger["dropped"].values())


def test_answers_that_were_cut_are_not_compared(model: Assistant, tmp_path: Path):
    ledger = sample(model, tmp_path / "out", keep_cut=False)
    whole_ones = ledger["answers"] - ledger["answers_cut"]
    assert whole_ones < 14  # a random model hardly ever ends in six tokens
    assert ledger["dropped"]["too_few_answers"] >= 1
    assert ledger["read"] == 7


def test_what_a_judge_cannot_score_is_left_out(model: Assistant, tmp_path: Path):
    def first_two(prompt: list[dict[str, str]], answers: list[str]) -> Sequence[float | None]:
        return [1.0, 2.0, None, None]

    ledger = sample(model, tmp_path / "out", first_two)
    assert ledger["answers_without_score"] == 14
    for row, pair in zip(
        lines(tmp_path / "out" / "answers.jsonl"), lines(tmp_path / "out" / "pairs.jsonl"), strict=True
    ):
        assert pair["chosen"][-1]["content"] == row["answers"][1]


@pytest.mark.parametrize(
    ("scores", "says"),
    [([1.0], "4 answers got the scores 1.0"), ([1, 2, 3, float("nan")], "nan; give"), (["x"] * 4, "ValueError")],
)
def test_scores_that_are_none(model: Assistant, tmp_path: Path, scores: list, says: str):
    with pytest.raises(DataError, match=f"^test:judge: prompt 1: .*{says}"):
        sample(model, tmp_path / "out", lambda prompt, answers: scores)


def test_another_question_is_another_folder(model: Assistant, whole: Path, tmp_path: Path):
    with pytest.raises(RunError, match="made with another max_tokens; choose another --out"):
        sample(model, whole, settings=replace(SAMPLING.settings, max_tokens=9))
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(RunError, match="something else is there"):
        sample(model, tmp_path)


def test_a_judge_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "my_judge_of_tests.py").write_text(
        "number = 3\ndef score(prompt, answers):\n    return [1] * len(answers)\n"
    )
    monkeypatch.chdir(tmp_path)
    assert on_policy.load_judge("my_judge_of_tests:score")([], ["a", "b"]) == [1, 1]
    for name, says in [
        ("my_judge_of_tests", "a judge is module:function"),
        ("my_judge_of_tests:nothing", "no such judge"),
        ("no_judge_of_tests:score", "no such judge"),
        ("my_judge_of_tests:number", "not a function"),
    ]:
        with pytest.raises(InputError, match=says):
            on_policy.load_judge(name)


def test_from_the_command(tiny_recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "command_judge.py").write_text("def score(prompt, answers):\n    return [len(a) for a in answers]\n")
    monkeypatch.chdir(tmp_path)
    given = [
        "--prompts",
        tiny_recipe.parent / "prompts.jsonl",
        "--judge",
        "command_judge:score",
        "--out",
        tmp_path / "o",
    ]
    arguments = [*given, "--max-tokens", 4, "--keep-cut", "--answers", 3]
    done = tiny.call("data", "sample", tiny_recipe.parent / "base", *arguments)
    assert done.code == 0, done.err
    assert json.loads(done.out)["answers"] == 12
    assert len(lines(tmp_path / "o" / "answers.jsonl")) == 4
    done = tiny.call("data", "sample", tiny_recipe.parent / "base", *arguments, "--seed", 9)
    assert (done.code, done.err) == (
        2,
        f"error: {tmp_path / 'o'}: these answers were made with another seed; choose another --out\n",
    )
