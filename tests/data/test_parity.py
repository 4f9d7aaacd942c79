"""Parity with `transformers`: the ids of Tulu's format and of Jinja templates, and the masks of generation marks.

On real conversations whose contents hold no special token: here such text stays text, there it becomes the token.
"""

import gzip
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from bactrian.data import tokenizer as tokenizers
from bactrian.data.chat import Chat
from bactrian.data.records import Conversation, Dropped, Example
from bactrian.data.sources import sharegpt
from bactrian.data.tokenizer import Tokenizer

FEW, MANY = 60, 2000
MARKED_TULU = (
    "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'assistant' %}{{ '<|assistant|>\\n' }}"
    "{% generation %}{{ (message['content'] | trim) ~ eos_token }}{% endgeneration %}{{ '' if loop.last else '\\n' }}"
    "{% else %}{{ '<|' ~ message['role'] ~ '|>\\n' ~ (message['content'] | trim) ~ '\\n' }}{% endif %}{% endfor %}"
)
MARKED_CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' }}"
    "{% if message['role'] == 'assistant' %}{% generation %}{{ message['content'] + '<|im_end|>' }}{% endgeneration %}"
    "{% else %}{{ message['content'] + '<|im_end|>' }}{% endif %}{{ '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
CHATML = MARKED_CHATML.replace("{% generation %}", "").replace("{% endgeneration %}", "")


class Pair(NamedTuple):
    """A tokenizer here and the same in `transformers`."""

    ours: Tokenizer
    peer: Any


def peer_of(tokenizer: Tokenizer, folder: Path) -> Any:
    transformers = pytest.importorskip("transformers")
    tokenizers.save(tokenizer, folder)
    return transformers.AutoTokenizer.from_pretrained(folder)


@pytest.fixture(scope="module")
def chats(shared_data: Path) -> list[Conversation]:
    """Real conversations, the first 2,000 of whole rounds."""
    found: list[Conversation] = []
    with gzip.open(shared_data / "sft" / "sharegpt_v3_4797.jsonl.gz", "rb") as file:
        for line in file.read().split(b"\n"):
            found += _parsed(line)
    assert len(found) >= MANY
    return found[:MANY]


def _parsed(line: bytes) -> Iterator[Conversation]:
    try:
        row = json.loads(line)
    except ValueError:
        return
    for each in sharegpt.parse(row, "w", html=False, limit=None, tokenizer=None):
        if not isinstance(each, Dropped):
            yield each


@pytest.fixture(scope="module")
def llama2(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    folder = tmp_path_factory.mktemp("llama2")
    (folder / "tokenizer.json").write_bytes((shared_data / "llama2_tokenizer" / "tokenizer.json").read_bytes())
    (folder / "tokenizer_config.json").write_text(json.dumps({"bos_token": "<s>", "eos_token": "</s>"}))
    ours = tokenizers.load(folder)
    return Pair(ours, peer_of(ours, tmp_path_factory.mktemp("llama2-peer")))


@pytest.fixture(scope="module")
def smollm2_tokenizer(smollm2: Path, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    ours = tokenizers.load(smollm2)
    return Pair(ours, peer_of(ours, tmp_path_factory.mktemp("smollm2-peer")))


def assert_equal(
    chat: Chat, peer: Any, chats: Sequence[Conversation], masks: bool, template: str | None = None
) -> None:
    plain = [
        each
        for each in chats
        if not any(text in turn.content for text in chat.tokenizer.special for turn in each.messages)
    ]
    assert len(plain) >= 0.99 * len(chats)
    turns = [[vars(turn) for turn in each.messages] for each in plain]
    asked = {"tokenize": True, "return_dict": True, "return_assistant_tokens_mask": masks}
    theirs = peer.apply_chat_template(turns, chat_template=template or chat.jinja(), **asked)
    for index, example in enumerate(chat.render_many(plain)):
        assert isinstance(example, Example)
        assert example.tokens.tolist() == theirs["input_ids"][index], plain[index].messages[0]
        if masks:
            assert example.learn.astype(int).tolist() == theirs["assistant_masks"][index], plain[index].messages[0]


def check_all(llama2: Pair, smollm2: Pair, chats: Sequence[Conversation]) -> None:
    assert_equal(Chat(llama2.ours, "tulu"), llama2.peer, chats, masks=False)
    assert_equal(Chat(smollm2.ours, "tulu"), smollm2.peer, chats, masks=False)
    for pair, template, masks in [
        (llama2, MARKED_TULU, True),
        (smollm2, MARKED_CHATML, True),
        (smollm2, CHATML, False),
        (smollm2, smollm2.ours.chat_template, False),
    ]:
        assert_equal(Chat(pair.ours.with_template(template), "model"), pair.peer, chats, masks)


def test_ids_and_masks_equal_those_of_transformers(llama2: Pair, smollm2_tokenizer: Pair, chats: list[Conversation]):
    check_all(llama2, smollm2_tokenizer, chats[:FEW])


@pytest.mark.slow
def test_ids_and_masks_equal_on_2000_conversations(llama2: Pair, smollm2_tokenizer: Pair, chats: list[Conversation]):
    check_all(llama2, smollm2_tokenizer, chats)


def test_the_masks_of_marks_are_those_that_turns_give(llama2: Pair, smollm2_tokenizer: Pair, chats: list[Conversation]):
    """What a template marks here is what the rule for templates without marks finds."""
    for learn in ("all", "last"):
        marked, unmarked = (
            Chat(smollm2_tokenizer.ours.with_template(each), "model", learn) for each in (MARKED_CHATML, CHATML)
        )
        for one, other in zip(marked.render_many(chats[:FEW]), unmarked.render_many(chats[:FEW]), strict=True):
            assert isinstance(one, Example) and isinstance(other, Example)
            assert one.tokens.tolist() == other.tokens.tolist() and one.learn.tolist() == other.learn.tolist()
