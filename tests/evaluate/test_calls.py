"""The store's laws: what was answered is found again, a half line is cut off, two processes do not share a folder."""

import dataclasses
import json
from pathlib import Path

import pytest

from bactrian.errors import DataError, RunError
from bactrian.evaluate.calls import Call, Failure, Reply, Store, chat, kept

CALL = Call(chat("You help.", "Hello?"), 16)


def test_what_was_kept_is_found_by_content_alone(tmp_path: Path):
    store = Store(tmp_path / "calls.jsonl")
    store.add(CALL.key("m"), CALL, Reply("Hi \ud800 é", logprobs={"m": -0.5}, input_tokens=3, output_tokens=2), True)
    store.close()
    again = Store(tmp_path / "calls.jsonl")
    assert again.find(Call(chat("You help.", "Hello?"), 16).key("m"), 0) == Reply(
        "Hi \ud800 é", logprobs={"m": -0.5}, input_tokens=3, output_tokens=2
    )
    assert (again.sent, again.cost_tokens) == (1, [3, 2])


@pytest.mark.parametrize(
    "change",
    [
        {"max_tokens": 17},
        {"temperature": 0.5},
        {"sample": 1},
        {"seed": 3},
        {"stop": ("x",)},
        {"choices": ("m", "M")},
        {"messages": chat("You help!", "Hello?")},
    ],
)
def test_every_part_of_a_call_is_in_its_key(change: dict):
    assert dataclasses.replace(CALL, **change).key("m") != CALL.key("m") != CALL.key("n")


def test_unusable_replies_are_asked_again_a_few_times_and_then_kept(tmp_path: Path):
    store, key = Store(tmp_path / "calls.jsonl"), CALL.key("m")
    store.add(key, CALL, Failure("status 500"), False)
    store.add(key, CALL, Reply("no"), False)
    assert store.find(key, 1) is None and store.find(key, 0) == Reply("no")
    store.add(key, CALL, Reply("never"), False)
    assert store.find(key, 1) == Reply("never")
    store.add(key, CALL, Reply("yes"), True)
    assert store.find(key, 1) == Reply("yes")
    assert store.sent == 4


def test_a_half_written_line_is_cut_off_and_the_rest_stays(tmp_path: Path):
    path = tmp_path / "calls.jsonl"
    store = Store(path)
    store.add(CALL.key("m"), CALL, Reply("Hi"), True)
    store.close()
    whole = path.read_bytes()
    path.write_bytes(whole + whole[: len(whole) // 2])
    again = Store(path)
    assert again.find(CALL.key("m"), 0) == Reply("Hi")
    again.close()
    assert path.read_bytes() == whole


def test_what_was_paid_without_a_word_of_it_counts_after_a_restart(tmp_path: Path):
    store = Store(tmp_path / "calls.jsonl")
    store.add("k", CALL, Failure("no reply"), False, billed=(10, 5))
    store.add("k", CALL, Reply("Hi"), True, billed=(7, 8))
    store.close()
    assert Store(tmp_path / "calls.jsonl").cost_tokens == [17, 13]


def test_a_line_of_something_else_is_named(tmp_path: Path):
    (tmp_path / "calls.jsonl").write_text('{"question": 1}\n', encoding="utf-8")
    (tmp_path / "calls.jsonl").write_text('{"reply": {}}\n', encoding="utf-8")
    with pytest.raises(DataError, match=r"calls.jsonl:1: not a line of calls"):
        Store(tmp_path / "calls.jsonl")


def test_one_process_at_a_time(tmp_path: Path):
    store = Store(tmp_path / "calls.jsonl")
    with pytest.raises(RunError, match="another process"):
        Store(tmp_path / "calls.jsonl")
    store.close()
    Store(tmp_path / "calls.jsonl").close()


def test_kept_prefers_a_usable_reply(tmp_path: Path):
    store = Store(tmp_path / "calls.jsonl")
    store.add("k", CALL, Reply("no"), False)
    store.add("k", CALL, Reply("yes"), True)
    store.add("k", CALL, Reply("later"), True)
    rows = [json.loads(line) for line in (tmp_path / "calls.jsonl").read_text().splitlines()]
    assert kept(rows) == {("Hello?", 0): Reply("yes")}


def test_no_text_has_more_tokens_than_bytes():
    call = Call(chat(None, "é" * 10), 1)
    assert call.tokens_at_most == 20 + 8
