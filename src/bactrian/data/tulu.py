"""Tulu 2's chat format, drawn in `chat`: its text, its loss mask, and the same as a Jinja template."""

from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from bactrian.data.records import ROLES, Messages
from bactrian.data.tokenizer import Tokenizer


class Rendering(NamedTuple):
    """A conversation before it is cut. Places are characters of the text with special tokens written out."""

    pieces: list[str | int]  # texts and special tokens' ids, as `Tokenizer.encode_many` takes them
    learnt: list[tuple[int, int]]  # what is learnt: from, up to
    answer: int  # where what the last assistant's turn says begins


@dataclass
class _Draft:
    """Pieces being laid one after the other, and how many characters there are so far."""

    tokenizer: Tokenizer
    pieces: list[str | int] = field(default_factory=list)
    at: int = 0

    def text(self, text: str) -> None:
        if not text:
            return
        if self.pieces and isinstance(self.pieces[-1], str):
            self.pieces[-1] += text
        else:
            self.pieces.append(text)
        self.at += len(text)

    def token(self, token_id: int) -> None:
        self.pieces.append(token_id)
        self.at += len(self.tokenizer.written(token_id))

    def mark(self, text: str) -> None:
        """What the format spells: a token where the tokenizer has one, else text."""
        if text in self.tokenizer.special:
            self.token(self.tokenizer.special[text])
        else:
            self.text(text)


def render(
    tokenizer: Tokenizer, messages: Messages, learn: Literal["all", "last"], generate: bool = False
) -> Rendering:
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
        content = message.content.strip()
        begin = draft.at
        draft.mark(f"<|{message.role}|>")
        if message.role == "assistant":
            draft.text("\n")
            begin_content = draft.at
            draft.text(content)
            draft.token(tokenizer.eos_id)
            said.append((begin_content, draft.at))
        else:
            draft.text(f"\n{content}" if content or not final else "")
        if not final:  # the whole text is stripped, so nothing follows the last turn
            draft.text("\n")
        trained = message.role == "assistant" and message.trained
        if trained:
            learnt.append((said[-1][0] if given else begin, draft.at))
        given = not trained
        if message.role == "assistant":
            last = said[-1:] if trained else []
    if generate:
        draft.mark("<|assistant|>")
        draft.text("\n")
    return Rendering(draft.pieces, learnt if learn == "all" else last, said[-1][0] if said else draft.at)


MARKS = tuple(f"<|{role}|>" for role in ROLES)
JINJA = (
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
