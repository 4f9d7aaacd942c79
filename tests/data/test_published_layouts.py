"""Laws: each published layout becomes the conversations that its rules say, row by row; what is left out is counted.

Fixtures are ours, in the layouts cited by the parsers; real files are checked where they are at hand.
"""

import gzip
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bactrian.data import sources, tokenizer
from bactrian.data.records import Conversation, Dropped, Message, Record
from bactrian.data.sources import oasst, reader, sharegpt, templates
from bactrian.data.sources.kinds import HardCoded, OpenAssistant, Plain, ShareGPT, Templated
from bactrian.data.tokenizer import Tokenizer
from bactrian.errors import DataError
from bactrian.recipe import File

from test_words import TOKENIZERS  # isort: skip

Found = Record | Dropped


def talk(*texts: str, system: str | None = None) -> tuple[Message, ...]:
    turns = tuple(Message(("user", "assistant")[index % 2], text) for index, text in enumerate(texts))
    return turns if system is None else (Message("system", system), *turns)


def plain(layout: str, row: dict[str, Any]) -> list[Found]:
    source = Plain.model_validate({"name": "x", "path": "x.jsonl", "format": layout})
    return list(sources.parser(source, None)(row, "x.jsonl:1"))


def only(found: list[Found]) -> Conversation:
    [record] = found
    assert isinstance(record, Conversation)
    return record


# One row, one conversation


@pytest.mark.parametrize(
    ("layout", "row", "expected"),
    [
        ("flan", {"inputs": "Is it raining?", "targets": "No."}, talk("Is it raining?\n", "No.")),
        ("flan", {"inputs": "Q: rain?\nA:", "targets": "No.", "_task_name": "t"}, talk("Q: rain?\nA:", "No.")),
        ("flan", {"inputs": "A: ", "targets": ""}, talk("A: ", "")),
        ("flan", {"inputs": "Rain?\n", "targets": "No"}, talk("Rain?\n", "No")),
        (
            "open_orca",
            {"id": "niv.1", "system_prompt": "", "question": "2+2?", "response": "4"},
            talk("2+2?", "4", system=""),
        ),
        (
            "open_orca",
            {"id": "cot.2", "system_prompt": "Think.", "question": "2+2?", "response": "4"},
            talk("2+2?", "4", system="Think."),
        ),
        ("science", {"dataset": "scierc_ner", "input": "Find.", "output": "A"}, talk("Find.", "A")),
        (
            "dolly",
            {"instruction": "Sum up.", "context": "Long.", "response": "L.", "category": "summarization"},
            talk("Sum up.\n\nLong.", "L."),
        ),
        ("dolly", {"instruction": "Hi", "context": "", "response": "Yo"}, talk("Hi", "Yo")),
        (
            "wizardlm",
            {"idx": "a1", "conversations": [{"from": "human", "value": "Q"}, {"from": "gpt", "value": "A"}]},
            talk("Q", "A"),
        ),
        ("lima", {"conversations": ["Q", "A", "Q2", "A2"], "source": "multi_turn"}, talk("Q", "A", "Q2", "A2")),
        ("ultrachat", {"id": "7", "data": ["Q", "A"]}, talk("Q", "A")),
    ],
)
def test_a_row_becomes_its_turns(layout: str, row: dict[str, Any], expected: tuple[Message, ...]):
    assert only(plain(layout, row)).messages == expected


def test_rows_keep_what_they_call_themselves():
    row = {"id": "niv.1", "system_prompt": "", "question": "q", "response": "r"}
    assert only(plain("open_orca", row)).id == "niv.1"
    turns = [{"from": "human", "value": "Q"}, {"from": "gpt", "value": "A"}]
    assert only(plain("wizardlm", {"idx": "a1", "conversations": turns})).id == "a1"
    science = only(plain("science", {"dataset": "scifact_json", "input": "i", "output": "o"}))
    assert science.dataset == "science.scifact_json"
    messages = [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}]
    published = only(plain("messages", {"dataset": "lima", "id": "lima_3", "messages": messages}))
    assert (published.dataset, published.id) == ("lima", "lima_3")
    assert only(plain("messages", {"prompt_id": "f0", "prompt": "Q", "messages": messages})).id == "f0"


@pytest.mark.parametrize("layout", ["lima", "ultrachat"])
def test_a_turn_without_an_answer_is_left_out_and_counted(layout: str):
    key = {"lima": "conversations", "ultrachat": "data"}[layout]
    conversation, left = plain(layout, {key: ["Q", "A", "Q2"]})
    assert isinstance(conversation, Conversation) and conversation.messages == talk("Q", "A")
    assert left == Dropped("turn_without_answer", "x.jsonl:1")
    assert plain(layout, {key: ["Q"]}) == [left]
    assert plain(layout, {key: []}) == [Dropped("no_turns", "x.jsonl:1")]


@pytest.mark.parametrize(
    ("layout", "row", "expected"),
    [
        ("flan", {"inputs": "a"}, "no 'targets', which the layout 'flan' needs (found: inputs)"),
        ("open_orca", {"question": "a", "response": "b"}, "no 'system_prompt'"),
        ("science", {"input": "a", "output": "b"}, "no 'dataset'"),
        ("wizardlm", {"conversations": "a"}, "conversations is text, not a list of turns"),
        ("wizardlm", {"conversations": [{"from": "gpt", "value": "A"}]}, "conversations[0].from is 'gpt', out of turn"),
        ("wizardlm", {"conversations": [{"from": "human", "value": "A"}]}, "conversations has 1 turns"),
        ("wizardlm", {"conversations": [{"value": "A"}]}, "conversations[0] is no object with `from` and `value`"),
        ("lima", {"conversations": [1]}, "conversations[0] is a number, not text"),
        ("ultrachat", {"data": {"a": 1}}, "data is an object, not a list of texts"),
    ],
)
def test_a_row_that_does_not_fit_is_one_line(layout: str, row: dict[str, Any], expected: str):
    with pytest.raises(DataError) as caught:
        plain(layout, row)
    assert str(caught.value).startswith(f"x.jsonl:1: {expected}") and "\n" not in str(caught.value)


# What an assistant says of itself


def test_names_are_filled_in():
    source = HardCoded(name="x", path="x", format="hard_coded", model_name="Camel", developers="the herd")
    row = {"Prompt": "Who is {model_name}?", "Output": "{model_name}, by {developers}. {other}"}
    record = only(list(sources.parser(source, None)(row, "w")))
    assert record.messages == talk("Who is Camel?", "Camel, by the herd. {other}")


def test_a_sheet_is_read_like_any_file(tmp_path: Path):
    openpyxl = pytest.importorskip("openpyxl")
    book = openpyxl.Workbook()
    for row in (["Prompt", "Output"], ["Who?", "I."], [None, None], ["What?", "That."]):
        book.active.append(row)
    book.save(tmp_path / "a.xlsx")
    rows = list(reader.read(File(path=str(tmp_path / "a.xlsx"))))
    assert [row for _, row in rows] == [{"Prompt": "Who?", "Output": "I."}, {"Prompt": "What?", "Output": "That."}]
    assert [where.rpartition(":")[2] for where, _ in rows] == ["2", "4"]
    (tmp_path / "b.xlsx").write_text("no workbook")
    with pytest.raises(DataError, match=r"b\.xlsx: not a readable workbook"):
        list(reader.read(File(path=str(tmp_path / "b.xlsx"))))


# Templates

TEMPLATES = """
import random
encoding_templates_w_input = [
    ("{instruction} / {input}", "{output}", 0.75),
    ("Do: {instruction}\\nWith: {input}\\n", "\\n{output}", 0.25),
]
encoding_templates_wo_input = [("{instruction}!", "{output}", 1.0)]
raise SystemExit("nobody runs this")
"""


def templated(path: Path, layout: str, row: dict[str, Any]) -> tuple[Message, ...]:
    source = Templated.model_validate({"name": "x", "path": "x", "format": layout, "templates": str(path)})
    return only(list(sources.parser(source, None)(row, "w"))).messages


def test_each_row_gets_a_template_by_weight_and_always_the_same(tmp_path: Path):
    path = tmp_path / "templates.py"
    path.write_text(TEMPLATES)
    assert templated(path, "alpaca_templated", {"instruction": " Add ", "input": " ", "output": " 5 "}) == talk(
        "Add!", "5"
    )
    assert templated(path, "dolly_templated", {"instruction": "Add", "context": None, "response": "5"}) == talk(
        "Add!", "5"
    )
    first = talk("Add {output} / 2 {instruction}", "5")
    second = talk("Do: Add {output}\nWith: 2 {instruction}\n", "\n5")
    seen = {first: 0, second: 0}
    for number in range(400):
        row = {"instruction": "Add {output}", "input": "2 {instruction}", "output": "5" + " " * number}
        chosen = templated(path, "alpaca_templated", row)
        assert chosen == templated(path, "alpaca_templated", row)
        seen[chosen] += 1
    assert 250 < seen[first] < 350


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (None, "cannot read the templates: No such file"),
        ("a = ", "cannot read the templates: invalid syntax"),
        ("a = 1", "no list encoding_templates_w_input in it"),
        ("\nencoding_templates_w_input = [(1, 2)]", ":2: not a list of (prompt, answer, weight)"),
        ("encoding_templates_w_input = open('x')", ":1: not a list of (prompt, answer, weight)"),
    ],
)
def test_templates_that_cannot_be_read_are_one_line(tmp_path: Path, text: str | None, expected: str):
    path = tmp_path / "templates.py"
    if text is not None:
        path.write_text(text)
    with pytest.raises(DataError) as caught:
        templates.read(str(path))
    assert expected in str(caught.value) and "\n" not in str(caught.value)


def test_every_code_alpaca_row_is_one_of_the_templates(shared_data: Path, tmp_path: Path):
    path = tmp_path / "templates.py"
    path.write_text(TEMPLATES)
    rows = json.loads((shared_data / "codealpaca" / "code_alpaca_2k.json").read_text(encoding="utf-8"))
    for row in rows:
        instruction, given, output = (row[key].strip() for key in ("instruction", "input", "output"))
        if given:
            possible = {
                talk(f"{instruction} / {given}", output),
                talk(f"Do: {instruction}\nWith: {given}\n", f"\n{output}"),
            }
        else:
            possible = {talk(f"{instruction}!", output)}
        assert templated(path, "alpaca_templated", row) in possible
    assert len(rows) == 2017


# Trees


def message(role: str, text: str, *replies: Any, quality: float | None = None, deleted: bool = False) -> dict[str, Any]:
    labels = {} if quality is None else {"labels": {"quality": {"value": quality, "count": 3}}}
    return {"role": role, "text": text, "deleted": deleted, "replies": list(replies), **labels}


def tree(root: dict[str, Any], state: str = "ready_for_export") -> dict[str, Any]:
    return {"message_tree_id": "t", "tree_state": state, "prompt": root}


TREE = tree(
    message(
        "prompter",
        "Q",
        message("assistant", "low", quality=0.1),
        message("assistant", "gone", quality=0.9, deleted=True),
        message(
            "assistant",
            "high",
            message("prompter", "no label", message("assistant", "unlabelled")),
            message("prompter", "labelled", message("assistant", "last", quality=0.0), quality=0.2),
            message("prompter", "unanswered", quality=0.1),
            quality=0.8,
        ),
        message("assistant", "left alone", message("prompter", "gone", deleted=True), quality=0.3),
    )
)


def trees(row: dict[str, Any], paths: str) -> list[Found]:
    source = OpenAssistant.model_validate({"name": "x", "path": "x", "format": "oasst", "paths": paths})
    return list(sources.parser(source, None)(row, "w"))


def test_the_best_path_follows_the_quality_label_past_the_deleted():
    record = only(trees(TREE, "best"))
    assert record.messages == talk("Q", "high", "labelled", "last")
    assert record.id == "t"


def test_all_paths_go_to_the_leaves_and_those_without_an_answer_are_counted():
    found = trees(TREE, "all")
    kept = [each.messages for each in found if isinstance(each, Conversation)]
    low, high = talk("Q", "low"), talk("Q", "high", "labelled", "last")
    assert kept == [low, talk("Q", "high", "no label", "unlabelled"), high]
    assert [each.reason for each in found if isinstance(each, Dropped)] == [
        "no_answer_at_the_end",
        "every_reply_deleted",
    ]
    assert len({each.id for each in found if isinstance(each, Conversation)}) == 3


def test_trees_that_give_nothing_are_counted():
    ready = message("prompter", "Q", message("assistant", "A"))
    assert trees(tree(ready, "prompt_lottery_waiting"), "best") == [Dropped("tree_not_ready", "w")]
    assert trees(tree(message("prompter", "Q", deleted=True)), "best") == [Dropped("deleted", "w")]
    assert trees(tree(message("prompter", "Q")), "best") == [Dropped("no_answer_at_the_end", "w")]


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({}, "no 'prompt', which the layout 'oasst' needs"),
        ({"prompt": "Q"}, "prompt is text, not a message"),
        (tree({"text": "Q", "role": "user"}), "prompt.role is 'user', not prompter or assistant"),
        (tree(message("prompter", "Q", {"role": "assistant"})), "prompt.replies[0].text is null, not text"),
        (tree({**message("prompter", "Q"), "replies": "none"}), "prompt.replies is text, not a list"),
    ],
)
def test_a_broken_tree_is_one_line_that_names_the_message(row: dict[str, Any], expected: str):
    with pytest.raises(DataError) as caught:
        list(oasst.parse(row, "w", "best"))
    assert expected in str(caught.value)


def test_every_real_tree_gives_each_path_to_a_leaf(shared_data: Path):
    rows = [json.loads(line) for line in (shared_data / "oasst" / "en_100_tree.jsonl").open(encoding="utf-8")]
    assert len(rows) == 100

    def leaves(node: dict[str, Any], before: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], bool]]:
        path = (*before, node["text"])
        if not node["replies"]:
            yield path, node["role"] == "assistant"
        for reply in node["replies"]:
            yield from leaves(reply, path)

    messages = total = 0
    for row in rows:
        expected = list(leaves(row["prompt"]))
        found = trees(row, "all")
        assert [isinstance(each, Conversation) for each in found] == [answered for _, answered in expected]
        for each, (path, _) in zip(found, expected, strict=True):
            if isinstance(each, Conversation):
                assert each.messages == talk(*path)
        [best] = trees(row, "best")
        # Nothing in this file is labelled, so the first reply is the best each time.
        assert isinstance(best, Conversation) == expected[0][1]
        assert not isinstance(best, Conversation) or best.messages == talk(*expected[0][0])
        messages += len({path[:n] for path, _ in expected for n in range(1, len(path) + 1)})
        total += len(found)
    assert messages <= 1167 and total >= 100


# ShareGPT


def shared(row: dict[str, Any], cutter: Tokenizer | None = None, **settings: Any) -> list[Found]:
    source = ShareGPT.model_validate({"name": "x", "path": "x", "format": "sharegpt", "max_tokens": 0, **settings})
    return list(sources.parser(source, cutter)(row, "w"))


def chat(*texts: str, speakers: tuple[str, ...] = ("human", "gpt")) -> dict[str, Any]:
    turns = [{"from": speakers[index % len(speakers)], "value": text} for index, text in enumerate(texts)]
    return {"id": "c", "conversations": turns}


def test_a_chat_is_whole_rounds_of_human_and_gpt():
    assert only(shared(chat("Q", "A", "Q2", "A2"))).messages == talk("Q", "A", "Q2", "A2")
    left, record = shared(chat("Q", "A", "Q2"))
    assert left == Dropped("turn_without_answer", "w")
    assert isinstance(record, Conversation) and record.messages == talk("Q", "A")
    assert shared(chat()) == [Dropped("no_turns", "w")]
    assert shared(chat("A", "Q", speakers=("gpt", "human"))) == [Dropped("roles_out_of_order", "w")]
    assert shared(chat("Q", "S", speakers=("human", "system"))) == [Dropped("roles_out_of_order", "w")]
    assert only(shared(chat("你好", "您好"))).messages == talk("你好", "您好")


def parts(lengths: list[int], limit: int, keep_last_round: bool) -> list[tuple[str, ...] | str]:
    """The rounds of each part of a chat whose rounds have these token counts, or why a round is left out."""
    cutter = TOKENIZERS["never"]  # it knows no `ж`, which is two bytes and so two tokens; nothing is put in front
    around = 2 * sharegpt._TURN_TOKENS
    assert all((length - around) % 2 == 0 for length in lengths)
    texts = [text for number, length in enumerate(lengths) for text in ("", "ж" * ((length - around) // 2))]
    found = shared(chat(*texts), cutter, max_tokens=limit, keep_last_round=keep_last_round)
    sizes = [
        tuple(len(turn.content) * 2 + around for turn in each.messages[1::2])
        if isinstance(each, Conversation)
        else each.reason
        for each in found
    ]
    return [size if isinstance(size, str) else tuple(map(str, size)) for size in sizes]


@pytest.mark.parametrize(
    ("lengths", "kept", "as_published"),
    [
        ([20, 20], [("20", "20")], None),
        ([50, 50, 50], [("50", "50"), ("50",)], [("50", "50"), "last_round_lost"]),
        ([50, 50, 50, 20], [("50", "50"), ("50", "20")], None),
        ([200, 20, 20], ["round_too_long", ("20", "20")], None),
        ([20, 200, 20, 20], [("20",), "round_too_long", ("20", "20")], None),
        ([20, 200, 20], [("20",), "round_too_long", ("20",)], [("20",), "round_too_long", "last_round_lost"]),
        ([20, 200], [("20",), "round_too_long"], None),
        ([100], [("100",)], None),
        ([102], ["round_too_long"], None),
    ],
)
def test_long_chats_are_cut_between_rounds(lengths: list[int], kept: list[Any], as_published: list[Any] | None):
    assert parts(lengths, 100, keep_last_round=True) == kept
    assert parts(lengths, 100, keep_last_round=False) == (kept if as_published is None else as_published)


def test_pages_become_markdown():
    page = (
        '<div class="markdown prose"><p>Here is <strong>code</strong> &amp; a list:</p><ul><li>one</li>'
        '<li>two_under</li></ul><pre><div class="bg-black"><div class="flex"><span>python</span>'
        '<button class="flex">Copy code</button></div><div class="p-4"><code class="hljs language-python">'
        '<span class="hljs-keyword">def</span> f(a):\n    <span>return</span> a &lt; 1\n</code></div></div></pre>'
        "<p>A * star.</p></div>"
    )
    expected = (
        "Here is **code** & a list:\n\n* one\n* two_under\n\n```python\ndef f(a):\n    return a < 1\n```\n\nA * star."
    )
    assert sharegpt.markdown(page) == expected
    assert sharegpt.markdown(f"2 / 3{page}Copy200 chars / 30 words") == expected
    table = "<table><tr><th>a</th><th>b</th></tr><tr><td>1</td><td>2</td></tr></table>"
    assert sharegpt.markdown(table) == "| a | b |\n| --- | --- |\n| 1 | 2 |"
    for text in ("if a < b:\n    x <tag>\n\n\n\nend", "1 / 2 is a half"):
        assert sharegpt.markdown(text) == text
    record = only(shared(chat("a < b", page), html=True))
    assert record.messages == talk("a < b", expected)
    assert only(shared(chat("a < b", page))).messages == talk("a < b", page)


@pytest.fixture(scope="module")
def llama2(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    folder = tmp_path_factory.mktemp("llama2")
    (folder / "tokenizer.json").write_bytes((shared_data / "llama2_tokenizer" / "tokenizer.json").read_bytes())
    (folder / "tokenizer_config.json").write_text(json.dumps({"bos_token": "<s>", "eos_token": "</s>"}))
    return tokenizer.load(folder)


def test_every_real_chat_is_cut_by_the_rules(shared_data: Path, llama2: Tokenizer):
    rows: list[dict[str, Any]] = []
    with gzip.open(shared_data / "sft" / "sharegpt_v3_4797.jsonl.gz", "rb") as file:
        for line in file.read().split(b"\n")[:700]:
            try:
                rows.append(json.loads(line))
            except ValueError:
                continue
    limit, seen = 1024, 0
    for row in rows:
        said = row["conversations"][: len(row["conversations"]) // 2 * 2]
        sizes = [len(llama2.encode_text(turn["value"], add_bos=True)) + 6 for turn in said]
        found = shared(row, llama2, max_tokens=limit)
        cut = [each for each in found if isinstance(each, Conversation)]
        reasons = [each.reason for each in found if isinstance(each, Dropped)]
        assert (len(row["conversations"]) % 2 == 1) == ("turn_without_answer" in reasons)
        at = 0
        for each in cut:
            begin = int(each.id.rpartition("_")[2])
            # What lies between two parts is rounds too long alone, and parts in which somebody speaks out of turn.
            assert begin >= at and begin % 2 == 0 and each.id == f"{row['id']}_{begin}"
            length = len(each.messages)
            assert [turn.content for turn in each.messages] == [turn["value"] for turn in said[begin : begin + length]]
            assert [turn["from"] for turn in said[begin : begin + length]] == ["human", "gpt"] * (length // 2)
            assert sum(sizes[begin : begin + length]) <= limit
            # The next round would not have fitted.
            after = sum(sizes[begin : begin + length + 2])
            assert begin + length == len(said) or after > limit
            at = begin + length
        lost = sum(a + b > limit for a, b in zip(sizes[::2], sizes[1::2], strict=True))
        assert reasons.count("round_too_long") == lost
        if "roles_out_of_order" not in reasons:
            assert sum(len(each.messages) for each in cut) == len(said) - 2 * lost
        seen += len(cut)
    assert len(rows) > 650 and seen > len(rows)


def test_every_dummy_chat_parses(shared_data: Path):
    rows = list(reader.read(File(path=str(shared_data / "sft" / "fastchat_dummy_conversation.json"))))
    assert len(rows) == 500
    for _, row in rows:
        assert only(shared(row)).messages == talk(*(turn["value"] for turn in row["conversations"]))
