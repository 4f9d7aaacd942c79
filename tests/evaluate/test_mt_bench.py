"""FastChat's rules: prompts byte for byte, verdicts, both orders; on our small set and on real files."""

from pathlib import Path

import pytest
import question_set

from bactrian.errors import DataError
from bactrian.evaluate import mt_bench, mt_bench_job, published
from bactrian.evaluate.calls import Call, Failure, Reply
from bactrian.evaluate.mt_bench import Answer, Bench


class Told:
    """A judge that says what a function of the prompt says, and notes what it was asked."""

    name = "told"

    def __init__(self, say):
        self.say, self.calls = say, []

    def ask(self, calls: list[Call], usable) -> list:
        self.calls += calls
        return [self.say(call) for call in calls]


@pytest.fixture
def small(questions: Path) -> Bench:
    return mt_bench_job.read(mt_bench_job.Files(data=questions))[0]


@pytest.fixture
def ada(questions: Path) -> dict[int, Answer]:
    return mt_bench.read_answers(questions / "ada.jsonl")["ada"]


@pytest.fixture
def bob(questions: Path) -> dict[int, Answer]:
    return mt_bench.read_answers(questions / "bob.jsonl")["bob"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Rating: [[5]]", 5),
        ("[[7.5]] and [[3]]", 7.5),
        ("[8] then [[6]]", 6),
        ("It is [8].", 8),
        ("[[9.]]", 9.0),
        ("[[ 5 ]] no", -1),
        ("[[-3]]", -1),
        ("$ERROR$", -1),
        ("[[07]]", 7),
        ("", -1),
    ],
)
def test_ratings(text: str, expected: float):
    assert mt_bench.rating(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [("[[A]]", "A"), ("so [[B]] it is", "B"), ("[[C]]", "tie"), ("[[B]] not [[A]]", "A"), ("A is better", "error")],
)
def test_verdicts(text: str, expected: str):
    assert mt_bench.verdict(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"), [("[[8, 6]]", "A"), ("[[6,8]]", "B"), ("[7,7.1]", "tie"), ("[[7]]", "error")]
)
def test_verdicts_of_two_ratings(text: str, expected: str):
    assert mt_bench.verdict(text, "[[rating_a,rating_b]]") == expected


def test_single_prompts_by_category_and_turn(small: Bench, ada: dict[int, Answer]):
    judge = Told(lambda call: Reply("[[4]]"))
    rows = mt_bench.judge_single(small, ada, judge)
    assert len(rows) == 12 and {row["score"] for row in rows} == {4}
    by_key = {(row["question_id"], row["turn"]): row for row in rows}
    writing, maths = by_key[300, 1], by_key[301, 2]
    assert writing["judge"] == ["told", "single-v1"]
    assert writing["user_prompt"] == question_set.RATE.format(question="What is 0?", answer="ada says 0.")
    assert maths["judge"] == ["told", "single-math-v1-multi-turn"]
    assert maths["user_prompt"] == question_set.RATE_TALK_BY_REFERENCE.format(
        question_1="What is 1?", question_2="And after 1?", ref_answer_1="One.", ref_answer_2="Two.",
        answer_1="ada says 1.", answer_2="ada says 2.",
    )  # fmt: skip
    assert [message.role for message in judge.calls[0].messages] == ["system", "user"]
    assert {(call.max_tokens, call.temperature) for call in judge.calls} == {(2048, 0.0)}


def test_braces_in_an_answer_stay(small: Bench):
    answers = {question.id: Answer("x", ("{question} {0} }{", "b")) for question in small.questions}
    rows = mt_bench.judge_single(small, answers, Told(lambda call: Reply("[[4]]")))
    assert "{question} {0} }{" in rows[0]["user_prompt"]


def test_a_failed_judgment_is_minus_one_and_says_why(small: Bench, ada: dict[int, Answer]):
    rows = mt_bench.judge_single(small, ada, Told(lambda call: Failure("no luck", was_asked=False)))
    assert rows[0] | {"user_prompt": ""} == {
        "question_id": 300, "model": "ada", "judge": ["told", "single-v1"], "user_prompt": "", "judgment": "$ERROR$",
        "score": -1, "turn": 1, "error": "no luck", "was_asked": False,
    }  # fmt: skip


def test_pairs_are_judged_in_both_orders(small: Bench, ada: dict[int, Answer], bob: dict[int, Answer]):
    # Whoever is shown first wins: with the places swapped the winners differ.
    rows = mt_bench.judge_pairs(small, ada, bob, Told(lambda call: Reply("[[A]]")))
    assert {(row["g1_winner"], row["g2_winner"]) for row in rows} == {("model_1", "model_2")}
    assert rows[0]["g1_user_prompt"].endswith("A: ada says 0.\nB: bob says 0.")
    assert rows[0]["g2_user_prompt"].endswith("A: bob says 0.\nB: ada says 0.")
    better = Told(lambda call: Reply("[[A]]" if call.messages[-1].content.index("bob") < 40 else "[[B]]"))
    rows = mt_bench.judge_pairs(small, ada, bob, better)
    assert [row["judge"][1] for row in rows[:2]] == ["pair-v2", "pair-math-v1"]
    assert {row["turn"] for row in rows} == {1, 2}


def test_wrong_files_are_named(questions: Path, tmp_path: Path):
    question_set.write(tmp_path / "q.jsonl", [{"question_id": 1, "category": "math"}])
    with pytest.raises(DataError, match=r"q.jsonl:1: not an MT-Bench question"):
        mt_bench.read_questions(tmp_path / "q.jsonl")
    question_set.write(tmp_path / "twice.jsonl", [{"question_id": 1, "category": "math", "turns": ["a"]}] * 2)
    with pytest.raises(DataError, match="twice"):
        mt_bench.read_questions(tmp_path / "twice.jsonl")
    with pytest.raises(DataError, match="not an MT-Bench answer"):
        mt_bench.read_answers(questions / "question.jsonl")
    question_set.write(tmp_path / "p.jsonl", [{"name": "single-v1", "type": "single", "system_prompt": ""}])
    with pytest.raises(DataError, match="prompt_template"):
        mt_bench.read_templates(tmp_path / "p.jsonl")


def test_what_the_bench_lacks_is_named(small: Bench, ada: dict[int, Answer]):
    judge = Told(lambda call: Reply("[[4]]"))
    with pytest.raises(DataError, match=r"question 301 \(math\) has no reference answer"):
        mt_bench.judge_single(Bench(small.questions, small.templates, {}), ada, judge)
    with pytest.raises(DataError, match="'single-v1'"):
        mt_bench.judge_single(Bench(small.questions, {}, small.references), ada, judge)


def test_categories_of_the_published_questions(shared_data: Path):
    questions = mt_bench.read_questions(shared_data / "mt_bench" / "question.jsonl")
    assert len(questions) == 80
    assert [mt_bench.category_of(question.id) for question in questions] == [each.category for each in questions]
    assert mt_bench.category_of(80) == mt_bench.category_of(161) == "unknown"
    assert {each.temperature for each in questions} == {0.0, 0.1, 0.7}


def test_prompts_are_the_recorded_ones_byte_for_byte(shared_data: Path):
    folder = shared_data / "mt_bench"
    bench_, _ = mt_bench_job.read(mt_bench_job.Files(data=folder))
    answers = mt_bench.read_answers(folder / "model_answer_vicuna-7b-v1.3.jsonl")["vicuna-7b-v1.3"]
    ours = {
        (r["question_id"], r["turn"]): r for r in mt_bench.judge_single(bench_, answers, Told(lambda c: Failure("")))
    }
    recorded = [row for _, row in published.rows(folder / "judged_vicuna7b_gpt-4_single.jsonl")]
    recorded = [row for row in recorded if row["model"] == "vicuna-7b-v1.3"]
    same = [row for row in recorded if row["user_prompt"] == ours[row["question_id"], row["turn"]]["user_prompt"]]
    # The held answers are another generation's: 39 prompts hold another answer, and those alone differ.
    assert (len(recorded), len(same)) == (160, 121)
    for row in recorded:
        last = answers[row["question_id"]].turns[: row["turn"]]
        assert (row in same) == all(turn in row["user_prompt"] for turn in last)
        assert row["judge"][1] == ours[row["question_id"], row["turn"]]["judge"][1]


def test_pairwise_prompts_are_the_recorded_ones(shared_data: Path):
    folder = shared_data / "mt_bench"
    bench_, _ = mt_bench_job.read(mt_bench_job.Files(data=folder))
    first, second = (
        mt_bench.read_answers(folder / f"model_answer_{name}.jsonl")[name] for name in ("phi-3", "phi-3-dpo")
    )
    ours = {
        (r["question_id"], r["turn"]): r
        for r in mt_bench.judge_pairs(bench_, first, second, Told(lambda c: Failure("")))
    }
    recorded = [row for _, row in published.rows(folder / "judged_phi3_vs_phi3dpo_gpt-4_pair.jsonl")]
    for row in recorded:
        own = ours[row["question_id"], row["turn"]]
        assert (own["g1_user_prompt"], own["g2_user_prompt"]) == (row["g1_user_prompt"], row["g2_user_prompt"])
        named = {"A": "model_1", "B": "model_2"}
        assert named.get(v := mt_bench.verdict(row["g1_judgment"]), v) == row["g1_winner"]
    assert len(recorded) == 75
