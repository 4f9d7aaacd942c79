"""`bactrian evaluate` from a model to scores: the whole chain on a tiny model and a judge over HTTP."""

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import question_set
import tiny
from fake_judge import FAULTS, FakeJudge

QUICK = ("--judge-model", "judge-7", "--timeout", "0.5", "--retry-wait", "0.01")


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
    asked = ("mt-bench", model, "--max-tokens", 8, "--json", *QUICK)
    with FakeJudge().running() as judge:
        clean = scores(evaluate(*asked, "--judge", judge.url, "--out", tmp_path / "clean"))
    with FakeJudge(FAULTS, seed=2, rate=0.8, hang=1.0).running() as judge:
        faulty = scores(evaluate(*asked, "--judge", judge.url, "--out", tmp_path / "faulty"))
        assert judge.done.total() > 3 and set(judge.good.values()) == {1}
    assert clean == faulty
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
        deadline = time.monotonic() + 120
        while judge.good.total() < 4 and time.monotonic() < deadline:
            time.sleep(0.02)
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
        asked = ("alpaca-eval", model, "--version", version, "--max-tokens", 8, "--json", *QUICK)
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
        common = ["--max-tokens", 16, "--json", *QUICK, "--data", shared_data, "--out", tmp_path / benchmark]
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
