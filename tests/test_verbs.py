"""The smaller verbs on a tiny model: what they print is what the model computes, in the order it was asked for."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny

from bactrian import verbs
from bactrian.data.records import Message
from bactrian.errors import DataError, InputError

QUESTION = "Where does Clara find fish?"

pytestmark = pytest.mark.usefixtures("in_tiny_cache")


def lines(done: tiny.Done) -> list[dict[str, Any]]:
    assert done.code == 0, done.err
    return [json.loads(line) for line in done.out.splitlines()]


@pytest.fixture(scope="module")
def reference(tiny_run: Path):
    """The trained model and its tokenizer in transformers."""
    transformers = pytest.importorskip("transformers")
    folder = tiny_run / "export"
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype="float32").eval()
    return model, transformers.AutoTokenizer.from_pretrained(folder)


def answers_logprob(reference: Any, messages: list[dict[str, str]], turns: list[int]) -> tuple[float, int]:
    """Sum of log-probabilities of some turns with the token that ends them, and how many tokens, by transformers."""
    import torch

    model, tokenizer = reference
    ids = tokenizer.apply_chat_template(messages, return_dict=False)
    with torch.no_grad():
        logprobs = model(torch.tensor([ids])).logits.double().log_softmax(-1)[0]
    total, count = 0.0, 0
    for turn in turns:
        start = len(tokenizer.apply_chat_template(messages[:turn], add_generation_prompt=True, return_dict=False))
        end = ids.index(tokenizer.eos_token_id, start) + 1
        total += sum(float(logprobs[place - 1, ids[place]]) for place in range(start, end))
        count += end - start
    return total, count


def test_conversations_are_scored_as_transformers_scores_them(tiny_run: Path, tiny_recipe: Path, reference: Any):
    file = tiny_recipe.parent / "sft-heldout.jsonl"
    conversations = [json.loads(line)["messages"] for line in file.read_text().splitlines()]
    rows = lines(tiny.call("score", tiny_run, file))
    assert [set(row) for row in rows] == [{"logprob", "tokens"}] * 6
    for row, messages in zip(rows, conversations, strict=True):
        turns = [index for index, message in enumerate(messages) if message["role"] == "assistant"]
        expected, tokens = answers_logprob(reference, messages, turns)
        assert row["logprob"] == pytest.approx(expected, rel=1e-4)
        assert row["tokens"] == tokens
    last = lines(tiny.call("score", tiny_run, file, "--learn", "last"))
    longest = next(index for index, messages in enumerate(conversations) if len(messages) == 4)
    assert last[longest]["logprob"] == pytest.approx(
        answers_logprob(reference, conversations[longest], [3])[0], rel=1e-4
    )


def test_pairs_are_scored_and_compared(tiny_run: Path, tiny_recipe: Path, reference: Any):
    file, base = tiny_recipe.parent / "pairs-heldout.jsonl", tiny_recipe.parent / "base"
    pairs = [json.loads(line) for line in file.read_text().splitlines()]
    rows = lines(tiny.call("score", tiny_run, file, "--reference", base, "--beta", "0.25"))
    under = lines(tiny.call("score", base, file))
    keys = {f"{side}_{what}" for side in ("chosen", "rejected") for what in ("logprob", "tokens")}
    assert [set(row) for row in under] == [keys] * 6
    assert [set(row) for row in rows] == [keys | {"margin"}] * 6
    for row, other, pair in zip(rows, under, pairs, strict=True):
        for side in ("chosen", "rejected"):
            messages = [{"role": "user", "content": pair["prompt"]}, {"role": "assistant", "content": pair[side]}]
            expected, tokens = answers_logprob(reference, messages, [1])
            assert row[f"{side}_logprob"] == pytest.approx(expected, rel=1e-4)
            assert row[f"{side}_tokens"] == tokens
        gained = [row[f"{side}_logprob"] - other[f"{side}_logprob"] for side in ("chosen", "rejected")]
        assert row["margin"] == pytest.approx(0.25 * (gained[0] - gained[1]), rel=1e-4)
        assert row["margin"] > 0


def test_a_margin_needs_one_tokenizer_but_not_one_template(tmp_path: Path, tiny_run: Path, tiny_recipe: Path):
    pairs = tiny_recipe.parent / "pairs-heldout.jsonl"
    exported = tiny.call(
        "export", tiny_recipe.parent / "base", tmp_path / "tulu", "--chat", "tulu", "--dtype", "float32"
    )
    assert exported.code == 0, exported.err
    template = (tmp_path / "tulu" / "chat_template.jinja").read_text()
    assert "<|assistant|>" in template
    by_base = lines(tiny.call("score", tiny_run, pairs, "--reference", tiny_recipe.parent / "base"))
    assert lines(tiny.call("score", tiny_run, pairs, "--reference", tmp_path / "tulu")) == by_base
    tiny.model(tmp_path / "other", "quite other words")
    done = tiny.call("score", tiny_run, pairs, "--reference", tmp_path / "other")
    assert done.code == 2
    assert (
        done.err
        == f"error: {tmp_path / 'other'}: its tokenizer differs from that of {tiny_run}; a margin needs one tokenizer\n"
    )


def test_generate_answers_in_order(tmp_path: Path, tiny_run: Path):
    prompts = [QUESTION, "Thanks!", QUESTION]
    tiny.write_rows(
        tmp_path / "rows.jsonl", [{"prompt": prompts[1]}, {"messages": [{"role": "user", "content": QUESTION}]}]
    )
    (tmp_path / "plain.txt").write_text("Thanks!\n\n" + QUESTION + "\n")
    short = ["--max-tokens", 24]
    rows = lines(
        tiny.call("generate", tiny_run, "--prompt", QUESTION, "--file", tmp_path / "rows.jsonl", *short, "--json")
    )
    assert [set(row) for row in rows] == [{"prompt", "text", "tokens", "finish"}] * 3
    assert [row["prompt"] for row in rows] == [QUESTION, "Thanks!", [{"role": "user", "content": QUESTION}]]
    assert rows[0]["text"] == rows[2]["text"]
    assert rows[0]["text"].startswith("Good day!")
    assert {row["finish"] for row in rows} <= {"stop", "length"}
    assert all(0 < row["tokens"] <= 24 for row in rows)
    plain = tiny.call("generate", tiny_run, "--file", tmp_path / "plain.txt", *short)
    assert plain.out.splitlines() == [rows[1]["text"], rows[0]["text"]]


def test_raw_text_is_continued_without_a_chat_format(tmp_path: Path, tiny_run: Path, reference: Any):
    model, tokenizer = reference
    inputs = tokenizer("Good day! Ada", return_tensors="pt")
    output = model.generate(**inputs, max_new_tokens=24, do_sample=False)
    expected = tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    done = tiny.call("generate", tiny_run, "--raw", "--prompt", "Good day! Ada", "--max-tokens", 24)
    assert done.out == expected + "\n"
    tiny.write_rows(tmp_path / "chats.jsonl", [{"messages": [{"role": "user", "content": "Hi"}]}])
    refused = tiny.call("generate", tiny_run, "--raw", "--file", tmp_path / "chats.jsonl")
    assert refused.code == 2
    assert "--raw continues text" in refused.err


def test_sampling_is_seeded(tiny_recipe: Path):
    base = tiny_recipe.parent / "base"
    hot = ["generate", base, "--prompt", QUESTION, "--temperature", 1, "--max-tokens", 24]
    first, again, other = (tiny.call(*hot, "--seed", seed).out for seed in (1, 1, 2))
    assert first == again != other


def test_export_writes_the_same_model(tmp_path: Path, tiny_run: Path):
    from bactrian.model import weights

    done = tiny.call("export", tiny_run, tmp_path / "out", "--dtype", "float32")
    assert done.code == 0
    assert done.err == f"wrote {tmp_path / 'out'}\n"
    one, other = weights.load(tmp_path / "out"), weights.load(tiny_run / "export")
    np.testing.assert_array_equal(one["embedding"], other["embedding"])
    np.testing.assert_array_equal(one["layers"]["down_proj"], other["layers"]["down_proj"])
    asked = ["--prompt", QUESTION, "--max-tokens", 24]
    assert tiny.call("generate", tmp_path / "out", *asked).out == tiny.call("generate", tiny_run, *asked).out


def test_chat_over_a_pipe(tiny_run: Path):
    said = f"{QUESTION}\n/reset\n{QUESTION}\n/exit\nnot read\n"
    done = tiny.call("chat", tiny_run, "--max-tokens", 24, stdin=said)
    assert done.code == 0
    assert (
        done.out.splitlines()
        == [tiny.call("generate", tiny_run, "--prompt", QUESTION, "--max-tokens", 24).out.strip()] * 2
    )
    assert "starts afresh" in done.err


def test_prompts_come_from_all_places(tmp_path: Path):
    with pytest.raises(InputError, match="nothing to answer"):
        verbs.read_prompts([], None, raw=False)
    with pytest.raises(InputError, match=r"none\.txt: cannot read prompts: No such file"):
        verbs.read_prompts([], tmp_path / "none.txt", raw=False)
    tiny.write_rows(tmp_path / "rows.jsonl", [{"question": "?"}])
    with pytest.raises(InputError, match=r"rows\.jsonl:1: a row to answer needs `prompt`"):
        verbs.read_prompts([], tmp_path / "rows.jsonl", raw=False)


def test_prompts_of_a_file_are_its_lines_and_nothing_else_parts_them(tmp_path: Path):
    path = tmp_path / "p.txt"
    path.write_bytes("\ufeffone\u2028still one\r\n\r\ntwo\x85\x0b\x0c\x1c two\n".encode())
    assert verbs.read_prompts([], path, False) == ["one\u2028still one", "two\x85\x0b\x0c\x1c two"]


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("p.txt", b"good\ncaf\xe9\n", ":2: not UTF-8 text; save the file as UTF-8"),
        ("p.txt", "good".encode("utf-16"), ": UTF-16 text; save the file as UTF-8"),
        ("p.jsonl", b'{"prompt": "caf\\ud800"}', ":1: prompt holds half a surrogate pair"),
        ("p.jsonl", b'{"messages": [{"role": "user", "content": "\\udc00"}]}', ":1: messages[0].content holds half"),
        ("p.jsonl", b'{"prompt": [{"role": "user", "content": "\\udc00"}]}', ":1: prompt[0].content holds half"),
        ("none.txt", None, ": cannot read prompts: No such file"),
    ],
)
def test_prompts_that_are_no_text_are_one_line(tmp_path: Path, name: str, content: bytes | None, expected: str):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError) as caught:
        verbs.read_prompts([], tmp_path / name, False)
    assert str(caught.value).startswith(f"{tmp_path / name}{expected}")


def test_an_argument_that_is_no_text_is_one_line(tmp_path: Path):
    done = tiny.call("generate", "nowhere", "--prompt", "caf\udce9")
    assert done.code == 2 and "argument 4, 'caf\\udce9', is no UTF-8 text" in done.err and "Traceback" not in done.err


def test_what_a_row_says_beside_its_prompt_is_honoured_or_refused(tmp_path: Path):
    told, asked = Message("system", "Be kind."), Message("user", "Hi")
    turns = [{"role": "user", "content": "Hi"}]
    path = tmp_path / "p.jsonl"
    tiny.write_rows(path, [{"prompt": "Hi", "system": "Be kind."}, {"messages": turns, "system": ""}, {"prompt": "Hi"}])
    assert verbs.read_prompts([], path, False) == [(told, asked), (asked,), "Hi"]
    for row in ({"prompt": "Hi", "tools": [{"name": "depth"}]}, {"messages": turns, "images": ["a.png"]}):
        tiny.write_rows(path, [row])
        with pytest.raises(DataError, match=r"p.jsonl:1: (tools|images) is not carried into prompts"):
            verbs.read_prompts([], path, False)
