"""Judgments, annotations, answers and outputs that someone gives: one rule reads a column, odd rows are named, and two
models or judges in one file are told apart or refused."""

import json
from pathlib import Path
from typing import Any

import pytest
import question_set

from bactrian import evaluating
from bactrian.errors import DataError, JudgeError, RunError
from bactrian.evaluate import alpaca_eval, answers, compare, judge_quality, mt_bench, mt_bench_job
from bactrian.evaluate import judge as judges
from bactrian.evaluate.alpaca_eval_job import Files
from bactrian.evaluate.artifacts import Folder
from bactrian.evaluate.calls import Call, Reply, chat
from bactrian.evaluate.mt_bench import Question
from bactrian.evaluate.protocol import Settings


def annotated(*preferences: Any, **more: Any) -> list[dict[str, Any]]:
    named = {"generator_1": "ref", "generator_2": "mine", "annotator": "a"} | more
    return [
        {"instruction": f"i{n}", "output_1": "ref", "output_2": "mine", "preference": value, **named}
        for n, value in enumerate(preferences)
    ]


def rated(*scores: Any, **more: Any) -> list[dict[str, Any]]:
    named = {"model": "ada", "judge": ["gpt-4", "single-v1"]} | more
    return [{"question_id": 81 + n, "turn": 1, "score": score, **named} for n, score in enumerate(scores)]


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text(json.dumps(rows), encoding="utf-8")
    return path


def test_a_preference_is_read_by_one_rule(tmp_path: Path):
    values = (2, 1, 1.5, 0, 1.25, 2, 2, 1, 2, 2)
    path = write(tmp_path / "a.json", annotated(*values, None))
    shares = [1, 0, 0.5, 0.5, 0.25, 1, 1, 0, 1, 1]
    scores = evaluating.score_annotations(path, Files(), 1, None)
    assert scores["win_rate"] == pytest.approx(100 * sum(shares) / 10, abs=1e-12) and scores["failed"] == 1
    zero = write(tmp_path / "zero.json", annotated(*([1] * 11)))
    found = compare.run(path, zero)["AlpacaEval"]
    assert (found["difference"], found["n"]) == (pytest.approx(scores["win_rate"], abs=1e-12), 10)


@pytest.mark.parametrize("draw", [0, 0.0, 1.5])
@pytest.mark.parametrize("odd", [None, float("nan"), 3, -1, 0.5, 10**400, float("inf")])
def test_equal_files_differ_by_nothing(tmp_path: Path, draw: float, odd: Any):
    first = write(tmp_path / "first.json", annotated(*([draw] * 6 + [2] * 6), odd))
    second = write(tmp_path / "second.json", annotated(*([1.5] * 6 + [2] * 6), None))
    found = compare.run(first, second)["AlpacaEval"]
    assert (found["difference"], found["low"], found["high"], found["n"]) == (0, 0, 0, 12)
    scores = [evaluating.score_annotations(path, Files(), 1, None) for path in (first, second)]
    assert scores[0] == scores[1] and scores[0]["failed"] == 1


def test_too_many_without_a_verdict_are_no_score_and_no_comparison(tmp_path: Path):
    good = write(tmp_path / "good.json", annotated(*([2] * 8)))
    bad = write(tmp_path / "bad.json", annotated(*([2] * 7), float("nan")))
    for call in (
        lambda: evaluating.score_annotations(bad, Files(), 1, tmp_path / "out"),
        lambda: compare.run(good, bad),
        lambda: compare.run(bad, good),
    ):
        with pytest.raises(JudgeError, match=r"1 of 8 judgments failed .its preference is nan"):
            call()
    assert not (tmp_path / "out").exists()
    rows = [*rated(*([5] * 10), model="ada"), *rated(5, -1, 15, judgment="[[15]]", model="bob")]
    judged = write(tmp_path / "judged.json", rows)
    with pytest.raises(JudgeError, match=r"of bob, 2 of 3 judgments failed .*one reply: .\[\[15\]\]"):
        evaluating.score_judgments(judged, None, None, tmp_path / "out")
    only = write(tmp_path / "only.json", rated(*([5] * 10), 0.5))
    assert evaluating.score_judgments(only, None, None)["ada"] | {"interval": None} == {
        "average": 5.0, "turn1": 5.0, "turn2": None, "categories": {"writing": 5.0}, "n": 10,
        "failed": 1, "interval": None,
    }  # fmt: skip
    lost = write(tmp_path / "lost.json", rated(*([-1] * 3)))
    for call in (
        lambda: evaluating.score_judgments(lost, None, None),
        lambda: compare.run(lost, only),
        lambda: compare.run(only, lost),
    ):
        with pytest.raises(JudgeError, match="3 of 3 judgments failed"):
            call()


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"score": "5"}, "should be a number"),
        ({"score": True}, "should be a number"),
        ({"score": [5]}, "should be a number"),
        ({"score": {}}, "should be a number"),
        ({"question_id": None}, "whole number"),
        ({"turn": 1.5}, "whole number"),
        ({"turn": "1"}, "whole number"),
        ({"model": None}, "`model` is missing"),
        ({"model": ["ada"]}, "`model` is not text"),
    ],
)
def test_an_odd_judgment_is_named(tmp_path: Path, row: dict[str, Any], message: str):
    rows = rated(5, 6, 7)
    path = tmp_path / "j.jsonl"
    question_set.write(path, [*rows, rows[0] | row])
    with pytest.raises(DataError, match=rf"j.jsonl:4: .*{message}"):
        evaluating.score_judgments(path, None, None)


@pytest.mark.parametrize("winner", ["A", 1, True, ["model_1"], {}, float("nan")])
def test_an_odd_winner_is_named(tmp_path: Path, winner: Any):
    pair = {"question_id": 81, "turn": 1, "model_1": "a", "model_2": "b", "g1_winner": "model_1", "g2_winner": winner}
    question_set.write(tmp_path / "p.jsonl", [pair])
    with pytest.raises(DataError, match=r"p.jsonl:1: the winner of a game"):
        evaluating.score_judgments(tmp_path / "p.jsonl", None, None)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"preference": "2"}, "should be a number"),
        ({"preference": True}, "should be a number"),
        ({"preference": [2]}, "should be a number"),
        ({"instruction": 5}, "`instruction` is not text"),
        ({"output_2": "\ud800"}, "half of a surrogate pair"),
    ],
)
def test_an_odd_annotation_is_named(tmp_path: Path, row: dict[str, Any], message: str):
    rows = annotated(2, 2)
    question_set.write(tmp_path / "a.jsonl", [rows[0], rows[1] | row])
    with pytest.raises(DataError, match=rf"a.jsonl:2: .*{message}"):
        evaluating.score_annotations(tmp_path / "a.jsonl", Files(), 1, None)


@pytest.mark.parametrize("row", [{"id": "x", "value": "1"}, {"id": ["x"], "value": 1}, {"id": "x", "value": 7}])
def test_an_odd_item_of_a_benchmark_is_named(tmp_path: Path, row: dict[str, Any]):
    question_set.write(tmp_path / "gsm8k.jsonl", [{"id": "a", "value": 1.0}, row])
    with pytest.raises(DataError, match=r"gsm8k.jsonl:2: "):
        compare.run(tmp_path / "gsm8k.jsonl", tmp_path / "gsm8k.jsonl")


# Two in one file


def test_two_judges_in_one_file_are_told_apart(tmp_path: Path):
    both = write(tmp_path / "j.json", [*rated(8, 8), *rated(2, 2, judge=["claude", "single-v1"])])
    with pytest.raises(DataError, match=r"2 judges in one file \(gpt-4, claude\); say with --judge-model"):
        evaluating.score_judgments(both, None, None)
    assert evaluating.score_judgments(both, None, None, judge="claude")["ada"]["average"] == 2.0
    with pytest.raises(DataError, match="2 judges in one file"):
        compare.run(both, both)
    several = write(tmp_path / "p.json", rated(8, 8) + rated(4, judge=["gpt-4", "single-math-v1"]))
    assert evaluating.score_judgments(several, None, None, judge="other")["ada"]["n"] == 3, "one judge, two prompts"


def test_two_models_or_judges_of_annotations_are_told_apart(tmp_path: Path):
    models = write(tmp_path / "m.json", [*annotated(2, 2), *annotated(1, 1, generator_2="other")])
    with pytest.raises(DataError, match=r"2 models in one file \(mine, other\); say with --name"):
        evaluating.score_annotations(models, Files(), 1, None)
    assert evaluating.score_annotations(models, Files(), 1, None, name="other")["win_rate"] == 0.0
    judged = write(tmp_path / "j.json", [*annotated(2, 2), *annotated(1, 1, annotator="b")])
    with pytest.raises(DataError, match=r"2 judges in one file \(a, b\); say with --judge-model"):
        evaluating.score_annotations(judged, Files(), 1, None)
    assert evaluating.score_annotations(judged, Files(), 1, None, judge="a")["win_rate"] == 100.0
    against = write(tmp_path / "r.json", [*annotated(2), *annotated(1, generator_1="b")])
    for path in (models, judged, against):
        with pytest.raises(DataError, match=r"in one file .*split it"):
            compare.run(path, path)


def test_two_models_of_outputs_and_references_are_told_apart(tmp_path: Path):
    rows = [{"instruction": "i", "output": name, "generator": name} for name in ("ada", "bob")]
    path = write(tmp_path / "o.json", rows)
    with pytest.raises(DataError, match=r"2 models in one file \(ada, bob\); say with --name"):
        answers.given_alpaca_eval(path, None)
    with pytest.raises(DataError, match="2 models in one file"):
        answers.given_alpaca_eval(path, "eve")
    assert [each.output for each in answers.given_alpaca_eval(path, "bob")] == ["bob"]
    one = write(tmp_path / "one.json", rows[:1])
    assert answers.given_alpaca_eval(one, "eve")[0].generator == "eve"


def test_reference_answers_are_of_one_model(questions: Path, tmp_path: Path):
    both = [question_set.answer(301, name, ["1", "2"]) for name in ("gpt-4", "gpt-3")]
    question_set.write(tmp_path / "r.jsonl", both)
    with pytest.raises(DataError, match="reference answers of gpt-4, gpt-3"):
        mt_bench_job.read(mt_bench_job.Files(references=tmp_path / "r.jsonl", data=questions))


def test_a_replay_is_of_one_judge(tmp_path: Path):
    call = Call(chat(None, "a"), 3)
    request = {"messages": [{"role": "user", "content": "a"}]}
    rows = [{"model": name, "request": request, "reply": {"text": name}, "usable": True} for name in ("x", "y")]
    question_set.write(tmp_path / "calls.jsonl", rows)
    with pytest.raises(DataError, match=r"2 judges in one file \(x, y\)"):
        judges.replay(tmp_path / "calls.jsonl")
    found = judges.replay(tmp_path / "calls.jsonl", judge="y")
    assert (found.name, found.ask([call], bool)) == ("y", [Reply("y")])
    rows = [{"user_prompt": "a", "judgment": name, "judge": [name, "p"]} for name in ("x", "y")]
    question_set.write(tmp_path / "j.jsonl", rows)
    with pytest.raises(DataError, match="2 judges in one file"):
        judges.replay(tmp_path / "j.jsonl")
    assert judges.replay(tmp_path / "j.jsonl", judge="y").ask([call], bool) == [Reply("y")]


def test_annotations_off_the_scale_are_replayed_as_no_verdict():
    rows = annotated(3, float("nan"), 0, 1.25)
    for version in (1, 2):
        found = alpaca_eval.kept_replies(rows, question_set.CHOOSING, version)
        assert len([each for each in found.values() if alpaca_eval.preference(each, version) is not None]) <= 2


# Answers that were made


class Silent:
    def generate(self, prompts: Any, settings: Settings) -> list[str]:
        return ["said"] * len(prompts)


QUESTION = Question(1, "stem", ("a", "b"), 0.0)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("5", "not an MT-Bench answer"),
        ("[]", "not an MT-Bench answer"),
        ('{"question_id": 1}', "not an MT-Bench answer"),
        ('{"question_id": true, "choices": [{"turns": ["a", "b"]}]}', "not an MT-Bench answer"),
        ('{"question_id": 1, "choices": [{"turns": ["a", 5]}]}', "not an MT-Bench answer"),
        ('{"question_id": 1, "choices": [{"turns": ["a", "\\ud800"]}]}', "half of a surrogate pair"),
        ("[" * 100_000, "nested too deep"),
        ('{"question_id": 1,', "not JSON"),
    ],
)
def test_an_odd_answer_in_the_folder_is_named(tmp_path: Path, line: str, message: str):
    (tmp_path / "answers.jsonl").write_text(line + "\n", encoding="utf-8")
    with pytest.raises(DataError, match=rf"answers.jsonl:1: .*{message}"):
        answers.answer_mt_bench(Folder(tmp_path), Silent(), "ada", [QUESTION], Settings())
    if "MT-Bench" in message:
        with pytest.raises(DataError, match=r"answers.jsonl:1: .*"):
            answers.made_alpaca_eval(Folder(tmp_path), "ada")


def test_an_answer_with_too_few_turns_is_named(tmp_path: Path):
    question_set.write(tmp_path / "answers.jsonl", [question_set.answer(1, "ada", ["a"])])
    with pytest.raises(DataError, match="fewer turns"):
        answers.answer_mt_bench(Folder(tmp_path), Silent(), "ada", [QUESTION], Settings())


def test_settings_that_are_none_are_named(tmp_path: Path):
    for text in ("[1]", "{", "[" * 100_000):
        (tmp_path / "settings.json").write_text(text)
        with pytest.raises(RunError, match="choose another --out"):
            Folder(tmp_path).settle({"model": "a"})


def test_a_turn_with_half_a_surrogate_pair_is_no_text(tmp_path: Path):
    row = json.dumps(question_set.answer(1, "ada", ["a", "\ud800"]))
    (tmp_path / "a.jsonl").write_text(row + "\n", encoding="utf-8")
    with pytest.raises(DataError, match="not an MT-Bench answer"):
        mt_bench.read_answers(tmp_path / "a.jsonl")


@pytest.mark.parametrize("temperature", ["0.7", None, float("nan"), -1, True, [0.7]])
def test_an_odd_temperature_is_named(tmp_path: Path, temperature: Any):
    row = {"question_id": 1, "category": "stem", "turns": ["a"], "required_temperature": temperature}
    question_set.write(tmp_path / "q.jsonl", [row])
    with pytest.raises(DataError, match=r"q.jsonl:1: `required_temperature`"):
        mt_bench.read_questions(tmp_path / "q.jsonl")


def test_labels_of_pairs(tmp_path: Path):
    row = {"input": "a", "output_1": "b", "output_2": "c"}
    question_set.write(tmp_path / "p.jsonl", [row | {"label": 1.0}])
    assert str(judge_quality.read([tmp_path / "p.jsonl"])[0].label) == "1"
    for label in (True, "1", [1], None):
        question_set.write(tmp_path / "p.jsonl", [row | {"label": label}])
        with pytest.raises(DataError, match=r"p.jsonl:1: `label`"):
            judge_quality.read([tmp_path / "p.jsonl"])


def test_a_prompt_with_other_slots_is_named():
    item = judge_quality.Item("a", ("b", "c"), 1, "s")
    for text in ("{other}", "{0}", "{question", "{question.x}", "{question[x]}"):
        template = mt_bench.Template("pair-v2", "pairwise", "", text, "[[A]]")
        with pytest.raises(DataError, match="judge prompt 'pair-v2': cannot be filled in"):
            judge_quality.calls([item], template, 1, 0.0)
