"""Laws: what a row says beside its layout is honoured or refused by name, in runs and in builds; nothing vanishes."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bactrian.data import build, sources
from bactrian.data import corpus as corpora
from bactrian.data.build import recipe as builds
from bactrian.data.chat import Chat
from bactrian.data.records import Conversation, Message, Preference
from bactrian.data.sources import reader
from bactrian.errors import DataError
from bactrian.recipe import LAYOUTS, File, RunLayout, Source

from test_words import TOKENIZERS  # isort: skip

USER, ANSWER, MORE, LAST = (
    Message("user", "Hi"),
    Message("assistant", "Go away."),
    Message("user", "Please."),
    Message("assistant", "Hello."),
)
TEMPLATE = (
    "{% for m in messages %}{{ m.role ~ ': ' ~ m.content ~ '</s>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
)
CHAT = Chat(TOKENIZERS["bytes"], "tulu")
CHATS = {"tulu": CHAT, "model": Chat(replace(CHAT.tokenizer, chat_template=TEMPLATE), "model")}
LIMITS = corpora.Limits(256, 512)


def row(first: dict[str, Any] | None = None, **others: Any) -> dict[str, Any]:
    turns = [{"role": turn.role, "content": turn.content} for turn in (USER, ANSWER, MORE, LAST)]
    turns[1] |= first or {}
    return {"messages": turns, **others}


def learnt(chat: Chat, record: Conversation) -> str:
    ids, learn = chat.render(record.messages)
    return chat.tokenizer.decode(ids[learn].tolist())


def parsed(layout: RunLayout, row: dict[str, Any]) -> Conversation:
    record = sources.parse(layout, row, "w")
    assert isinstance(record, Conversation)
    return record


# Masks


@pytest.mark.parametrize("key", ["weight", "train", "training", "loss"])
@pytest.mark.parametrize("chat", CHATS.values(), ids=CHATS)
def test_a_turn_that_says_so_is_read_and_not_learnt(key: str, chat: Chat):
    for no in (0, False, 0.0):
        record = parsed("messages", row({key: no}))
        assert record.messages == (USER, Message("assistant", "Go away.", False), MORE, LAST)
        assert "Go away." not in learnt(chat, record) and "Hello." in learnt(chat, record)
        ids, _ = chat.render(record.messages)
        assert (ids == chat.render((USER, ANSWER, MORE, LAST))[0]).all()
    for yes in (1, True, 1.0, None):
        assert parsed("messages", row({key: yes})).messages == (USER, ANSWER, MORE, LAST)


@pytest.mark.parametrize("chat", CHATS.values(), ids=CHATS)
def test_where_the_last_turn_is_masked_nothing_is_learnt_of_it(chat: Chat):
    record = Conversation((USER, LAST, MORE, replace(ANSWER, trained=False)), "w")
    assert learnt(replace(chat, learn="last"), record) == ""
    assert "Hello." in learnt(chat, record) and "Go away." not in learnt(chat, record)


def test_marks_of_a_template_are_masked_turn_by_turn():
    marked = (
        "{% for m in messages %}{{ m.role ~ ': ' }}{% if m.role == 'assistant' %}{% generation %}{{ m.content }}"
        "{% endgeneration %}{% else %}{{ m.content }}{% endif %}{{ ' ' }}{% endfor %}"
    )
    chat = Chat(replace(CHAT.tokenizer, chat_template=marked), "model")
    masked = replace(ANSWER, trained=False)
    assert learnt(chat, Conversation((USER, ANSWER, MORE, LAST), "w")) == "Go away.Hello."
    assert learnt(chat, Conversation((USER, masked, MORE, LAST), "w")) == "Hello."
    assert learnt(replace(chat, learn="last"), Conversation((USER, LAST, MORE, masked), "w")) == ""


@pytest.mark.parametrize(
    ("first", "expected"),
    [
        ({"weight": 0.5}, "messages[1].weight is 0.5, and a turn is trained (1, true) or not"),
        ({"weight": "0"}, "messages[1].weight is '0', and"),
        ({"weight": 1, "train": False}, "messages[1] has weight = 1 and train = False, which contradict"),
        ({"tool_calls": [{"type": "function"}]}, "messages[1].tool_calls is not carried into training"),
        ({"reasoning_content": "Hm."}, "messages[1].reasoning_content is not carried"),
        ({"thinking": "Hm."}, "messages[1].thinking is not carried"),
        ({"reasoning": "Hm."}, "messages[1].reasoning is not carried"),
        ({"images": ["a.png"]}, "messages[1].images is not carried"),
        ({"content": [{"type": "image_url", "image_url": {}}]}, "messages[1].content[0] is image_url, and only text"),
        ({"content": [{"type": "text", "text": "a"}] * 2}, "messages[1].content has 2 parts of text; join"),
        ({"role": "tool"}, "messages[1].role is 'tool', and tools are not carried"),
        ({"role": "user", "weight": 1}, "messages[1].weight is 1, and only assistant's turns are trained"),
    ],
)
def test_what_cannot_be_honoured_is_refused_by_its_name(first: dict[str, Any], expected: str):
    with pytest.raises(DataError, match="w: ") as caught:
        sources.parse("messages", row(first), "w")
    assert str(caught.value).startswith(f"w: {expected}")


@pytest.mark.parametrize("key", ["tools", "functions", "tool_calls", "reasoning_content", "images"])
def test_a_row_s_own_keys_are_refused_by_name_unless_they_are_empty(key: str):
    rows: list[tuple[RunLayout, dict[str, Any]]] = [
        ("messages", row()),
        ("alpaca", {"instruction": "Hi", "output": "Hello."}),
        ("preference", {"prompt": "Hi", "chosen": "a", "rejected": "b"}),
        ("sharegpt", {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]}),
        ("lima", {"conversations": ["a", "b"]}),
    ]
    for layout, each in rows:
        for empty in (None, "", [], {}, "[]", [None]):
            assert sources.parse(layout, {**each, key: empty}, "w") == sources.parse(layout, each, "w")
        with pytest.raises(DataError, match=f"w: {key} is not carried into training"):
            sources.parse(layout, {**each, key: [{"name": "depth"}]}, "w")


def test_an_unpaired_preference_is_not_learnt_as_if_it_were_good():
    pair = {"prompt": "Hi", "completion": "Go away."}
    with pytest.raises(DataError, match="label says whether the completion is a good one"):
        sources.parse("prompt_completion", {**pair, "label": False}, "w")
    assert sources.parse("prompt_completion", {**pair, "label": None}, "w")


def test_empty_keys_of_turns_say_nothing():
    first = {"tool_calls": [], "reasoning_content": "", "thinking": None, "weight": None, "name": "x"}
    assert parsed("messages", row(first)).messages == (USER, ANSWER, MORE, LAST)
    assert parsed("messages", row({"content": [{"type": "text", "text": "Go away."}]})) == parsed("messages", row())


# What stands before a conversation


def test_system_and_history_stand_before_the_row():
    alpaca = {"instruction": "Add.", "input": "2 and 3", "output": "5"}
    told, asked, said = Message("system", "Be kind."), Message("user", "Add.\n\n2 and 3"), Message("assistant", "5")
    before = (Message("user", "a"), Message("assistant", "b"))
    assert parsed("alpaca", {**alpaca, "system": "Be kind."}).messages == (told, asked, said)
    assert parsed("alpaca", {**alpaca, "history": [["a", "b"]]}).messages == (*before, asked, said)
    both = {**alpaca, "system": "Be kind.", "history": [["a", "b"]]}
    assert parsed("alpaca", both).messages == (told, *before, asked, said)
    assert parsed("alpaca", {**alpaca, "system": "", "history": []}).messages == (asked, said)
    assert parsed("messages", row(system="Be kind.")).messages == (told, USER, ANSWER, MORE, LAST)
    pair = sources.parse("preference", {"prompt": "Hi", "chosen": "a", "rejected": "b", "system": "Be kind."}, "w")
    assert isinstance(pair, Preference) and all(branch[0] == told for branch in pair.branches)


def test_two_system_messages_are_one_or_a_refusal():
    own = {"messages": [{"role": "system", "content": "Be kind."}, *row()["messages"]]}
    assert parsed("messages", {**own, "system": "Be kind."}).messages[0] == Message("system", "Be kind.")
    with pytest.raises(DataError, match="not the one that its conversation begins with"):
        sources.parse("messages", {**own, "system": "Be rude."}, "w")
    with pytest.raises(DataError, match="history stands beside a whole conversation"):
        sources.parse("messages", row(history=[["a", "b"]]), "w")


# Layouts of the kin


TALK = (Message("user", "Hi"), Message("assistant", "Hello."))
SYSTEM = {"from": "system", "value": "S"}


def said(asking: str, answering: str) -> list[dict[str, str]]:
    return [{"from": asking, "value": "Hi"}, {"from": answering, "value": "Hello."}]


@pytest.mark.parametrize(
    ("layout", "row", "expected"),
    [
        ("sharegpt", {"conversations": said("human", "gpt")}, TALK),
        ("sharegpt", {"conversation": [{"role": turn.role, "content": turn.content} for turn in TALK]}, TALK),
        ("sharegpt", {"conversation": [{"human": "Hi", "assistant": "Hello."}]}, TALK),
        ("sharegpt", {"conversation": [{"system": "", "input": "Hi", "output": "Hello."}]}, TALK),
        ("sharegpt", {"messages": said("user", "chatgpt")}, TALK),
        ("sharegpt", {"conversations": [SYSTEM, *said("human", "gpt")]}, (Message("system", "S"), *TALK)),
        ("prompt_completion", {"prompt": "Hi", "completion": "Hello."}, TALK),
        (
            "prompt_completion",
            {
                "prompt": row()["messages"][:3],
                "completion": [{"role": "assistant", "content": "Hello."}],
            },
            (USER, Message("assistant", "Go away.", False), MORE, LAST),
        ),
    ],
)  # fmt: skip
def test_a_run_reads_the_kin_directly(
    tmp_path: Path, layout: RunLayout, row: dict[str, Any], expected: tuple[Message, ...]
):
    assert parsed(layout, row).messages == expected
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps(row) + "\n")
    corpus = corpora.build([Source(path=str(path), format=layout)], CHAT, LIMITS, 0.0, tmp_path)
    ids, learn = CHAT.render(expected)
    assert (corpus[0].tokens == ids).all() and (corpus[0].learn == learn).all()


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "Hi", "chosen": "a", "rejected": "b"},
        {"instruction": "Hi", "input": "", "chosen": "a", "rejected": "b"},
        {"question": "Hi", "chosen": "a", "rejected": "b"},
        {
            "conversations": [{"from": "human", "value": "Hi"}],
            "chosen": {"from": "gpt", "value": "a"},
            "rejected": {"from": "gpt", "value": "b"},
        },
        {
            "chosen": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "a"}],
            "rejected": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "b"}],
        },
    ],
)
def test_pairs_of_the_kin_are_one_pair(row: dict[str, Any]):
    pair = sources.parse("preference", row, "w")
    assert pair == Preference(tuple((USER, Message("assistant", text)) for text in "ab"), "w")


def test_a_wrong_format_names_the_one_that_fits():
    row = {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello."}]}
    with pytest.raises(DataError) as caught:
        sources.parse("messages", row, "w")
    assert str(caught.value) == (
        "w: no 'messages', which the layout 'messages' needs (found: conversations); the row fits "
        'format = "sharegpt"; see docs/data.md, or let `bactrian data check` list such rows'
    )


# Runs and builds agree


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(each) + "\n" for each in rows))
    return path


def test_masks_reach_the_corpus_and_the_ledger_and_go_through_a_build(tmp_path: Path):
    rows = [row({"weight": 0}), row({"weight": 1}), row({"train": False}, system="Be kind.")]
    path = write(tmp_path / "a.jsonl", rows)
    corpus = corpora.build([Source(path=str(path), format="messages")], CHAT, LIMITS, 0.0, tmp_path)
    assert corpus.ledger["sources"][0]["noted"] == {"masked_turns": 2}
    said = [CHAT.tokenizer.decode(each.tokens[each.learn].tolist()) for each in map(corpus.__getitem__, range(3))]
    assert ["Go away." in each for each in said] == [False, True, False]
    recipe = tmp_path / "b.toml"
    recipe.write_text(
        f'name = "b"\n[mixture]\nshuffle = false\n[[sources]]\nname = "s"\npath = "{path}"\nformat = "messages"\n'
    )
    ledger = build.build(builds.load(recipe), None, tmp_path / "out", processes=1)
    assert ledger["sources"][0]["noted"] == {"masked_turns": 2}
    again = corpora.build([Source(path=str(tmp_path / "out"), format="messages")], CHAT, LIMITS, 0.0, tmp_path)
    for index in range(3):
        assert (again[index].tokens == corpus[index].tokens).all()
        assert (again[index].learn == corpus[index].learn).all()


def test_a_build_without_masks_has_no_weights(tmp_path: Path):
    path = write(tmp_path / "a.jsonl", [row()])
    recipe = tmp_path / "b.toml"
    recipe.write_text(f'name = "b"\n[[sources]]\nname = "s"\npath = "{path}"\nformat = "messages"\n')
    build.build(builds.load(recipe), None, tmp_path / "out", processes=1)
    [(_, written)] = reader.read(File(path=str(tmp_path / "out")))
    assert written["messages"] == row()["messages"]


# Any row


@pytest.mark.parametrize("key", ["tools", "system", "history", "messages", "other"])
@pytest.mark.parametrize("depth", [50, 300, 700, 900])
def test_a_row_nested_as_deep_as_json_allows_is_one_line(key: str, depth: int):
    deep: Any = "x"
    for _ in range(depth):
        deep = [deep]
    try:
        assert sources.parse("messages", {**row(), key: deep}, "w") and key == "other"
    except DataError as error:
        assert str(error).startswith("w: ") and key != "other"


KEYS = st.sampled_from(
    re.findall(
        r"\w+",
        "messages conversations prompt completion chosen rejected instruction input output history system tools id "
        "weight role content from value train type text data inputs targets ranked",
    )
)
SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=True) | st.text(max_size=4) | st.sampled_from(
    ["user", "assistant", "system", "human", "gpt", "\ud800", "\n\nHuman: a\n\nAssistant: b", "tool"]
)  # fmt: skip
VALUES = st.recursive(SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=4))


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(LAYOUTS), st.dictionaries(KEYS, VALUES, max_size=5))
def test_any_row_is_a_record_or_one_line(layout: RunLayout, row: dict[str, Any]):
    try:
        record = sources.parse(layout, row, "w")
    except DataError as error:
        assert str(error).startswith("w: ") and "\n" not in str(error)
        return
    paths = (record.messages,) if isinstance(record, Conversation) else record.branches
    for path in paths:
        for turn in path:
            turn.content.encode()
            assert turn.trained or turn.role == "assistant"
    np.testing.assert_equal(record, sources.parse(layout, row, "w"))
