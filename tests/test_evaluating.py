"""`bactrian evaluate` from a model to scores: the whole chain on a tiny model and a judge over HTTP."""

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import many_hosts
import pytest
import question_set
import safetensors.numpy
import tiny
from fake_judge import FAULTS, FakeJudge

QUICK = ("--judge-model", "judge-7", "--retry-wait", "0.01")
# For a judge that hangs. Where requests are counted it has no place: what is late is sent again, and on a busy machine
# anything may be late.
HASTY = ("--timeout", "0.5")


@pytest.fixture(scope="module")
def questions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return question_set.make(tmp_path_factory.mktemp("questions"))


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch, questions: Path, in_tiny_cache: None) -> None:
    monkeypatch.setenv("BACTRIAN_DATA", str(questions))
    for name in ("OPENAI_API_KEY", "BACTRIAN_JUDGE", "BACTRIAN_JUDGE_MODEL"):
        monkeypatch.delenv(name, raising=False)


def evaluate(*arguments: object) -> tiny.Done:
    return tiny.call("evaluate", *arguments)


def scores(done: tiny.Done) -> dict:
    assert done.code == 0, done.err
    return json.loads(done.out)


def test_mt_bench_of_a_model_with_and_without_faults(tiny_recipe: Path, tmp_path: Path):
    model = tiny_recipe.parent / "base"
    asked = ("mt-bench", model, "--max-tokens", 8, "--json", *QUICK, *HASTY)
    with FakeJudge().running() as judge:
        clean = scores(evaluate(*asked, "--judge", judge.url, "--out", tmp_path / "clean"))
    with FakeJudge(FAULTS, seed=2, rate=0.8, hang=1.0).running() as judge:
        faulty = scores(evaluate(*asked, "--judge", judge.url, "--out", tmp_path / "faulty"))
        assert judge.done.total() > 3
    assert clean == faulty
    kept = [row["key"] for row in question_set.read(tmp_path / "faulty" / "calls.jsonl") if row.get("usable")]
    assert len(kept) == len(set(kept)) == 12, "nothing that was answered is asked again"
    assert (clean["base"]["n"], clean["base"]["failed"]) == (12, 0)
    for name in ("questions.jsonl", "answers.jsonl", "judgments.jsonl", "page.html", "radar.png", "settings.json"):
        first, second = (tmp_path / each / name for each in ("clean", "faulty"))
        assert first.read_bytes() == second.read_bytes(), name
    written = json.loads((tmp_path / "clean" / "scores.json").read_text())
    assert written["scores"] == clean and written["judge"] == "judge-7"
    assert written["results"][0]["value"] == clean["base"]["average"]


def test_each_file_can_be_made_again_from_the_one_before(tiny_recipe: Path, tmp_path: Path):
    model = tiny_recipe.parent / "base"
    out = tmp_path / "out"
    with FakeJudge().running() as judge:
        first = scores(
            evaluate("mt-bench", model, "--max-tokens", 8, "--json", *QUICK, "--judge", judge.url, "--out", out)
        )
        sent = judge.sent.total()
        (out / "judgments.jsonl").unlink()
        (out / "scores.json").unlink()
        again = evaluate("mt-bench", model, "--max-tokens", 8, "--json", *QUICK, "--judge", judge.url, "--out", out)
        assert scores(again) == first and judge.sent.total() == sent, "nothing is asked twice"
    from_judgments = scores(
        evaluate("mt-bench", "--judgments", out / "judgments.jsonl", "--questions", out / "questions.jsonl", "--json")
    )
    assert from_judgments == first
    answers = out / "answers.jsonl"
    replayed = scores(
        evaluate("mt-bench", answers, "--judge", f"replay:{out / 'judgments.jsonl'}", "--out", tmp_path / "r", "--json")
    )
    assert replayed["base"]["average"] == first["base"]["average"]


def test_a_killed_evaluation_goes_on(tiny_recipe: Path, tiny_cache: Path, questions: Path, tmp_path: Path):
    arguments = ["evaluate", "mt-bench", tiny_recipe.parent / "base", "--max-tokens", 8, "--json", *QUICK]
    arguments += ["--concurrency", 2, "--out", tmp_path / "out", "--data", questions]
    with FakeJudge(delay=0.3).running() as judge:
        command = tiny.command(*arguments, "--judge", judge.url)
        child = subprocess.Popen(
            command, env=tiny.environment(tiny_cache), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        many_hosts.wait_for(lambda: judge.good.total() >= 4, [child])
        child.send_signal(signal.SIGKILL)
        child.wait(timeout=30)
        answers = (tmp_path / "out" / "answers.jsonl").read_bytes()
        kept = {row["key"] for row in question_set.read(tmp_path / "out" / "calls.jsonl")}
        assert 0 < len(kept) < 12
        judge.delay = 0.0
        done = evaluate(*arguments[1:], "--judge", judge.url)
        assert scores(done)["base"]["n"] == 12
        assert (tmp_path / "out" / "answers.jsonl").read_bytes() == answers, "no answer is made again"
        assert judge.sent.total() <= 12 + 2, "but for the two on their way"
    keys = [row["key"] for row in question_set.read(tmp_path / "out" / "calls.jsonl")]
    assert len(keys) == len(set(keys)) == 12


def test_alpaca_eval_of_a_model_both_versions(tiny_recipe: Path, tmp_path: Path):
    model = tiny_recipe.parent / "base"
    for version in (1, 2):
        asked = ("alpaca-eval", model, "--version", version, "--max-tokens", 8, "--json", *QUICK, *HASTY)
        with FakeJudge().running() as judge:
            clean = scores(evaluate(*asked, "--judge", judge.url, "--out", tmp_path / f"clean{version}"))
        with FakeJudge(FAULTS, seed=5, rate=0.8, hang=1.0).running() as judge:
            faulty = scores(evaluate(*asked, "--judge", judge.url, "--out", tmp_path / f"faulty{version}"))
            assert judge.done.total() > 2
        assert clean == faulty and clean["n_total"] == 6 and clean["length_controlled_winrate"] is None
        again = scores(evaluate("alpaca-eval", "--annotations", tmp_path / f"clean{version}/judgments.jsonl", "--json"))
        assert again == clean
        assert (tmp_path / f"clean{version}" / "win_rates.png").is_file()


def test_answers_of_a_file_and_of_an_address(questions: Path, tmp_path: Path):
    with FakeJudge().running() as judge:
        given = scores(evaluate("alpaca-eval", questions / "cleo.json", "--json", *QUICK, "--judge", judge.url,
                                "--out", tmp_path / "file"))  # fmt: skip
        assert given["n_total"] == 6
        served = scores(evaluate("mt-bench", judge.url, "--model-name", "served", "--json", *QUICK,
                                 "--judge", judge.url, "--out", tmp_path / "address"))  # fmt: skip
        assert list(served) == ["served"]
    asked = [row["request"] for row in question_set.read(tmp_path / "address" / "answer_calls.jsonl")]
    talks = [each["messages"] for each in asked if len(each["messages"]) == 3]
    assert len(talks) == 6 and talks[0][1]["role"] == "assistant", "the second turn sees the first"
    assert {each["temperature"] for each in asked} == {0.7, 0.0, 0.1}


def test_two_models_in_pairs(questions: Path, tmp_path: Path):
    with FakeJudge().running() as judge:
        found = scores(evaluate("mt-bench", questions / "ada.jsonl", "--against", questions / "bob.jsonl", "--json",
                                *QUICK, "--judge", judge.url, "--out", tmp_path / "pairs"))  # fmt: skip
        assert judge.sent.total() == 24
    assert set(found) == {"ada", "bob"} and found["ada"]["win"] == found["bob"]["loss"]
    assert question_set.read(tmp_path / "pairs" / "judgments.jsonl")[0]["model_1"] == "ada"


def test_a_model_judges(tiny_recipe: Path, questions: Path, tmp_path: Path):
    model = tiny_recipe.parent / "base"
    found = scores(evaluate("alpaca-eval", questions / "cleo.json", "--version", 2, "--judge", f"engine:{model}",
                            "--out", tmp_path / "out", "--json"))  # fmt: skip
    assert found["n_total"] == 6, "it compares the two names' log-probabilities, so it always has a verdict"
    rows = question_set.read(tmp_path / "out" / "judgments.jsonl")
    assert all(1 < row["preference"] < 2 for row in rows)


def test_a_dry_run_asks_nobody(questions: Path, tmp_path: Path):
    with FakeJudge().running() as judge:
        found = scores(evaluate("mt-bench", questions / "ada.jsonl", "--dry-run", "--json", *QUICK, "--price-in", 10,
                                "--judge", judge.url, "--out", tmp_path / "out"))  # fmt: skip
        assert judge.sent.total() == 0 and not (tmp_path / "out").exists()
    assert (found["judge_calls"], found["judge_calls_kept"], found["answers_to_make"]) == (12, 0, 0)
    assert found["judge_tokens_in_about"] > 100 and found["judge_cost_at_most_about"] > 0
    model = evaluate(
        "mt-bench", "hf:some/model", "--dry-run", "--json", *QUICK, "--judge", "http://x", "--out", tmp_path
    )
    assert scores(model)["answers_to_make"] == 6


def test_a_spent_budget_stops_and_keeps(questions: Path, tmp_path: Path):
    asked = ("mt-bench", questions / "ada.jsonl", "--json", *QUICK, "--out", tmp_path / "out")
    with FakeJudge().running() as judge:
        done = evaluate(*asked, "--judge", judge.url, "--max-calls", 5)
        assert done.code == 1 and "7 of 12 judgments were not asked for: the budget is spent" in done.err
        assert judge.sent.total() == 5 and not (tmp_path / "out" / "scores.json").exists()
        assert sum(row["score"] != -1 for row in question_set.read(tmp_path / "out" / "judgments.jsonl")) == 5
        assert scores(evaluate(*asked, "--judge", judge.url, "--max-calls", 12))["ada"]["n"] == 12
        assert judge.sent.total() == 12


def test_errors_are_one_line(questions: Path, tiny_recipe: Path, tmp_path: Path):
    out = ("--out", tmp_path / "out")
    for arguments, message in (
        (("mt-bench",), "nothing to evaluate"),
        (("mt-bench", questions / "ada.jsonl"), "say with --out"),
        (("mt-bench", questions / "ada.jsonl", "--judge", "http://127.0.0.1:9", *out), "--judge-model"),
        (("mt-bench", questions / "ada.jsonl", "--judge", "gpt-4", *out), "give an address"),
        (("mt-bench", questions / "ada.jsonl", "--judge", "https://api.openai.com/v1", "--judge-model", "g", *out),
         "set OPENAI_API_KEY"),
        (("mt-bench", "http://127.0.0.1:9", *out), "--model-name"),
        (("mt-bench", questions / "cleo.json", *out), "not an MT-Bench answer"),
        (("mt-bench", questions / "ada.jsonl", "--questions", questions / "cleo.json", *out), "MT-Bench question"),
        (("alpaca-eval", questions / "ada.jsonl", *out), "`instruction` is missing"),
        (("alpaca-eval", "--annotations", questions / "cleo.json"), "needs `preference`"),
        (("mt-bench", "--judgments", questions / "cleo.json"), "not an MT-Bench judgment"),
        (("judge", questions / "cleo.json", *out), "`input` is missing"),
    ):  # fmt: skip
        shutil.rmtree(tmp_path / "out", ignore_errors=True)
        done = evaluate(*arguments)
        assert done.code == 2 and message in done.err, (arguments, done.err)
        assert len([line for line in done.err.splitlines() if line.startswith("error")]) == 1
    done = evaluate("mt-bench", questions / "ada.jsonl", "--judge", "http://127.0.0.1:9", *QUICK, "--retries", 1, *out)
    assert done.code == 1 and "cannot be reached" in done.err


def test_answers_to_another_question_set_are_refused(questions: Path, tmp_path: Path):
    question_set.write(tmp_path / "q.jsonl", [{"question_id": 900, "category": "stem", "turns": ["Why?"]}])
    done = evaluate("mt-bench", questions / "ada.jsonl", "--questions", tmp_path / "q.jsonl", "--out", tmp_path / "o")
    assert done.code == 2 and "no answer to 1 of the 1 questions, the first 900" in done.err


def test_other_settings_do_not_mix(tiny_recipe: Path, tmp_path: Path):
    model = tiny_recipe.parent / "base"
    assert evaluate("mt-bench", model, "--max-tokens", 8, "--out", tmp_path / "o").code == 0
    done = evaluate("mt-bench", model, "--max-tokens", 9, "--out", tmp_path / "o")
    assert done.code == 2 and "max_tokens was 8, is 9" in done.err


def test_answers_of_another_model_are_not_taken_for_its_own(tiny_recipe: Path, questions: Path, tmp_path: Path):
    one, other = tmp_path / "one" / "base", tmp_path / "other" / "base"
    for folder in (one, other):
        shutil.copytree(tiny_recipe.parent / "base", folder)
    weights = safetensors.numpy.load_file(other / "model.safetensors")
    safetensors.numpy.save_file({name: 2 * weight for name, weight in weights.items()}, other / "model.safetensors")
    out = ("--max-tokens", 8, "--out", tmp_path / "o")
    assert evaluate("mt-bench", one, *out).code == 0
    made = (tmp_path / "o" / "answers.jsonl").read_bytes()
    done = evaluate("mt-bench", other, *out)
    assert done.code == 2 and "made otherwise (weights was" in done.err
    done = evaluate("mt-bench", questions / "ada.jsonl", "--out", tmp_path / "o")
    assert done.code == 2 and "the answers of a model are there" in done.err
    # What is refused changes nothing.
    done = evaluate("mt-bench", one, *out, "--limit", 2)
    assert done.code == 2 and "answers to other questions are there" in done.err
    assert len(question_set.read(tmp_path / "o" / "questions.jsonl")) == 6
    assert (tmp_path / "o" / "answers.jsonl").read_bytes() == made
    with FakeJudge().running() as judge:
        own = scores(evaluate("mt-bench", tmp_path / "o" / "answers.jsonl", "--out", tmp_path / "o", "--json", *QUICK,
                              "--judge", judge.url))  # fmt: skip
    assert list(own) == ["base"], "its own answers may be given back to a folder"


def test_a_judge_that_is_lost_midway_leaves_no_score(questions: Path, tmp_path: Path):
    asked = ("mt-bench", questions / "ada.jsonl", "--json", *QUICK, "--retries", 1, "--concurrency", 1)
    with FakeJudge(hang=0.1).running() as judge:
        judge.stopped_after = 5
        done = evaluate(*asked, "--judge", judge.url, "--out", tmp_path / "o")
    assert done.code == 1 and "7 of 12 judgments failed" in done.err and "too many for a score" in done.err
    assert not (tmp_path / "o" / "scores.json").exists()
    with FakeJudge().running() as judge:
        assert scores(evaluate(*asked, "--judge", judge.url, "--out", tmp_path / "o"))["ada"]["n"] == 12
        assert judge.sent.total() == 7


@pytest.mark.parametrize("verb", ["mt-bench", "pairs", "alpaca-eval", "judge"])
def test_a_judge_without_verdicts_makes_no_score(questions: Path, tmp_path: Path, verb: str):
    pairs = [{"input": f"q{n}", "output_1": "a", "output_2": "bb", "label": 1 + n % 2} for n in range(6)]
    (tmp_path / "pairs.json").write_text(json.dumps(pairs))
    asked = {
        "mt-bench": ("mt-bench", questions / "ada.jsonl"),
        "pairs": ("mt-bench", questions / "ada.jsonl", "--against", questions / "bob.jsonl"),
        "alpaca-eval": ("alpaca-eval", questions / "cleo.json", "--version", 2),
        "judge": ("judge", tmp_path / "pairs.json"),
    }[verb]
    asked = (*asked, "--json", *QUICK, "--reasks", 1, "--out", tmp_path / "o")
    with FakeJudge(("says_no",), rate=2).running() as judge:
        done = evaluate(*asked, "--judge", judge.url)
        sent = judge.sent.total()
        again = evaluate(*asked, "--judge", judge.url)
        assert judge.sent.total() == sent, "what was answered is not asked again"
    for each in (done, again):
        assert each.code == 1 and each.out == "" and "Traceback" not in each.err
        assert 'one reply: "I' in each.err.splitlines()[-1] and "finish reason stop" in each.err.splitlines()[-1]
        assert "judgments failed (" in each.err and "larger --reasks" in each.err
    assert not (tmp_path / "o" / "scores.json").exists()
    rows = question_set.read(tmp_path / "o" / "judgments.jsonl")
    assert all(row["error"] and row["finish_reason"] == "stop" for row in rows)
    with FakeJudge().running() as judge:
        assert scores(evaluate(*asked, "--judge", judge.url, "--reasks", 2)), "others are asked for"


def test_both_sides_of_a_comparison_are_asked_alike(tiny_recipe: Path, tmp_path: Path):
    base = tiny_recipe.parent / "base"
    with FakeJudge().running() as judge:
        found = scores(evaluate("mt-bench", base, "--against", judge.url, "--against-name", "served", "--max-tokens", 8,
                                "--json", *QUICK, "--judge", judge.url, "--out", tmp_path / "o"))  # fmt: skip
    assert set(found) == {"base", "served"}
    settings = json.loads((tmp_path / "o" / "against" / "settings.json").read_text())
    assert (settings["model"], settings["max_tokens"]) == ("served", 8)


def test_two_evaluations_are_compared_item_by_item(questions: Path, tmp_path: Path):
    with FakeJudge().running() as judge:
        judged = ("--judge", judge.url, *QUICK, "--json")
        for name in ("ada", "bob"):
            scores(evaluate("mt-bench", questions / f"{name}.jsonl", *judged, "--out", tmp_path / name))
        scores(evaluate("alpaca-eval", questions / "cleo.json", *judged, "--out", tmp_path / "cleo"))
    found = scores(evaluate("compare", tmp_path / "ada", tmp_path / "bob", "--json"))
    both = [row for name in ("ada", "bob") for row in question_set.read(tmp_path / name / "judgments.jsonl")]
    question_set.write(tmp_path / "both.jsonl", both)
    together = scores(evaluate("mt-bench", "--judgments", tmp_path / "both.jsonl", "--json"))
    assert found["MT-Bench"] == together["ada"]["versus"]["bob"] | {"only_first": 0, "only_second": 0}
    mirrored = together["bob"]["versus"]["ada"]
    assert mirrored["difference"] == -found["MT-Bench"]["difference"]
    assert mirrored["p_value"] == found["MT-Bench"]["p_value"]
    same = scores(evaluate("compare", tmp_path / "cleo", tmp_path / "cleo" / "judgments.jsonl", "--json"))
    assert (same["AlpacaEval"]["difference"], same["AlpacaEval"]["n"]) == (0.0, 6)
    shown = evaluate("compare", tmp_path / "ada", tmp_path / "bob")
    assert shown.code == 0 and "McNemar" in shown.out
    done = evaluate("compare", tmp_path / "ada", tmp_path / "cleo")
    assert done.code == 2 and "nothing to compare" in done.err


def test_a_limit_is_said_wherever_the_score_is(questions: Path, tmp_path: Path):
    with FakeJudge().running() as judge:
        limited = ("--limit", 2, "--judge", judge.url, *QUICK, "--json")
        scores(evaluate("mt-bench", questions / "ada.jsonl", *limited, "--out", tmp_path / "m"))
        scores(evaluate("alpaca-eval", questions / "cleo.json", *limited, "--out", tmp_path / "a"))
    for name in ("m", "a"):
        (result,) = json.loads((tmp_path / name / "scores.json").read_text())["results"]
        assert result["note"] == "the first 2 questions alone"


def test_too_few_judgments_for_length_control_have_all_other_scores(shared_data: Path, tmp_path: Path):
    annotations = shared_data / "alpaca_eval" / "tulu-2-dpo-70b_alpaca_eval_gpt4_annotations.json"
    (tmp_path / "few.json").write_text(json.dumps(json.loads(annotations.read_text(encoding="utf-8"))[:5]))
    done = evaluate("alpaca-eval", "--annotations", tmp_path / "few.json", "--data", shared_data, "--json")
    assert done.code == 0 and "no length-controlled win rate" in done.err
    assert json.loads(done.out)["n_total"] == 5 and json.loads(done.out)["length_controlled_winrate"] is None


def test_what_length_control_needs_may_lie_beside_the_annotations(shared_data: Path, questions: Path):
    annotations = shared_data / "alpaca_eval" / "tulu-2-dpo-70b_alpaca_eval_gpt4_annotations.json"
    found = scores(evaluate("alpaca-eval", "--annotations", annotations, "--data", questions, "--json"))
    assert found["length_controlled_winrate"] == pytest.approx(84.26, abs=0.1)


def test_a_file_that_says_nothing(questions: Path, tmp_path: Path):
    rows = question_set.read(questions / "ada.jsonl")
    for row in rows:
        row["choices"][0]["turns"] = ["", " "]
    question_set.write(tmp_path / "mute.jsonl", rows)
    done = evaluate("mt-bench", tmp_path / "mute.jsonl", "--out", tmp_path / "o")
    assert done.code == 1 and "answered nothing to any of 12 prompts" in done.err


def test_a_model_that_says_nothing(tmp_path: Path):
    with FakeJudge().running() as judge, pytest.MonkeyPatch.context() as patch:
        patch.setattr("fake_judge.answer", lambda body: " ")
        done = evaluate("mt-bench", judge.url, "--model-name", "mute", "--out", tmp_path / "o")
    assert done.code == 1 and "mute answered nothing to any of 12 prompts" in done.err
    assert len(question_set.read(tmp_path / "o" / "answers.jsonl")) == 6, "what it said is kept"


def test_a_judges_quality(shared_data: Path, tmp_path: Path):
    (tmp_path / "pairs.json").write_text(
        json.dumps([{"input": f"q{n}", "output_1": "a", "output_2": "bb", "label": 1 + n % 2} for n in range(6)])
    )
    with FakeJudge().running() as judge:
        found = scores(evaluate("judge", tmp_path / "pairs.json", "--samples", 2, "--judge", judge.url, *QUICK,
                                "--out", tmp_path / "o", "--json"))  # fmt: skip
        assert judge.sent.total() == 24, "two samples of the same prompt are two calls"
    assert found["judgments"] == 24 and found["self_consistency"] == 1.0
    kept = [row | {"reply": row["reply"] | {"text": f"[[{'AB'[row['request']['sample']]}]]"}}
            for row in question_set.read(tmp_path / "o" / "calls.jsonl")]  # fmt: skip
    question_set.write(tmp_path / "torn.jsonl", kept)
    replayed = scores(evaluate("judge", tmp_path / "pairs.json", "--samples", 2, "--judge",
                               f"replay:{tmp_path / 'torn.jsonl'}", "--out", tmp_path / "r", "--json"))  # fmt: skip
    assert replayed["self_consistency"] == 0.0, "each sample has its own kept reply"


def test_results_are_on_the_card(tiny_run: Path, questions: Path, tmp_path: Path):
    from huggingface_hub import ModelCard

    run = tmp_path / "run"
    shutil.copytree(tiny_run, run, ignore=shutil.ignore_patterns("checkpoints"))
    with FakeJudge().running() as judge:
        found = scores(evaluate("mt-bench", run, "--max-tokens", 8, "--json", *QUICK, "--judge", judge.url))
    assert tiny.call("card", run).code == 0
    card = ModelCard.load(run / "export" / "README.md")
    average = next(iter(found.values()))["average"]
    results = [each for each in getattr(card.data, "eval_results", []) if each.metric_type == "mt_bench"]
    assert [each.metric_value for each in results] == [average]
    assert f"| MT-Bench | {average:.2f} |" in card.text and "judge-7" in card.text


def test_the_terminal_shows_tables(questions: Path, tmp_path: Path):
    with FakeJudge().running() as judge:
        done = evaluate("mt-bench", questions / "ada.jsonl", "--judge", judge.url, *QUICK, "--out", tmp_path / "o")
        assert done.code == 0 and "average" in done.out and "ada" in done.out
        done = evaluate("alpaca-eval", questions / "cleo.json", "--judge", judge.url, *QUICK, "--out", tmp_path / "p")
        assert done.code == 0 and "win rate" in done.out and "--difficulty" in done.err


def test_without_the_extra_a_line_says_what_to_install(
    questions: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setitem(sys.modules, "openai", None)
    done = evaluate(
        "mt-bench", questions / "ada.jsonl", "--judge", "http://127.0.0.1:9", *QUICK, "--out", tmp_path / "o"
    )
    assert done.code == 2 and "pip install 'bactrian[eval]'" in done.err


@pytest.mark.slow
def test_a_whole_run_of_a_real_model(shared_data: Path, smollm2: Path, tiny_cache: Path, tmp_path: Path):
    """MT-Bench and AlpacaEval on all their questions, with every fault and a kill, give the faultless scores."""
    for benchmark, count in (("mt-bench", 160), ("alpaca-eval", 805)):
        common = ["--max-tokens", 16, "--json", *QUICK, *HASTY, "--data", shared_data, "--out", tmp_path / benchmark]
        arguments = ["evaluate", benchmark, smollm2, *common]
        with FakeJudge(FAULTS, seed=7, rate=0.5, hang=1.0).running() as judge:
            command = tiny.command(*arguments, "--judge", judge.url)
            child = subprocess.Popen(
                command, env=tiny.environment(tiny_cache), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
            )
            deadline = time.monotonic() + 1200
            while judge.good.total() < count // 4 and time.monotonic() < deadline and child.poll() is None:
                time.sleep(0.02)
            child.send_signal(signal.SIGKILL)
            child.wait(timeout=30)
            assert count // 4 <= judge.good.total() < count
            faulty = scores(evaluate(*arguments[1:], "--judge", judge.url))
            assert judge.done.total() > count // 4
            # The eight on their way when it was killed are asked for again, nothing else.
            assert judge.good.total() <= count + 8
        keys = [row["key"] for row in question_set.read(tmp_path / benchmark / "calls.jsonl") if row.get("usable")]
        assert len(keys) == len(set(keys))
        with FakeJudge().running() as judge:
            answers = shutil.copy(tmp_path / benchmark / "answers.jsonl", tmp_path / f"{benchmark}.jsonl")
            again = ["--json", *QUICK, "--data", shared_data, "--out", tmp_path / f"{benchmark}-clean"]
            clean = scores(evaluate(benchmark, answers, *again, "--judge", judge.url))
        assert clean == faulty
