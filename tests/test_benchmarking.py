"""`bactrian evaluate MODEL`: a whole suite on a tiny model, resumed, refused, and shown."""

import gzip
import json
import shutil
from pathlib import Path

import pytest
import tiny

from bactrian.evaluate.journal import Journal

pytest.importorskip("lm_eval", reason="lm-eval is not installed; it comes with the extra `eval`")


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    """A tiny model and little data of every benchmark that needs no network, in the published layouts."""
    root = tmp_path_factory.mktemp("suite")
    tiny.model(root / "model", "Where does Ada find bread? The answer is: Good day! Answer: A B C D", width=32)
    data = root / "data"
    for name in ("mmlu", "gsm8k", "humaneval", "truthfulqa", "bbh/bbh", "bbh/cot-prompts"):
        (data / name).mkdir(parents=True)
    rows = [
        {"subject": f"subject_{index % 2}", "question": f"Which {index}?", "choices": list("wxyz"), "answer": index % 4}
        for index in range(6)
    ]
    tiny.write_rows(data / "mmlu" / "test.jsonl", rows)
    tiny.write_rows(data / "gsm8k" / "test.jsonl", [{"question": f"{n}?", "answer": f"#### {n}"} for n in range(1, 4)])
    for name in ("first", "second"):
        examples = [{"input": f"{name} {n}?", "target": "yes"} for n in range(3)]
        (data / "bbh" / "bbh" / f"{name}.json").write_text(json.dumps({"examples": examples}))
        (data / "bbh" / "cot-prompts" / f"{name}.txt").write_text(
            "warning\n-----\nAnswer.\n\nQ: a?\nA: the answer is b.\n"
        )
    targets = {"Yes.": 1, "No.": 0, "Maybe so.": 0}
    questions = [{"question": f"Is it {n}?", "mc1_targets": targets, "mc2_targets": targets} for n in range(3)]
    (data / "truthfulqa" / "mc_task.json").write_text(json.dumps(questions))
    problem = {"task_id": "T/0", "prompt": "def f():\n", "entry_point": "f", "test": "def check(f):\n    f()\n"}
    with gzip.open(data / "humaneval" / "HumanEval.jsonl.gz", "wt") as file:
        file.write(json.dumps(problem) + "\n")
    return root


def evaluate(world: Path, out: Path, *more: object) -> tiny.Done:
    return tiny.call("evaluate", world / "model", "--data", world / "data", "--out", out, *more)


@pytest.fixture(scope="module")
def finished(world, tmp_path_factory) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BACTRIAN_CACHE", str(world / "cache"))
        patch.setattr("bactrian.evaluate.benchmarks.gsm8k._COUNT", 2)
        out = tmp_path_factory.mktemp("finished") / "out"
        only = "mmlu,gsm8k,bbh,truthfulqa"
        shorter(patch)
        done = evaluate(
            world, out, "--suite", "tulu2", "--only", only, "--limit", "2", "--expected", "tulu-2-dpo-7b", "--json"
        )
    assert done.code == 0, done.err
    (out.parent / "out.json").write_text(done.out)
    return out


def shorter(patch: pytest.MonkeyPatch) -> None:
    """The tiny model has room for 512 tokens: few examples and short answers."""
    from bactrian.evaluate.benchmarks import bbh, bundled, gsm8k
    from bactrian.evaluate.protocol import Settings

    patch.setattr(bundled, "worked_examples", lambda: [{"question": "1?", "answer": "So the answer is 1."}])
    for module in (gsm8k, bbh):
        patch.setattr(module, "Settings", lambda max_tokens: Settings(max_tokens=8))


def test_every_score_has_an_interval_and_its_number_of_items(finished):
    scores = json.loads((finished / "scores.json").read_text())
    assert scores == json.loads((finished.parent / "out.json").read_text().splitlines()[-1])
    rows = scores["benchmarks"]
    assert list(rows) == ["mmlu", "gsm8k", "bbh", "truthfulqa"]
    assert [row["n"] for row in rows.values()] == [4, 2, 4, 2]
    assert all(0 <= row["low"] <= row["score"] <= row["high"] <= 100 for row in rows.values())
    assert rows["mmlu"]["groups"].keys() == {"subject_0", "subject_1"}
    assert rows["mmlu"]["paper"] == {"model": "tulu-2-dpo-7b", "score": 50.7}
    assert rows["truthfulqa"]["note"] == "not the paper's metric" and "paper" not in rows["truthfulqa"]
    assert rows["gsm8k"]["settings"]["limit"] == 2


def test_every_item_is_kept(finished):
    items = [json.loads(line) for line in (finished / "mmlu.jsonl").read_text().splitlines()]
    assert len(items) == 4
    assert set(items[0]) == {"id", "group", "asked", "said", "taken", "wanted", "value"}
    settings = json.loads((finished / "settings.json").read_text())
    assert settings["limit"] == 2 and settings["model"]["name"] == "model"
    assert settings["benchmarks"]["bbh"]["shots"] == 3


def test_a_killed_job_resumes_to_the_same_scores(world, finished, tmp_path, monkeypatch):
    monkeypatch.setenv("BACTRIAN_CACHE", str(world / "cache"))
    out = tmp_path / "out"
    out.mkdir()
    shutil.copy(finished / "settings.json", out)
    lines = (finished / "responses.jsonl").read_bytes().splitlines(keepends=True)
    (out / "responses.jsonl").write_bytes(b"".join(lines[:-1]) + lines[-1][:20])
    shorter(monkeypatch)
    monkeypatch.setattr("bactrian.evaluate.benchmarks.gsm8k._COUNT", 2)
    asked = []
    add = Journal.add
    monkeypatch.setattr(Journal, "add", lambda self, row: (asked.append(row["key"]), add(self, row)))
    arguments = (
        "--suite",
        "tulu2",
        "--only",
        "mmlu,gsm8k,bbh,truthfulqa",
        "--limit",
        "2",
        "--expected",
        "tulu-2-dpo-7b",
    )
    done = evaluate(world, out, *arguments)
    assert done.code == 0, done.err
    assert len(asked) == 1
    assert json.loads((out / "scores.json").read_text()) == json.loads((finished / "scores.json").read_text())
    assert "MMLU, 0-shot" in done.out and "not the paper's" in done.out


def test_tasks_of_lm_eval(world, tmp_path, monkeypatch):
    monkeypatch.setenv("BACTRIAN_CACHE", str(world / "cache"))
    rows = [{"question": f"Is it {n}?", "answer": n % 2} for n in range(5)]
    tiny.write_rows(tmp_path / "rows.jsonl", rows)
    (tmp_path / "tiny_yes_no.yaml").write_text(
        "task: tiny_yes_no\ndataset_path: json\n"
        f"dataset_kwargs: {{data_files: {{test: '{tmp_path / 'rows.jsonl'}'}}}}\n"
        "test_split: test\noutput_type: multiple_choice\ndoc_to_text: '{{question}}'\n"
        "doc_to_choice: ['No', 'Yes']\ndoc_to_target: answer\nmetric_list: [{metric: acc}]\n"
    )
    more = ("--tasks", "tiny_yes_no", "--tasks-folder", tmp_path, "--as-chat", "--json")
    done = evaluate(world, tmp_path / "out", *more)
    assert done.code == 0, done.err
    row = json.loads(done.out.splitlines()[-1])["benchmarks"]["tiny_yes_no"]
    assert row["lm_eval"]["n"] == 5
    assert row["lm_eval"]["metrics"]["acc"].keys() == {"score", "low", "high"}
    done = evaluate(world, tmp_path / "out2", "--tasks", "no_such_task")
    assert done.code == 2 and "lm-eval has no such task" in done.err


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ((), "say what to evaluate"),
        (("--suite", "tulu2", "--tasks", "gsm8k"), "say what to evaluate"),
        (("--suite", "tulu2", "--only", "gsm9k"), "--only gsm9k: not a benchmark of the suite"),
        (("--suite", "tulu2", "--only", "mmlu", "--limit", "0"), "ask at least 1 item"),
        (("--suite", "tulu2", "--only", "mmlu", "--expected", "gpt-5"), "the paper has no scores of it"),
        (("--suite", "tulu2", "--only", "tydiqa"), "no TyDi QA in it"),
    ],
)
def test_bad_input_is_one_line(world, tmp_path, monkeypatch, more, says):
    monkeypatch.setenv("BACTRIAN_CACHE", str(world / "cache"))
    done = evaluate(world, tmp_path / "out", *more)
    assert done.code == 2
    assert says in done.err and done.err.startswith("error: ") and done.err.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_folder_of_something_else_is_refused(world, finished, tmp_path, monkeypatch):
    monkeypatch.setenv("BACTRIAN_CACHE", str(world / "cache"))
    (tmp_path / "notes.txt").write_text("mine")
    done = evaluate(world, tmp_path, "--suite", "tulu2", "--only", "mmlu")
    assert done.code == 2 and "something else than an evaluation is there" in done.err
    done = evaluate(world, finished, "--suite", "tulu2", "--only", "mmlu", "--limit", "3")
    assert done.code == 2 and "holds an evaluation with limit 2, not 3" in done.err


def test_code_is_not_run_unless_asked_for(world, tmp_path, monkeypatch):
    monkeypatch.setenv("BACTRIAN_CACHE", str(world / "cache"))
    done = evaluate(world, tmp_path / "out", "--suite", "tulu2", "--only", "mmlu,humaneval", "--limit", "1")
    assert done.code == 0 and "left out: humaneval" in done.err
    assert list(json.loads((tmp_path / "out" / "scores.json").read_text())["benchmarks"]) == ["mmlu"]
