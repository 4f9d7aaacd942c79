"""Laws: what lm-eval's tasks lack is one line that says what to do; a bug of ours keeps its traceback; neutral
generation arguments pass, and others are named."""

import logging
import warnings
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("lm_eval", reason="lm-eval is not installed; it comes with the extra `eval`")

import lm_eval.tasks
import yaml
from lm_eval.api.instance import Instance

from bactrian import benchmarking
from bactrian.errors import InputError, line
from bactrian.evaluate import harness, lm_eval_model, needs, task_errors
from bactrian.evaluate.lm_eval_model import Model

TASK = {
    "output_type": "generate_until",
    "doc_to_text": "{{question}}",
    "doc_to_target": "{{answer}}",
    "test_split": "test",
    "dataset_path": "json",
    "metric_list": [{"metric": "exact_match"}],
    "generation_kwargs": {"until": ["."], "max_gen_toks": 8, "num_beams": 1},
}


class Echo:
    """Answers every prompt with itself."""

    def generate(self, prompts, settings):
        return [str(prompt) for prompt in prompts]

    def score(self, contexts, continuations):
        raise ValueError("a bug of the engine")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder for task files; lm-eval's own ten thousand are left out, which takes seconds to read."""

    class Own(lm_eval.tasks.TaskManager):
        def __init__(self, include_path=None):
            super().__init__(include_path=include_path, include_defaults=False)

    monkeypatch.setattr(lm_eval.tasks, "TaskManager", Own)
    (tmp_path / "rows.jsonl").write_text('{"question": "a", "answer": "a"}\n{"question": "b", "answer": "c"}\n')
    return tmp_path


def write(folder: Path, name: str, **changes: Any) -> str:
    data = {"data_files": {"test": str(folder / "rows.jsonl")}}
    content = {"task": name, "dataset_kwargs": data, **TASK, **changes}
    (folder / f"{name}.yaml").write_text(yaml.safe_dump({key: value for key, value in content.items() if value}))
    return name


def prepared(folder: Path, *names: str) -> Any:
    return harness.prepare(harness.Tasks(names, folder))


def test_a_task_runs_without_a_word_of_the_libraries(folder: Path, capfd):
    write(folder, "own")
    tasks = harness.Tasks(("own",), folder)
    found = harness.run(Echo(), "echo", str, tasks, harness.prepare(tasks))
    assert found["own"]["metrics"]["exact_match"]["score"] == 0.5 and found["own"]["n"] == 2
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize(
    ("name", "changes", "said"),
    [
        ("gone", {"dataset_kwargs": {"data_files": {"test": "/nowhere/rows.jsonl"}}}, "its data is not there"),
        ("split", {"test_split": "other"}, "split"),
        ("function", {"doc_to_text": None, "process_docs": None, "include": "nowhere.yaml"}, "function: "),
        ("metric", {"metric_list": [{"metric": "no_such_metric"}]}, "metric: "),
    ],
)
def test_a_task_that_cannot_be_prepared_is_named_in_one_line(name, changes, said, folder, capfd, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    write(folder, name, **changes)
    with pytest.raises(InputError, match=said) as caught:
        prepared(folder, name)
    assert str(caught.value).startswith(f"{name}: ") and ";" in line(caught.value)
    assert capfd.readouterr().err == ""


def test_what_is_no_task_or_no_folder(folder: Path):
    with pytest.raises(InputError, match=r"--tasks-folder .*nowhere: there is no such folder"):
        prepared(folder / "nowhere", "own")
    with pytest.raises(InputError, match="other: lm-eval has no such task; "):
        prepared(folder, "other")
    (folder / "broken.yaml").write_text("task: broken\noutput_type: [unclosed\n")
    with pytest.raises(
        InputError, match=r"broken: lm-eval has no such task, and .*broken.yaml:3 is not YAML \(expected"
    ):
        prepared(folder, "broken")
    (folder / "broken.yaml").write_text("just: this\n")
    with pytest.raises(InputError, match=r"broken\.yaml names no task"):
        prepared(folder, "broken")


def test_a_function_of_a_task_that_needs_a_package(folder: Path):
    (folder / "utils.py").write_text("import no_such_package_anywhere\n\ndef target(doc):\n    return 'a'\n")
    text = yaml.safe_dump({"task": "own", **TASK, "doc_to_target": None}).replace("null", "!function utils.target")
    (folder / "own.yaml").write_text(text)
    with pytest.raises(InputError, match=r"own: it needs the package no_such_package_anywhere.*pip install"):
        prepared(folder, "own")


def test_a_task_that_fails_while_it_runs(folder: Path):
    (folder / "utils.py").write_text("def text(doc):\n    return doc['no_such_column']\n")
    text = yaml.safe_dump({"task": "own", **TASK, "doc_to_text": None}).replace("null", "!function utils.text")
    text += f"dataset_kwargs: {{data_files: {{test: {folder / 'rows.jsonl'}}}}}\n"
    (folder / "own.yaml").write_text(text)
    with pytest.raises(InputError, match=r"own: KeyError: 'no_such_column'; correct its task file"):
        harness.run(Echo(), "echo", str, harness.Tasks(("own",), folder))


def test_a_bug_of_the_engine_keeps_its_traceback(folder: Path):
    write(folder, "own", output_type="multiple_choice", doc_to_choice=["a", "b"], generation_kwargs=None)
    with pytest.raises(ValueError, match="a bug of the engine"):
        harness.run(Echo(), "echo", str, harness.Tasks(("own",), folder))


def test_nothing_is_left_behind_and_no_model_is_read(folder: Path, monkeypatch):
    monkeypatch.setattr(benchmarking, "_open", lambda subject: pytest.fail("the model was read"))
    with pytest.raises(InputError, match="no such task"):
        benchmarking.run_tasks(benchmarking.Subject("x"), harness.Tasks(("none",), folder), folder / "out")
    assert not (folder / "out").exists()


class OfflineModeIsEnabled(Exception):
    pass


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (ConnectionError("Couldn't reach 'openai/gsm8k' on the Hub"), "go online"),
        (OfflineModeIsEnabled("Cannot access"), "go online"),
        (TimeoutError("slow"), "go online"),
        (OSError("[Errno -3] Temporary failure in name resolution"), "go online"),
        (FileNotFoundError("Couldn't find a module script at x. Module 'code_eval' doesn't exist"), "go online"),
        (FileNotFoundError("no rows.jsonl"), "its data is not there"),
        (ModuleNotFoundError("No module named 'langdetect'", name="langdetect"), "pip install langdetect"),
        (ImportError("Please install it by pip install lm-eval[math]"), "install that"),
        (ValueError("Attempted to run task: humaneval which is marked as unsafe"), "not in a sandbox"),
        (yaml.YAMLError("while scanning"), "not YAML"),
        (KeyError("x" * 10_000), "correct its task file"),
        (ValueError(), "correct its task file"),
        (RuntimeError("\x1b[2J line one\nline two"), "line one"),
    ],
)
def test_what_a_library_raises_is_one_line_with_advice(error: Exception, said: str):
    for raised in (error, wrapped(error)):
        with pytest.raises(InputError) as caught, task_errors.one_line("task"):
            raise raised
        text = line(caught.value)
        assert len(text) <= 400 and "\n" not in text and "\x1b" not in text
        if raised is error or ("correct its task file" not in said and "line one" not in said):
            assert text.startswith("error: task: ") and said in text


def wrapped(error: Exception) -> Exception:
    outer = RuntimeError("cannot be prepared")
    outer.__cause__ = error
    return outer


def test_libraries_are_quiet_within_and_as_before_after(capfd):
    logger = logging.getLogger("lm_eval")
    level = logger.level
    with task_errors.quiet():
        logger.error("a log line")
        warnings.warn("a warning", stacklevel=1)
    assert logger.level == level and capfd.readouterr().err == ""


def test_code_of_the_working_folder_is_no_metric(tmp_path: Path, monkeypatch):
    evaluate = needs.load("evaluate")
    (tmp_path / "code_eval").mkdir()
    (tmp_path / "code_eval" / "code_eval.py").write_text("raise SystemExit(9)\n")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="in the working folder"), task_errors.one_line("humaneval"):
        evaluate.load("code_eval")


def test_an_extra_that_lacks_a_part_says_so(tmp_path: Path, monkeypatch):
    (tmp_path / "an_extra.py").write_text("import a_part_of_it\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(
        InputError, match=r"an_extra cannot be loaded \(No module named 'a_part_of_it'\).*bactrian\[eval\]"
    ):
        needs.load("an_extra")
    with pytest.raises(InputError, match=r"no_extra is not installed.*bactrian\[eval\]"):
        needs.load("no_extra")


@pytest.mark.parametrize(
    "neutral",
    [
        {"num_beams": 1},
        {"num_return_sequences": 1, "repetition_penalty": 1.0, "no_repeat_ngram_size": 0},
        {"length_penalty": 2.0, "early_stopping": True, "use_cache": False, "pad_token_id": 0},
        {"num_beams": None, "min_p": 0, "presence_penalty": 0.0, "logit_bias": {}},
    ],
)
def test_neutral_generation_arguments_pass(neutral: dict[str, Any]):
    plain = {"until": ["x"], "do_sample": False}
    assert lm_eval_model._settings({**plain, **neutral}) == lm_eval_model._settings(plain)


@pytest.mark.parametrize("other", [{"num_beams": 4}, {"repetition_penalty": 1.2}, {"min_p": 0.1}, {"magic": 1}])
def test_others_are_named_with_their_value(other: dict[str, Any]):
    ((name, value),) = other.items()
    model = Model(Echo(), "echo", str)
    request = Instance("generate_until", {}, ("a", {"until": [], **other}), 0)
    with pytest.raises(InputError, match=f"{name}: {value}, which our engine does not have"):
        model.generate_until([request])
