"""Layout `sharegpt`: chats that users shared, `{"id": "…", "conversations": [{"from": "human", "value": "…"}, …]}`.

As anon8231489123/ShareGPT_Vicuna_unfiltered has them, and as Tulu split and read them: allenai/open-instruct,
scripts/data/sft_v1_v2/split_sharegpt_conversations.py and reformat_datasets.py (convert_sharegpt_data); a sample is
lm-sys/FastChat, data/dummy_conversation.json. Its kin spells turns otherwise: see `said`. Long chats are cut between
rounds of two turns; a round that is too long alone is left out; in a part human and gpt must take turns. A system
message that comes first stands before each part. Chats of any language stay. `html` turns pages into Markdown, after
what lm-sys/FastChat, fastchat/data/clean_sharegpt.py says of their faults.
"""

import re
from collections.abc import Iterator
from typing import Any, NamedTuple

from bactrian.data.records import Conversation, Dropped, Message, Role
from bactrian.data.sources import fields, said
from bactrian.data.sources.said import Spoken
from bactrian.data.tokenizer import Tokenizer

_ROLES: tuple[Role, Role] = ("user", "assistant")
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
    row: dict[str, Any],
    where: str,
    html: bool = False,
    limit: Limit | None = None,
    tokenizer: Tokenizer | None = None,
    keep_system: bool = True,
) -> Iterator[Conversation | Dropped]:
    """The parts of a chat, and what is left out of it. Raises `DataError`."""
    turns = said.listed(row, "sharegpt", where)
    before: tuple[Message, ...] = ()
    if keep_system and turns and turns[0].role == "system":
        first, *turns = turns
        before = (Message("system", first.text),) if first.text.strip() else ()
    if len(turns) % 2:
        yield Dropped("turn_without_answer", where)
    elif not turns:
        yield Dropped("no_turns", where)
    if html:
        turns = [turn._replace(text=markdown(turn.text)) for turn in turns]
    rounds = [turns[index : index + 2] for index in range(0, len(turns) - 1, 2)]
    name = fields.name(row, where, "id")
    for part in _parts(rounds, limit, tokenizer, "".join(message.content for message in before)):
        if isinstance(part, str):
            yield Dropped(part, where)
            continue
        inside = [turn for each in rounds[part.start : part.stop] for turn in each]
        if any(turn.role != _ROLES[index % 2] for index, turn in enumerate(inside)):
            yield Dropped("roles_out_of_order", where)
            continue
        messages = tuple(Message(_ROLES[index % 2], turn.text, turn.trained) for index, turn in enumerate(inside))
        whole = limit is None or not name
        yield Conversation((*before, *messages), where, name if whole else f"{name}_{2 * part.start}")


def _parts(
    rounds: list[list[Spoken]], limit: Limit | None, tokenizer: Tokenizer | None, system: str
) -> Iterator[range | str]:
    """The rounds of each part, or the reason why one is left out; `system` stands before each part."""
    if limit is None or tokenizer is None:
        if rounds:
            yield range(len(rounds))
        return
    around = len(tokenizer.prefix_ids) + _TURN_TOKENS
    cuts = iter(tokenizer.encode_many([[turn.text] for each in rounds for turn in each]))
    most = limit.tokens
    if system:
        (cut,) = tokenizer.encode_many([[system]])
        most -= len(cut.ids) + around
    start, size = 0, 0
    for index, each in enumerate(rounds):
        length = sum(len(next(cuts).ids) + around for _ in each)
        last = index == len(rounds) - 1
        overflows = size + length > most
        if overflows:
            if start < index:
                yield range(start, index)
            size = 0
            start = index
            if length > most:
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
