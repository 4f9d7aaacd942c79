"""Layout `sharegpt`: chats that users shared, `{"id": "…", "conversations": [{"from": "human", "value": "…"}, …]}`.

As anon8231489123/ShareGPT_Vicuna_unfiltered has them, and as Tulu split and read them: allenai/open-instruct,
scripts/data/sft_v1_v2/split_sharegpt_conversations.py and reformat_datasets.py (convert_sharegpt_data); a sample is
lm-sys/FastChat, data/dummy_conversation.json. Long chats are cut between rounds of two turns; a round that is too long
alone is left out; in a part human and gpt must take turns. Chats of any language stay. `html` turns pages into
Markdown, after what lm-sys/FastChat, fastchat/data/clean_sharegpt.py says of their faults.
"""

import re
from collections.abc import Iterator
from typing import Any, NamedTuple

from bactrian.data.records import Conversation, Dropped, Message, Role
from bactrian.data.sources import fields
from bactrian.data.tokenizer import Tokenizer

_SPEAKERS: tuple[tuple[str, Role], ...] = (("human", "user"), ("gpt", "assistant"))
_TURN_TOKENS = 6  # what Tulu's split adds to a turn's tokens for its header
_PAGE = re.compile(r"\s*(?:\d+ / \d+\s*)?<[a-zA-Z]")
_WRAPPERS = re.compile(r"</?(?:div|span)\b[^>]*>")  # they would take the indent out of code
_CODE_HEAD = re.compile(r"```[ \t]*\n*([^\n`]*?)(?:Copy code)+")  # a block's language and button, above its code
_PAGE_NUMBER = re.compile(r"^\d+ / \d+")  # of an answer that was asked for again
_COUNTER = re.compile(r"Copy\d+ chars / \d+ words")
_EMPTY_BLOCK = re.compile(r"```[^\n`]*\n\s*```")


class Limit(NamedTuple):
    """Tokens of a part, and whether a last round that would begin a part of its own is kept."""

    tokens: int
    keep_last_round: bool


def parse(
    row: dict[str, Any], where: str, html: bool, limit: Limit | None, tokenizer: Tokenizer | None
) -> Iterator[Conversation | Dropped]:
    """The parts of a chat, and what is left out of it. Raises `DataError`."""
    said = fields.said(row, "sharegpt", where)
    rounds = [said[index : index + 2] for index in range(0, len(said) - 1, 2)]
    if len(said) % 2:
        yield Dropped("turn_without_answer", where)
    elif not rounds:
        yield Dropped("no_turns", where)
    if html:
        rounds = [[(speaker, markdown(text)) for speaker, text in each] for each in rounds]
    name = fields.name(row, "id")
    for part in _parts(rounds, limit, tokenizer):
        if isinstance(part, str):
            yield Dropped(part, where)
            continue
        turns = [turn for each in rounds[part.start : part.stop] for turn in each]
        if any(speaker != _SPEAKERS[index % 2][0] for index, (speaker, _) in enumerate(turns)):
            yield Dropped("roles_out_of_order", where)
            continue
        messages = tuple(Message(_SPEAKERS[index % 2][1], text) for index, (_, text) in enumerate(turns))
        whole = limit is None or not name
        yield Conversation(messages, where, name if whole else f"{name}_{2 * part.start}")


def _parts(
    rounds: list[list[tuple[str, str]]], limit: Limit | None, tokenizer: Tokenizer | None
) -> Iterator[range | str]:
    """The rounds of each part, or the reason why one is left out."""
    if limit is None or tokenizer is None:
        if rounds:
            yield range(len(rounds))
        return
    cuts = iter(tokenizer.encode_many([[text] for each in rounds for _, text in each]))
    around = len(tokenizer.prefix_ids) + _TURN_TOKENS
    start, size = 0, 0
    for index, each in enumerate(rounds):
        length = sum(len(next(cuts).ids) + around for _ in each)
        last = index == len(rounds) - 1
        overflows = size + length > limit.tokens
        if overflows:
            if start < index:
                yield range(start, index)
            size = 0
            start = index
            if length > limit.tokens:
                yield "round_too_long"
                start = index + 1
        size += length  # a round that is left out counts too: the next one begins a part in any case
        if last and start <= index:
            yield range(start, index + 1) if limit.keep_last_round or not overflows else "last_round_lost"


def markdown(html: str) -> str:
    """A message's page as Markdown, without the page's own buttons and counters; code keeps its language.

    A text that does not begin as a page does is text, as questions often are.
    """
    import markdownify

    if not _PAGE.match(html):
        return html.strip()
    text = markdownify.markdownify(_WRAPPERS.sub("", html), escape_underscores=False, escape_asterisks=False).strip()
    text = _CODE_HEAD.sub(lambda match: f"```{match[1].strip()}\n", text)
    text = _COUNTER.sub("", _PAGE_NUMBER.sub("", text))
    text = _EMPTY_BLOCK.sub("", text)
    return re.sub(r"\n{3,}", "\n\n", text).strip()
