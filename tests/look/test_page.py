"""The page of `bactrian data show --html` holds every token, its id, and whether it is learnt, and no link."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import tiny

from bactrian.data import tokenizer as tokenizers
from bactrian.data.chat import Chat
from bactrian.data.records import Message
from bactrian.look import page

pytestmark = pytest.mark.usefixtures("in_tiny_cache")


def made(recipe: Path, path: Path, *arguments: object) -> dict:
    done = tiny.call("data", "show", recipe, "--html", path, *arguments)
    assert done.code == 0, done.err
    assert done.err.endswith(f"wrote {path}\n")
    return content(path)


def content(path: Path) -> dict:
    [data] = re.findall(r'<script id="data" type="application/json">(.*?)</script>', path.read_text(encoding="utf-8"))
    return json.loads(data)


def rows_of(recipe: Path, name: str) -> list[dict]:
    return [json.loads(line) for line in (recipe.parent / name).read_text().splitlines()]


def text(spans: list) -> str:
    return "".join(span[0] for span in spans)


def test_an_example_is_there_token_for_token(tiny_recipe: Path, tmp_path: Path):
    data = made(tiny_recipe, tmp_path / "page.html", "--example", 3)
    [example] = data["examples"]
    chat = Chat(tokenizers.load(tiny_recipe.parent / "base"), "model")
    messages = rows_of(tiny_recipe, "sft.jsonl")[3]["messages"]
    ids, learn = chat.render(tuple(Message(turn["role"], turn["content"]) for turn in messages))
    assert [each for span in example["shared"] for each in span[2:]] == ids.tolist()
    learnt = ["l" in span[1].split() for span in example["shared"] for _ in span[2:]]
    assert learnt == learn.tolist()
    assert text(example["shared"]) == chat.tokenizer.decode(ids, False)
    special = {span[0] for span in example["shared"] if "s" in span[1].split()}
    assert special == {"<|im_start|>", "<|im_end|>"}
    assert (example["index"], example["branches"], data["update"]) == (3, [], None)


def test_branches_lie_side_by_side(tiny_recipe: Path, tmp_path: Path):
    data = made(tiny_recipe, tmp_path / "page.html", "--stage", "dpo", "--example", 5)
    [example] = data["examples"]
    pair = rows_of(tiny_recipe, "pairs.jsonl")[5]
    assert pair["prompt"] in text(example["shared"])
    assert [branch["name"].split()[0] for branch in example["branches"]] == ["chosen", "rejected"]
    for branch, key in zip(example["branches"], ("chosen", "rejected"), strict=True):
        assert text([span for span in branch["spans"] if "l" in span[1]]) == f"{pair[key]}<|im_end|>"


def test_an_update_brings_its_rows_and_their_examples(tiny_recipe: Path, tmp_path: Path):
    data = made(tiny_recipe, tmp_path / "page.html", "--update", 2, "--limit", 2)
    rows = data["update"]["rows"]
    packed = [index for row in rows for index, _ in row["examples"]]
    assert len(packed) == 4
    assert {example["index"] for example in data["examples"]} == {*packed, 0, 1}
    for row in rows:
        assert sum(places for _, places in row["examples"]) == row["used"] <= row["length"]
    assert data["update"]["title"] == "update 2 of 18"


def test_examples_with_some_text(tiny_recipe: Path, tmp_path: Path):
    data = made(tiny_recipe, tmp_path / "page.html", "--search", "GOOD DAY! ADA", "--limit", 3)
    conversations = rows_of(tiny_recipe, "sft.jsonl")
    wanted = [n for n, row in enumerate(conversations) if "Good day! Ada" in json.dumps(row)][:3]
    assert [example["index"] for example in data["examples"]] == wanted
    done = tiny.call("data", "show", tiny_recipe, "--search", "good day! ada", "--limit", 3)
    assert [int(n) for n in re.findall(r"example (\d+):", done.out)] == wanted
    done = tiny.call("data", "show", tiny_recipe, "--search", "xyzzy")
    assert (done.code, done.err) == (2, "error: 'xyzzy' is in no example of sft\n")


def test_nothing_in_a_text_becomes_markup_and_nothing_is_fetched(tiny_recipe: Path, tmp_path: Path):
    odd = "</script><script>alert(1)</script> <!-- {{ title }} {% raw %} &amp; grüße 🐪 你好"
    turns = [{"role": "user", "content": odd}, {"role": "assistant", "content": odd}]
    tiny.write_rows(tmp_path / "odd.jsonl", [{"messages": turns}] * 4)
    path = tmp_path / "page.html"
    overrides = [f"sft.data.0.path={tmp_path / 'odd.jsonl'}", "sft.max_length=512", "sft.row_length=512"]
    data = made(tiny_recipe, path, *overrides)
    assert text(data["examples"][0]["shared"]).count(odd) == 2
    html = path.read_text(encoding="utf-8")
    assert html.count("<script") == html.count("</script>") == 2
    assert not re.search(r"""(?:src|href)=|url\(|@import|fetch\(|https?://""", html)


def test_a_character_of_several_tokens_is_one_span(tiny_recipe: Path):
    tokenizer = tokenizers.load(tiny_recipe.parent / "base")
    ids = tokenizer.encode_text("a🐪b\ufffd", add_bos=False)
    spans = page._Spans(tokenizer).of(ids, np.zeros(len(ids), bool))
    assert [span[0] for span in spans[:3]] == ["a", "🐪", "b"]
    assert len(spans[1]) == 2 + 4
    assert [each for span in spans for each in span[2:]] == ids.tolist()
