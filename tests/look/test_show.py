"""`bactrian data show` shows every word that the model will see, and which of them it learns."""

import json
import re
from pathlib import Path

import pytest
import tiny

pytestmark = pytest.mark.usefixtures("in_tiny_cache")

GREEN = re.compile(r"\x1b\[1;32m(.*?)\x1b\[0m", re.DOTALL)
ANY = re.compile(r"\x1b\[[0-9;]*m")


@pytest.fixture
def colours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)


def rows_of(recipe: Path, name: str) -> list[dict]:
    return [json.loads(line) for line in (recipe.parent / name).read_text().splitlines()]


def test_a_row_is_shown_whole(tiny_recipe: Path):
    done = tiny.call("data", "show", tiny_recipe, "--update", 2)
    assert done.code == 0, done.err
    assert "sft, update 2 of 18: 4 examples" in done.out
    shown = [int(index) for index in re.findall(r"example (\d+):", done.out)]
    assert len(shown) == 4
    conversations = rows_of(tiny_recipe, "sft.jsonl")
    for index in shown:
        messages = conversations[index]["messages"]
        whole = "".join(f"<|im_start|>{turn['role']}\n{turn['content']}<|im_end|>\n" for turn in messages)
        assert whole.rstrip("\n") in done.out


def test_learnt_tokens_are_in_colour(tiny_recipe: Path, colours: None):
    done = tiny.call("data", "show", tiny_recipe, "--example", 3)
    messages = rows_of(tiny_recipe, "sft.jsonl")[3]["messages"]
    said = [f"{turn['content']}<|im_end|>" for turn in messages if turn["role"] == "assistant"]
    assert GREEN.findall(done.out) == ["green", *said]
    plain = ANY.sub("", done.out)
    assert f"<|im_start|>user\n{messages[0]['content']}<|im_end|>" in plain


def test_a_pair_shows_its_prompt_once_and_both_answers(tiny_recipe: Path, colours: None):
    done = tiny.call("data", "show", tiny_recipe, "--stage", "dpo", "--example", 5)
    pair = rows_of(tiny_recipe, "pairs.jsonl")[5]
    assert GREEN.findall(done.out) == ["green", f"{pair['chosen']}<|im_end|>", f"{pair['rejected']}<|im_end|>"]
    plain = ANY.sub("", done.out)
    assert plain.count(pair["prompt"]) == 1
    assert f"branch 1: {pair['chosen']}" in plain
    assert f"branch 2: {pair['rejected']}" in plain


def test_what_looks_like_markup_is_shown_as_it_is(tmp_path: Path, tiny_recipe: Path):
    odd = "[bold]not bold[/bold] \\[x] " + "a long line " * 12
    turns = [{"role": "user", "content": odd}, {"role": "assistant", "content": "[red]Good[/red] day!"}]
    tiny.write_rows(tmp_path / "odd.jsonl", [{"messages": turns}] * 4)
    overrides = [f"sft.data.0.path={tmp_path / 'odd.jsonl'}", "sft.max_length=256", "sft.row_length=256"]
    done = tiny.call("data", "show", tiny_recipe, *overrides, "--example", 0)
    assert done.code == 0, done.err
    assert f"{odd}<|im_end|>" in done.out
    assert "[red]Good[/red] day!<|im_end|>" in done.out


@pytest.mark.parametrize(
    ("asked", "answer"),
    [
        (["--update", 19], "error: update 19: sft has updates 1 to 18\n"),
        (["--update", 0], "error: update 0: sft has updates 1 to 18\n"),
        (["--stage", "dpo", "--example", 24], "error: example 24: dpo has examples 0 to 23\n"),
    ],
)
def test_what_is_not_there_is_said(tiny_recipe: Path, asked: list, answer: str):
    done = tiny.call("data", "show", tiny_recipe, *asked)
    assert (done.code, done.err) == (2, answer)
