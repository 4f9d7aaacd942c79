"""The nouns of the data path: Message, Conversation, Preference, Example, Batch.

A row of a source becomes a `Conversation` or a `Preference`; a chat format makes an `Example` of it; the packer lays
examples side by side in the rows of a `Batch`.
"""

from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import numpy as np

Role = Literal["system", "user", "assistant"]
ROLES: tuple[Role, ...] = ("system", "user", "assistant")


@dataclass(frozen=True)
class Message:
    """One turn of a conversation.

    trained: false where the row says that an assistant's turn is only read, so that its loss mask is zero.
    """

    role: Role
    content: str
    trained: bool = True


Messages = tuple[Message, ...]


@dataclass(frozen=True)
class Conversation:
    """Messages to learn from; `where` names the file and row they came from.

    id and dataset: what the row itself says of its name and its origin; empty where it says nothing.
    """

    messages: Messages
    where: str
    id: str = field(default="", compare=False)
    dataset: str = field(default="", compare=False)


@dataclass(frozen=True)
class Preference:
    """Answers to one prompt, best first.

    Each branch is a whole conversation that ends in an assistant's turn, its answer; the messages before it are its
    prompt. A pair has two branches, a ranking of k answers has k. `id` and `dataset` as those of a conversation.

    scores: how good each answer was said to be; empty where nobody said.
    """

    branches: tuple[Messages, ...]
    where: str
    id: str = field(default="", compare=False)
    dataset: str = field(default="", compare=False)
    scores: tuple[float, ...] = field(default=(), compare=False)


Record = Conversation | Preference


def masked_turns(record: Record) -> int:
    """How many assistant's turns of a record its row masks; those that branches share count once."""
    paths = (record.messages,) if isinstance(record, Conversation) else record.branches
    first, *others = paths
    return sum(not turn.trained for turn in (*first, *(path[-1] for path in others if path)))


class Dropped(NamedTuple):
    """A row, or a part of one, that becomes no record: `reason` is its name in the ledger."""

    reason: str
    where: str


class Noted(NamedTuple):
    """Something in a row that the ledger counts and that makes nobody drop it: `what` is its name there."""

    what: str
    where: str


@dataclass(frozen=True)
class Example:
    """Token ids of one conversation or one preference, and which of them the model learns.

    tokens: int32 [N]. The tokens that all branches share, then those of the first branch, then the second's, …
    learn:  bool [N]. Whether the model is to learn to produce that token.
    starts: where each branch's own tokens begin. Empty for a conversation, which is shared tokens alone.

    A pair with prompt `a b c` and answers `d e` and `f`: tokens `a b c d e f`, starts `(3, 5)`.
    """

    tokens: np.ndarray
    learn: np.ndarray
    starts: tuple[int, ...] = ()

    def branch(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Tokens and learn flags of one branch as the sequence it stands for: what is shared, then its own."""
        shared = self.starts[0]
        ends = (*self.starts[1:], len(self.tokens))
        own = slice(self.starts[index], ends[index])
        return (
            np.concatenate([self.tokens[:shared], self.tokens[own]]),
            np.concatenate([self.learn[:shared], self.learn[own]]),
        )


class Batch(NamedTuple):
    """Packed rows. B rows of T places; S segments (examples) in a row at most; K branches in a segment at most.

    A place reads `tokens` and predicts `targets`. Segment 0 is padding, segment i is the row's i-th example;
    branch 0 is shared by all branches of its segment, which are 1 … K.
    """

    tokens: Any  # int32 [B, T]
    targets: Any  # int32 [B, T]: the token that follows, on the same branch
    weights: Any  # float32 [B, T]: how much predicting the target counts; 0 where it is not learnt
    positions: Any  # int32 [B, T]: where the token stands in the sequence of its branch
    segments: Any  # int32 [B, T]
    branches: Any  # int32 [B, T]
    examples: Any  # int32 [B, S]: the example in each segment, -1 where there is none
    references: Any  # float32 [B, S, K]: the reference model's log-probability of each branch; 0 where there is none

    @property
    def axes(self) -> tuple[tuple[str, ...], ...]:
        """The names of each column's axes."""
        return (("batch", "places"),) * 6 + (("batch", "segments"), ("batch", "segments", "branches"))
