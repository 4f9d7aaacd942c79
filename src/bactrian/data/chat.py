"""Messages ↔ token ids, and which of those ids the model learns.

Invariant: the ids trained are the ids served. One rendering gives the text, cut once; ids, mask and the place where an
answer begins are read off the spans of that one tokenization, never off the lengths of prefixes tokenized apart.
Contents are plain text: no user can write a special token.

    chat = Chat(tokenizer, "tulu")
    ids, learn = chat.render(messages)      to learn from
    ids = chat.prompt(messages)             to answer

Two formats. "tulu" is that of Tulu 2 (open-instruct's finetune.py at 60ceefa6d, EasyLM's data.py): for a user's `Hi`
and the answer `Hello` it reads, after BOS if the tokenizer itself begins with one (learnt: `Hello</s>`)

    <|user|>
    Hi
    <|assistant|>
    Hello</s>

"model" is whatever the tokenizer's own chat template writes, rendered and tokenized as `transformers` does.
"""

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import date
from functools import cached_property
from itertools import chain
from typing import Literal, NamedTuple

import numpy as np

from bactrian.data import template
from bactrian.data.records import ROLES, Conversation, Example, Message, Messages, Preference, Record
from bactrian.data.tokenizer import Cut, Tokenizer
from bactrian.errors import ChatError

Format = Literal["tulu", "model"]
Learn = Literal["all", "last"]

# Part of every fingerprint: raise it when the same messages come to give other ids or another mask.
_VERSION = 2


class _Rendering(NamedTuple):
    """A conversation before it is cut. Places are characters of the text with special tokens written out."""

    pieces: list[str | int]  # texts and special tokens' ids, as `Tokenizer.encode_many` takes them
    learnt: list[tuple[int, int]]  # what is learnt: from, up to
    answer: int  # where what the last assistant's turn says begins


class _Encoded(NamedTuple):
    ids: np.ndarray  # int32 [N]
    learn: np.ndarray  # bool [N]
    answer: int  # the first token that holds some of the last assistant's turn


@dataclass(frozen=True)
class Chat:
    """A chat format on a tokenizer.

    learn: "all" assistant's turns of a conversation, or the "last" one alone.
    """

    tokenizer: Tokenizer
    format: Format
    learn: Learn = "all"

    def __post_init__(self) -> None:
        if self.format == "model" and self.tokenizer.chat_template is None:
            raise ChatError('this model\'s tokenizer has no chat template; use chat = "tulu"')

    def render(self, messages: Messages) -> tuple[np.ndarray, np.ndarray]:
        """Ids, int32 [N], of a whole conversation, and which the model learns, bool [N].

        The first token is never learnt: nothing comes before it. Raises `ChatError` if no turn is an assistant's.
        """
        (encoded,) = self._encode([messages])
        if isinstance(encoded, ChatError):
            raise encoded
        return encoded.ids, encoded.learn

    def render_many(self, records: Sequence[Record]) -> list[Example | ChatError]:
        """The example of each record, or why it cannot be rendered: as one by one, and far faster."""
        paths = [record.branches if isinstance(record, Preference) else (record.messages,) for record in records]
        encoded = iter(self._encode(list(chain.from_iterable(paths))))
        return [_example(record, [next(encoded) for _ in each]) for record, each in zip(records, paths, strict=True)]

    def prompt(self, messages: Messages) -> np.ndarray:
        """Ids, int32 [N], of the conversation so far and the header that asks for an assistant's turn."""
        return self.tokenizer.encode_pieces(self.prompt_pieces(messages))[0]

    def prompt_pieces(self, messages: Messages) -> list[str | int]:
        """`prompt` before it is cut, as `Tokenizer.encode_pieces` takes it: text may be added to the last piece."""
        _check(messages)
        if self.format == "tulu":
            return _tulu(self.tokenizer, messages, self.learn, generate=True).pieces
        disguised, back = template.disguise(messages, self.tokenizer.special, self.jinja())
        return self._pieces(self._text(disguised, generate=True), back)

    def render_conversation(self, conversation: Conversation) -> Example:
        return self._one(conversation)

    def render_preference(self, preference: Preference) -> Example:
        """The tokens that all branches begin with, then each branch's own.

        What is shared is the common beginning of the branches' prompts, token for token and flag for flag, as they
        stand in the whole renderings; it stops where the first answer begins, even if the answers begin alike.
        """
        return self._one(preference)

    def _one(self, record: Record) -> Example:
        (example,) = self.render_many([record])
        if isinstance(example, ChatError):
            raise example
        return example

    @cached_property
    def stop_ids(self) -> tuple[int, ...]:
        """Tokens at which an answer is over: EOS, and what ends an assistant's turn in the model's own template."""
        return tuple(dict.fromkeys([self.tokenizer.eos_id, *self._closing]))

    @cached_property
    def ends_turn(self) -> bool:
        """Whether an assistant's turn ends in a special token, so that a model can learn to stop."""
        return self.format == "tulu" or bool(self._closing)

    @cached_property
    def fingerprint(self) -> str:
        """Equal for two chats only if they give equal ids and equal masks."""
        parts = f"{_VERSION} {self.tokenizer.fingerprint} {self.format} {self.learn}"
        if self.format == "model" and "strftime_now" in self.jinja():
            parts += f" {date.today()}"  # the template writes the day into the text
        return hashlib.sha256(parts.encode()).hexdigest()

    def jinja(self) -> str:
        """The format as a Jinja template, for the exported tokenizer: `transformers` makes the same ids with it."""
        if self.format == "model":
            assert self.tokenizer.chat_template is not None  # __post_init__ saw to it
            return self.tokenizer.chat_template
        return ("{{ bos_token }}" if self.tokenizer.prefix_ids else "") + _TULU_JINJA

    def _encode(self, batch: Sequence[Messages]) -> list[_Encoded | ChatError]:
        renderings = [self._rendering(messages) for messages in batch]
        good = [each.pieces for each in renderings if not isinstance(each, ChatError)]
        cuts = iter(self.tokenizer.encode_many(good))
        return [each if isinstance(each, ChatError) else self._marked(each, next(cuts)) for each in renderings]

    def _marked(self, rendering: _Rendering, cut: Cut) -> _Encoded:
        """The ids of a rendering, which of them are learnt, and where the last answer begins."""
        places = self._in_bytes(rendering, cut)
        # A token that is no character of its own (a space put in front) goes with the character that follows.
        ends = np.maximum(cut.ends, cut.begins + 1)
        learnt = [(places[begin], places[end]) for begin, end in rendering.learnt if begin < end]
        learn = np.zeros(len(cut.ids), bool)
        if learnt:
            froms, tos = np.array(learnt).T
            following = np.minimum(np.searchsorted(tos, cut.begins, side="right"), len(tos) - 1)
            learn = (froms[following] < ends) & (tos[following] > cut.begins)
            learn[0] = False
        return _Encoded(cut.ids, learn, int((ends <= places[rendering.answer]).sum()))

    def _in_bytes(self, rendering: _Rendering, cut: Cut) -> dict[int, int]:
        """The places of a rendering, which are characters, in bytes of the cut's string."""
        wanted = sorted({rendering.answer, *chain.from_iterable(rendering.learnt)})
        places: dict[int, int] = {}
        at = 0
        for piece, start in zip(rendering.pieces, cut.starts.tolist(), strict=True):
            text = piece if isinstance(piece, str) else self.tokenizer.written(piece)
            while len(places) < len(wanted) and (place := wanted[len(places)]) <= at + len(text):
                inside = place - at
                places[place] = start + (inside if text.isascii() else len(text[:inside].encode()))
            at += len(text)
        return places

    def _rendering(self, messages: Messages) -> "_Rendering | ChatError":
        try:
            _check(messages)
            if all(message.role != "assistant" for message in messages):
                raise ChatError(
                    "no turn is an assistant's, so there is nothing to learn; drop the row or add an answer"
                )
            whole = _tulu(self.tokenizer, messages, self.learn) if self.format == "tulu" else self._model(messages)
            if not whole.pieces:
                raise ChatError('the chat template writes nothing for these messages; use chat = "tulu"')
        except ChatError as error:
            return error
        return whole

    def _model(self, messages: Messages) -> _Rendering:
        """The template's text, in which a turn spans what it adds to the header that asks for it, or what the template
        itself marks as generated."""
        disguised, back = template.disguise(messages, self.tokenizer.special, self.jinja())
        if template.has_marks(self.jinja()):
            text, spans = template.render_marked(self.jinja(), disguised, self._tokens)
            if not spans:
                raise ChatError("the chat template marks nothing of these messages to be learnt; drop the row")
            return _Rendering(self._pieces(text, back), self._trained(spans, messages), spans[-1][0])
        text = self._text(disguised)
        turns = [index for index, message in enumerate(messages) if message.role == "assistant"]
        turns = turns if self.learn == "all" else turns[-1:]
        spans = [self._turn(text, disguised, turn) for turn in turns]
        learnt = [span for span, turn in zip(spans, turns, strict=True) if messages[turn].trained]
        return _Rendering(self._pieces(text, back), learnt, spans[-1][0])

    def _trained(self, spans: list[tuple[int, int]], messages: Messages) -> list[tuple[int, int]]:
        """Of the spans that a template marks, those that are learnt. Raises `ChatError` where that cannot be told."""
        turns = [message for message in messages if message.role == "assistant"]
        if not all(turn.trained for turn in turns):
            if len(turns) != len(spans):
                raise ChatError(
                    f"the chat template marks {len(spans)} parts of {len(turns)} assistant's turns, so which of them "
                    'a masked turn is cannot be told; use chat = "tulu", or drop the row'
                )
            kept = [span for span, turn in zip(spans, turns, strict=True) if turn.trained]
            return kept if self.learn == "all" else [span for span in kept if span == spans[-1]]
        return spans if self.learn == "all" else spans[-1:]

    def _turn(self, text: str, messages: Messages, index: int) -> tuple[int, int]:
        """Where a turn begins in the text, and where the special token that ends it does; if none does, the turn."""
        header = self._text(messages[:index], generate=True)
        turn = self._text(messages[: index + 1])
        if not (text.startswith(turn) and turn.startswith(header)):
            which = f"message {index + 1}, an assistant's" + (" with no turn before it" if index == 0 else "")
            raise ChatError(
                f"the chat template is not prefix-monotone: what it writes up to {which}, is not how the whole begins, "
                'so what is learnt cannot be told; use chat = "tulu"'
            )
        specials = self._special.finditer(text, len(header), len(turn))
        return len(header), max((match.end() for match in specials), default=len(turn))

    def _text(self, messages: Messages, generate: bool = False) -> str:
        return template.render(self.jinja(), messages, self._tokens, generate)

    @cached_property
    def _tokens(self) -> dict[str, str]:
        return {"bos_token": self.tokenizer.bos_text, "eos_token": self.tokenizer.eos_text}

    def _pieces(self, text: str, back: dict[int, str]) -> list[str | int]:
        """The text cut at its special tokens, with the contents' own characters given back."""
        pieces: list[str | int] = []
        at = 0
        for match in self._special.finditer(text):
            pieces += [text[at : match.start()], self.tokenizer.special[match.group()]]
            at = match.end()
        given_back = (piece.translate(back) if back and isinstance(piece, str) else piece for piece in pieces)
        last = text[at:].translate(back) if back else text[at:]
        return [piece for piece in [*given_back, last] if piece != ""]

    @cached_property
    def _special(self) -> re.Pattern[str]:
        return re.compile(template.alternatives(self.tokenizer.special))

    @cached_property
    def _closing(self) -> tuple[int, ...]:
        """The special token that ends an assistant's turn in the template, seen on a conversation of two turns."""
        if self.format == "tulu":
            return (self.tokenizer.eos_id,)
        messages = (Message("user", "a"), Message("assistant", "b"))
        begin, end = self._turn(self._text(messages), messages, 1)
        found = [match.group() for match in self._special.finditer(self._text(messages), begin, end)]
        return tuple(self.tokenizer.special[text] for text in found[-1:])


def _example(record: Record, branches: Sequence[_Encoded | ChatError]) -> Example | ChatError:
    if isinstance(record, Preference) and any(not turns or turns[-1].role != "assistant" for turns in record.branches):
        return ChatError(f"{record.where}: a branch does not end in an assistant's turn; give each its answer")
    good = [branch for branch in branches if not isinstance(branch, ChatError)]
    wrong = next((branch for branch in branches if isinstance(branch, ChatError)), None)
    if wrong is not None:
        return ChatError(f"{record.where}: {wrong}")
    if not isinstance(record, Preference):
        return Example(good[0].ids, good[0].learn)
    first, shared = good[0], min(branch.answer for branch in good)
    for branch in good[1:]:
        same = (branch.ids[:shared] == first.ids[:shared]) & (branch.learn[:shared] == first.learn[:shared])
        shared = shared if same.all() else int(same.argmin())
    own = [len(branch.ids) - shared for branch in good]
    return Example(
        np.concatenate([first.ids[:shared], *(branch.ids[shared:] for branch in good)]),
        np.concatenate([first.learn[:shared], *(branch.learn[shared:] for branch in good)]),
        tuple(shared + sum(own[:index]) for index in range(len(own))),
    )


def _check(messages: Messages) -> None:
    if not messages:
        raise ChatError("the conversation has no messages; drop the row")
    for number, message in enumerate(messages, 1):
        if message.role not in ROLES:
            raise ChatError(f"message {number} has the role {message.role!r}; known are {', '.join(ROLES)}")


@dataclass
class _Draft:
    """Pieces being laid one after the other, and how many characters there are so far."""

    tokenizer: Tokenizer
    pieces: list[str | int] = field(default_factory=list)
    at: int = 0

    def text(self, text: str) -> None:
        if self.pieces and isinstance(self.pieces[-1], str):
            self.pieces[-1] += text
        else:
            self.pieces.append(text)
        self.at += len(text)

    def token(self, token_id: int) -> None:
        self.pieces.append(token_id)
        self.at += len(self.tokenizer.written(token_id))


def _tulu(tokenizer: Tokenizer, messages: Messages, learn: Learn, generate: bool = False) -> _Rendering:
    """Tulu 2's text and mask.

    Not learnt are BOS, every turn that is not an assistant's, and the header that follows one; all else is, so also a
    header that nothing but an assistant's turn comes before, and the line end between `</s>` and the next turn.
    """
    draft = _Draft(tokenizer)
    for token_id in tokenizer.prefix_ids:
        draft.token(token_id)
    learnt: list[tuple[int, int]] = []
    said: list[tuple[int, int]] = []
    last: list[tuple[int, int]] = []  # what is learnt where only the last turn is
    given = False  # whether what came before is masked, and so masks an assistant's header too
    for index, message in enumerate(messages):
        final = index == len(messages) - 1 and not generate
        header, content = f"<|{message.role}|>\n", message.content.strip()
        begin = draft.at
        if message.role == "assistant":
            draft.text(header)
            begin_content = draft.at
            draft.text(content)
            draft.token(tokenizer.eos_id)
            said.append((begin_content, draft.at))
        else:
            draft.text((header + content).strip() if final else header + content)
        if not final:  # the whole text is stripped, so nothing follows the last turn
            draft.text("\n")
        trained = message.role == "assistant" and message.trained
        if trained:
            learnt.append((said[-1][0] if given else begin, draft.at))
        given = not trained
        if message.role == "assistant":
            last = said[-1:] if trained else []
    if generate:
        draft.text("<|assistant|>\n")
    return _Rendering(draft.pieces, learnt if learn == "all" else last, said[-1][0] if said else draft.at)


_TULU_JINJA = (
    "{% for message in messages %}"
    "{% if message['role'] not in ['system', 'user', 'assistant'] %}"
    "{{ raise_exception('known roles are system, user and assistant') }}"
    "{% endif %}"
    "{% set turn = '<|' ~ message['role'] ~ '|>\\n' ~ (message['content'] | trim) %}"
    "{% if message['role'] == 'assistant' %}{% set turn = turn ~ eos_token %}{% endif %}"
    "{{ turn | trim if loop.last and not add_generation_prompt else turn ~ '\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% endif %}"
)
