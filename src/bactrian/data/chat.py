"""Messages ↔ token ids, and which of those ids the model learns.

Invariant: the ids trained are the ids served. One rendering gives the text, cut once; ids, mask and the place where an
answer begins are read off the spans of that one tokenization, never off the lengths of prefixes tokenized apart.
Contents are plain text: no user can write a special token, nor a mark that the format writes, which may be a token of
its own without being flagged special (`<|im_start|>` of some models). In an answer such a mark is the token that it is.

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
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property
from itertools import chain
from typing import Literal, NamedTuple

import numpy as np

from bactrian.data import template, tulu
from bactrian.data.records import ROLES, Conversation, Example, Message, Messages, Preference, Record
from bactrian.data.tokenizer import Cut, Tokenizer
from bactrian.data.tulu import Rendering
from bactrian.errors import ChatError

Format = Literal["tulu", "model"]
Learn = Literal["all", "last"]

# Part of every fingerprint: raise it when the same messages come to give other ids or another mask.
_VERSION = 3


class _Encoded(NamedTuple):
    ids: np.ndarray  # int32 [N]
    learn: np.ndarray  # bool [N]
    answer: int  # the first token that holds some of the last assistant's turn


@dataclass(frozen=True)
class Chat:
    """A chat format on a tokenizer.

    learn: "all" assistant's turns of a conversation, or the "last" one alone.
    now:   what a template that asks for the time is told; by default when this was made.
    """

    tokenizer: Tokenizer
    format: Format
    learn: Learn = "all"
    now: datetime = field(default_factory=datetime.now)

    def __post_init__(self) -> None:
        if self.format == "model" and self.tokenizer.chat_template is None:
            raise ChatError('this model\'s tokenizer has no chat template; use chat = "tulu"')
        # Whoever reads the export finds the marks too, wherever they stand.
        object.__setattr__(self, "tokenizer", self.tokenizer.with_exact(self.marks))

    def encode(self, pieces: Sequence[str | int]) -> np.ndarray:
        """Ids, int32 [N], of what `prompt_pieces` gives."""
        return self._encoder.encode_pieces(pieces)[0]

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
        return self.encode(self.prompt_pieces(messages))

    def prompt_pieces(self, messages: Messages) -> list[str | int]:
        """`prompt` before it is cut, as `encode` takes it: text may be added to the last piece."""
        _check(messages)
        if self.format == "tulu":
            return tulu.render(self._encoder, messages, self.learn, generate=True).pieces
        disguised, back = self._disguised(messages)
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
        """Tokens at which an answer is over: EOS, what ends an assistant's turn in the model's own template, and what
        the model's files state."""
        return tuple(dict.fromkeys([self.tokenizer.eos_id, *self._closing, *self.tokenizer.ends]))

    @cached_property
    def ends_turn(self) -> bool:
        """Whether an assistant's turn ends in a special token, so that a model can learn to stop."""
        return self.format == "tulu" or bool(self._closing)

    @cached_property
    def fingerprint(self) -> str:
        """Equal for two chats only if they give equal ids and equal masks."""
        parts = f"{_VERSION} {self.tokenizer.fingerprint} {self.format} {self.learn}"
        if self.format == "model" and "strftime_now" in self.jinja():
            parts += f" {self._times}"  # the template writes the day into the text
        return hashlib.sha256(parts.encode()).hexdigest()

    def content(self, text: str) -> str:
        """What a model said as the content of its turn: without the space that the format itself writes before it."""
        return text.removeprefix(" ") if self._writes_space else text

    def jinja(self) -> str:
        """The format as a Jinja template, for the exported tokenizer: `transformers` makes the same ids with it."""
        if self.format == "model":
            assert self.tokenizer.chat_template is not None  # __post_init__ saw to it
            return self.tokenizer.chat_template
        return ("{{ bos_token }}" if self.tokenizer.prefix_ids else "") + tulu.JINJA

    def _encode(self, batch: Sequence[Messages]) -> list[_Encoded | ChatError]:
        renderings = [self._rendering(messages) for messages in batch]
        good = [each.pieces for each in renderings if not isinstance(each, ChatError)]
        cuts = iter(self._encoder.encode_many(good))
        return [each if isinstance(each, ChatError) else self._marked(each, next(cuts)) for each in renderings]

    def _marked(self, rendering: Rendering, cut: Cut) -> _Encoded:
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

    def _in_bytes(self, rendering: Rendering, cut: Cut) -> dict[int, int]:
        """The places of a rendering, which are characters, in bytes of the cut's string."""
        wanted = sorted({rendering.answer, *chain.from_iterable(rendering.learnt)})
        places: dict[int, int] = {}
        at = 0
        for piece, start in zip(rendering.pieces, cut.starts.tolist(), strict=True):
            text = piece if isinstance(piece, str) else self._encoder.written(piece)
            while len(places) < len(wanted) and (place := wanted[len(places)]) <= at + len(text):
                inside = place - at
                places[place] = start + (inside if text.isascii() else len(text[:inside].encode()))
            at += len(text)
        return places

    def _rendering(self, messages: Messages) -> "Rendering | ChatError":
        try:
            _check(messages)
            if all(message.role != "assistant" for message in messages):
                raise ChatError(
                    "no turn is an assistant's, so there is nothing to learn; drop the row or add an answer"
                )
            whole = tulu.render(self._encoder, messages, self.learn) if self.format == "tulu" else self._model(messages)
            if not whole.pieces:
                raise ChatError('the chat template writes nothing for these messages; use chat = "tulu"')
        except ChatError as error:
            return error
        return whole

    def _model(self, messages: Messages) -> Rendering:
        """The template's text, in which a turn spans what it adds to the header that asks for it, or what the template
        itself marks as generated."""
        disguised, back = self._disguised(messages)
        if template.has_marks(self.jinja()):
            text, spans = template.render_marked(self.jinja(), disguised, self.tokenizer.names, self.now)
            if not spans:
                raise ChatError("the chat template marks nothing of these messages to be learnt; drop the row")
            return Rendering(self._pieces(text, back), self._trained(spans, messages), spans[-1][0])
        text = self._text(disguised)
        turns = [index for index, message in enumerate(messages) if message.role == "assistant"]
        turns = turns if self.learn == "all" else turns[-1:]
        spans = [self._turn(text, disguised, turn) for turn in turns]
        learnt = [span for span, turn in zip(spans, turns, strict=True) if messages[turn].trained]
        return Rendering(self._pieces(text, back), learnt, spans[-1][0])

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
        specials = self._ending.finditer(text, len(header), len(turn))
        return len(header), max((match.end() for match in specials), default=len(turn))

    def _text(self, messages: Messages, generate: bool = False) -> str:
        return template.render(self.jinja(), messages, self.tokenizer.names, generate, self.now)

    def _disguised(self, messages: Messages) -> template.Disguise:
        special = self.tokenizer.special
        return template.disguise(messages, [*special, *self.marks], self.jinja(), special)

    @cached_property
    def marks(self) -> tuple[str, ...]:
        """Tokens set apart from text, but not flagged special, that the format writes around contents."""
        words = [text for text in self.tokenizer.set_apart if text not in self.tokenizer.special]
        written = words and (tulu.MARKS if self.format == "tulu" else self._written)
        return tuple(text for text in words if text in written)

    @cached_property
    def _written(self) -> str:
        """All that the template writes around contents, for conversations that it does not refuse."""
        talk = (Message("user", "a"), Message("assistant", "b"), Message("user", "c"))
        texts = []
        for messages in (talk, (Message("system", "s"), *talk), talk[:2]):
            with suppress(ChatError):
                texts += [self._text(messages), self._text(messages, generate=True)]
        return "\n".join(texts)

    @cached_property
    def _times(self) -> str:
        """The time as the template writes it, as far as that can be seen without contents."""
        return template.written_times(self.jinja(), self.tokenizer.names, self.now)

    @cached_property
    def _encoder(self) -> Tokenizer:
        """The tokenizer to which the marks are special, so that no text becomes one."""
        return self.tokenizer.with_special(self.marks)

    def _pieces(self, text: str, back: dict[int, str]) -> list[str | int]:
        """The text cut at its special tokens, with the contents' own characters given back."""
        pieces: list[str | int] = []
        at = 0
        for match in self._special.finditer(text):
            pieces += [text[at : match.start()], self._encoder.special[match.group()]]
            at = match.end()
        given_back = (piece.translate(back) if back and isinstance(piece, str) else piece for piece in pieces)
        last = text[at:].translate(back) if back else text[at:]
        return [piece for piece in [*given_back, last] if piece != ""]

    @cached_property
    def _special(self) -> re.Pattern[str]:
        return re.compile(template.alternatives(self._encoder.special))

    @cached_property
    def _ending(self) -> re.Pattern[str]:
        """What may end a turn: a special token, or the mark that the template writes after a content."""
        text = self._text((Message("user", "a"), Message("assistant", "\ue000"))) if self.marks else ""
        marks = [match.group() for match in self._special.finditer(text, text.find("\ue000") + 1)]
        return re.compile(template.alternatives({*self.tokenizer.special, *marks}))

    @cached_property
    def _closing(self) -> tuple[int, ...]:
        """The special token that ends an assistant's turn in the template, seen on a conversation of two turns."""
        if self.format == "tulu":
            return (self.tokenizer.eos_id,)
        messages = (Message("user", "a"), Message("assistant", "b"))
        begin, end = self._turn(self._text(messages), messages, 1)
        found = [match.group() for match in self._ending.finditer(self._text(messages), begin, end)]
        return tuple(self._encoder.special[text] for text in found[-1:])

    @cached_property
    def _writes_space(self) -> bool:
        """Whether the template puts a space between an assistant's header and what it says, as Llama 2's does."""
        if self.format == "tulu":
            return False
        messages = (Message("user", "a"), Message("assistant", "b"))
        try:
            text = self._text(messages)
            begin, end = self._turn(text, messages, 1)
        except ChatError:
            return False
        return text[begin:end].startswith(" ")


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
