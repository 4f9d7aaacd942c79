"""Laws: every row of a layout becomes one record, and one that does not fit is one line that names it."""

import json
from pathlib import Path
from typing import Any, get_args

import pytest

from bactrian.data import sources
from bactrian.data.records import Conversation, Message, Preference
from bactrian.data.sources import reader
from bactrian.errors import DataError
from bactrian.recipe import Layout, Source

USER, ANSWER, OTHER = Message("user", "Hi"), Message("assistant", "Hello."), Message("assistant", "What?")
CHAT = {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}]}


def turns(*messages: Message) -> list[dict[str, str]]:
    return [{"role": message.role, "content": message.content} for message in messages]


def load(path: Path, layout: Layout) -> list[Conversation | Preference]:
    return list(sources.load(Source(path=str(path), format=layout)))


# Layouts


def test_every_layout_has_a_parser():
    for layout in get_args(Layout):
        with pytest.raises(DataError, match=f"which the layout '{layout}' needs"):
            sources.parse(layout, {}, "here")


def test_messages_keep_roles_order_and_text():
    told = (Message("system", "Be kind."), USER, ANSWER, Message("user", " again\n"), Message("assistant", ""))
    row = {"id": 3, "messages": [{**turn, "name": "x"} for turn in turns(*told)]}
    assert sources.parse("messages", row, "here") == Conversation(told, "here")


@pytest.mark.parametrize(
    ("prompt", "chosen", "rejected", "before"),
    [
        ("Hi", "Hello.", "What?", (USER,)),
        ("Hi", turns(USER, ANSWER), turns(USER, OTHER), (USER,)),
        (None, turns(USER, ANSWER), turns(USER, OTHER), (USER,)),
        ("Hi", turns(ANSWER), turns(OTHER), (USER,)),
        ("Hi", "Hello.", turns(OTHER), (USER,)),
        (turns(USER), turns(ANSWER), turns(OTHER), (USER,)),
        (turns(USER), "Hello.", "What?", (USER,)),
        (turns(USER), turns(USER, ANSWER), turns(USER, OTHER), (USER,)),
        (turns(USER, OTHER, USER), turns(ANSWER), turns(OTHER), (USER, OTHER, USER)),
        (None, turns(USER, OTHER, USER, ANSWER), turns(USER, OTHER, USER, OTHER), (USER, OTHER, USER)),
    ],
)
def test_a_preference_is_two_whole_conversations(prompt: Any, chosen: Any, rejected: Any, before: tuple[Message, ...]):
    row = {"prompt": prompt, "chosen": chosen, "rejected": rejected, "score_chosen": 7.5}
    expected = Preference(((*before, ANSWER), (*before, OTHER)), "here")
    assert sources.parse("preference", row, "here") == expected
    if prompt is None:
        del row["prompt"]
        assert sources.parse("preference", row, "here") == expected


def test_hh_splits_at_speakers_and_nowhere_else():
    chosen = (
        "\n\nHuman: Say Human: twice\nHuman: no\n\nAssistant:  Human: two\n\nAssistant:\n\nHuman: so \n\nAssistant: "
    )
    record = sources.parse("hh", {"chosen": chosen, "rejected": "\n\nHuman: Hi\n\nAssistant: Hello."}, "here")
    assert record == Preference(
        (
            (
                Message("user", "Say Human: twice\nHuman: no"),
                Message("assistant", " Human: two"),
                Message("assistant", ""),
                Message("user", "so "),
                Message("assistant", ""),
            ),
            (USER, ANSWER),
        ),
        "here",
    )


def test_alpaca_puts_the_input_below_the_instruction():
    row = {"instruction": "Add.", "input": "2 and 3", "output": "5"}
    answer = Message("assistant", "5")
    assert sources.parse("alpaca", row, "w") == Conversation((Message("user", "Add.\n\n2 and 3"), answer), "w")
    for without in ({**row, "input": ""}, {**row, "input": None}, {"instruction": "Add.", "output": "5"}):
        assert sources.parse("alpaca", without, "w") == Conversation((Message("user", "Add."), answer), "w")


PAIR = {"prompt": "Hi", "chosen": "Hello.", "rejected": "What?"}
TALK = {"chosen": "\n\nHuman: Hi\n\nAssistant: Hello.", "rejected": "\n\nHuman: Hi\n\nAssistant: What?"}


@pytest.mark.parametrize(
    ("layout", "row", "expected"),
    [
        ("messages", PAIR, "no 'messages', which the layout 'messages' needs (found: prompt, chosen, rejected)"),
        ("preference", CHAT, "no 'chosen', which the layout 'preference' needs (found: messages)"),
        ("preference", {**PAIR, "prompt": None}, "no 'prompt'"),
        ("preference", {**PAIR, "rejected": None}, "no 'rejected'"),
        ("hh", PAIR, "chosen does not begin with"),
        ("alpaca", {}, "no 'instruction', which the layout 'alpaca' needs (found: nothing)"),
        ("alpaca", {"instruction": "Add."}, "no 'output'"),
        ("alpaca", {"instruction": 5, "output": "5"}, "instruction is a number, not text"),
        ("alpaca", {"instruction": "Add.", "output": "5", "input": []}, "input is a list, not text"),
        ("messages", {"messages": "Hi"}, "messages is text, not a list"),
        ("messages", {"messages": []}, "messages is empty"),
        ("messages", {"messages": ["Hi"]}, "messages[0] is text, not an object"),
        (
            "messages",
            {"messages": [{"from": "human", "value": "Hi"}]},
            "messages[0] has no 'role' (found: from, value)",
        ),
        ("messages", {"messages": [{"role": "user"}]}, "messages[0] has no 'content'"),
        ("messages", {"messages": [{"role": "human", "content": ""}]}, "messages[0].role is 'human', not system, user"),
        ("messages", {"messages": [{"role": ["user"], "content": ""}]}, "messages[0].role is a list"),
        ("messages", {"messages": [{"role": "user", "content": None}]}, "messages[0].content is null, not text"),
        (
            "messages",
            {"messages": [{"role": "user", "content": "\ud800"}]},
            "messages[0].content holds half a surrogate",
        ),
        ("messages", {"messages": turns(USER)}, "messages has no assistant's turn"),
        ("preference", {**PAIR, "chosen": turns(USER)}, "chosen ends in the user's turn"),
        ("preference", {**PAIR, "chosen": []}, "chosen is empty"),
        ("preference", {"chosen": turns(ANSWER), "rejected": turns(OTHER)}, "no 'prompt'"),
        ("preference", {**PAIR, "prompt": turns(OTHER), "chosen": turns(USER, ANSWER)}, "chosen begins neither"),
        ("preference", {**PAIR, "prompt": 3}, "prompt is a number, not a list"),
        ("hh", {**TALK, "chosen": "Hi"}, "chosen does not begin with '\\n\\nHuman:'"),
        ("hh", {**TALK, "chosen": "\n\nAssistant: Hi"}, "chosen does not begin"),
        ("hh", {**TALK, "rejected": "\n\nHuman: Hi"}, "rejected does not end in an assistant's turn"),
        ("hh", {**TALK, "rejected": ["Hi"]}, "rejected is a list, not text"),
    ],
)
def test_a_row_that_does_not_fit_is_one_line_with_its_place(tmp_path: Path, layout: Layout, row: Any, expected: str):
    good: dict[str, Any] = {
        "messages": CHAT,
        "preference": PAIR,
        "hh": TALK,
        "alpaca": {"instruction": "", "output": ""},
    }
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps(each) + "\n" for each in (good[layout], row)))
    with pytest.raises(DataError) as caught:
        load(path, layout)
    message = str(caught.value)
    assert message.startswith(f"{path}:2: {expected}")
    assert "\n" not in message
    if " needs " in message:
        # A row of another layout says which; a list of names alone led nowhere.
        other = next(iter(sources.fitting(row)), None)
        assert (f'format = "{other}"' if other else "messages, preference, hh, alpaca") in message


# Real files


def test_every_ultrafeedback_pair_parses(shared_data: Path):
    path = shared_data / "ultrafeedback" / "uf_binarized_train_1000.jsonl"
    rows = [row for _, row in reader.read(Source(path=str(path), format="preference"))]
    records = load(path, "preference")
    assert len(records) == len(rows) == 1000
    for row, record in zip(rows, records, strict=True):
        assert isinstance(record, Preference)
        for key, branch in zip(("chosen", "rejected"), record.branches, strict=True):
            assert turns(*branch) == turns(Message("user", row["prompt"]), Message("assistant", row[key]))


def test_every_hh_transcript_is_its_turns_put_together_again(shared_data: Path):
    path = shared_data / "hh-rlhf" / "test.jsonl.gz"
    rows = [row for _, row in reader.read(Source(path=str(path), format="hh"))]
    records = load(path, "hh")
    assert len(records) == len(rows) == 2312
    names = {"user": "Human", "assistant": "Assistant"}
    empty = 0
    for row, record in zip(rows, records, strict=True):
        assert isinstance(record, Preference)
        for key, branch in zip(("chosen", "rejected"), record.branches, strict=True):
            assert "".join(f"\n\n{names[turn.role]}: {turn.content}" for turn in branch) == row[key]
            empty += branch[-1].content == ""
    assert empty == 4


@pytest.mark.parametrize(
    ("name", "count", "with_input"),
    [("codealpaca/code_alpaca_2k.json", 2017, 1006), ("sft/alpaca_en_demo.json", 999, 412)],
)
def test_every_alpaca_row_parses_and_knows_its_line(shared_data: Path, name: str, count: int, with_input: int):
    path = shared_data / name
    records = load(path, "alpaca")
    assert len(records) == count
    lines = path.read_text(encoding="utf-8").split("\n")
    rows = json.loads(path.read_text(encoding="utf-8"))
    longer = 0
    for row, record in zip(rows, records, strict=True):
        assert isinstance(record, Conversation)
        question, answer = record.messages
        assert question.content.startswith(row["instruction"])
        assert answer.content == row["output"]
        longer += question.content != row["instruction"]
        assert lines[int(record.where.rpartition(":")[2]) - 1].strip() == "{"
    assert longer == with_input
