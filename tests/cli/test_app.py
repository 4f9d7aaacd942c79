"""The command's face: its verbs, their help, and the pages that the docs show."""

import re
import shutil
from pathlib import Path

import pytest
import tiny

from bactrian.cli.app import app

DOCS = Path(__file__).parents[2] / "docs"
VERBS = ["run", "sft", "dpo", "plan", "chat", "generate", "score", "export", "card", "data", "evaluate"]


def test_every_verb_is_in_the_help():
    done = tiny.call("--help")
    assert done.code == 0
    names = [command.name or command.callback.__name__ for command in app.registered_commands if command.callback]
    groups = [group.name for group in app.registered_groups]
    assert [*names, *groups] == VERBS
    for verb in VERBS:
        assert re.search(rf"^\W*{verb}\s+[A-Z]", done.out, re.MULTILINE), verb


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_says_what_it_takes(verb: str):
    done = tiny.call(verb, "-h")
    assert done.code == 0
    assert "Usage: bactrian" in done.out


def test_no_verb_at_all_shows_the_help(tiny_cache: Path):
    done = tiny.run([], tiny_cache)
    assert "Usage: bactrian" in done.out + done.err
    assert "Traceback" not in done.err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["generate", "base", "--max-tokens", "0"], "bactrian generate: Invalid value for '--max-tokens': "),
        (["generate", "base", "--max-tokens", 10**18], "'--max-tokens'"),
        (["generate", "base", "--temperature", "-1"], "'--temperature'"),
        (["chat", "base", "--top-k", 10**30], "'--top-k'"),
        (["chat", "base", "--seed", 2**40], "'--seed'"),
        (["plan", "recipe.toml", "--target", "8xcpu", "--price", "inf"], "'--price'"),
        (["plan", "recipe.toml", "--target", "8xcpu", "--price", "nan"], "Invalid value for '--price': "),
        (["evaluate", "mt-bench", "base", "--timeout", "nan"], "Invalid value for '--timeout': "),
        (["evaluate", "mt-bench", "base", "--concurrency", 10**9], "'--concurrency'"),
        (["data", "build", "recipe.toml", "--processes", 10**9], "'--processes'"),
        (["plan", "recipe.toml", "--targett", "x"], "No such option: --targett"),
        (["plan"], "bactrian plan: Missing argument 'RECIPE'; see bactrian plan --help"),
        (["nothing"], "bactrian: No such command 'nothing'; see bactrian --help"),
    ],
)
def test_a_misused_option_is_one_line_that_names_it(arguments: list[object], said: str):
    done = tiny.call(*arguments)
    assert (done.code, done.out, done.err.count("\n")) == (2, "", 1), done
    assert done.err.startswith("error: bactrian") and said in done.err


def test_a_bug_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("bactrian.recipe.load", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        tiny.call("run", "recipe.toml")


def test_the_card_is_written_again_from_the_folder(tmp_path: Path, tiny_run: Path):
    folder = tmp_path / "run"
    shutil.copytree(tiny_run, folder)
    card = folder / "export" / "README.md"
    expected = card.read_bytes()
    card.unlink()
    shutil.rmtree(folder / "plots")
    done = tiny.call("card", folder)
    assert (done.code, done.out) == (0, f"{card}\n")
    assert card.read_bytes() == expected
    assert (folder / "plots" / "loss.png").is_file()


def test_a_run_has_a_folder_of_its_name(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, tiny_recipe: Path, tiny_run: Path, in_tiny_cache: None
):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(tiny_run, tmp_path / "runs" / "tiny")
    done = tiny.call("run", tiny_recipe)
    assert done.code == 0, done.err
    assert "done: runs/tiny\n" in done.err
    assert "bactrian chat runs/tiny" in done.err
