"""What an evaluation is handed: something that answers prompts and something that scores continuations.

Our engine is one such thing, an OpenAI-compatible address another; an evaluation cannot tell them apart.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from bactrian.data.records import Messages
from bactrian.errors import InputError

# Text to continue as it stands, or a conversation to answer in the model's chat format; one that ends in an assistant's
# turn is continued there.
Prompt = str | Messages


@dataclass(frozen=True)
class Settings:
    """How to generate. Temperature 0 takes the likeliest token; top_k 0 and top_p 1 leave all tokens to draw from.

    An answer ends before the first of the `stop` texts, as well as where the model ends it.
    """

    max_tokens: int = 1024
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    stop: tuple[str, ...] = ()
    seed: int = 0

    def __post_init__(self):
        if self.max_tokens < 1:
            raise InputError(f"max_tokens is {self.max_tokens}: ask for at least 1 token")
        if not (math.isfinite(self.temperature) and self.temperature >= 0):
            raise InputError(f"temperature is {self.temperature}: give 0 (greedy) or a positive number")


class Score(NamedTuple):
    """Log-probability of a continuation, in nats, and whether each of its tokens is the likeliest one."""

    logprob: float
    is_greedy: bool


class Generator(Protocol):
    """What answers prompts."""

    def generate(self, prompts: Sequence[Prompt], settings: Settings) -> list[str]:
        """An answer to each prompt, in the prompts' order, without special tokens.

        The answer to prompt i depends on the prompt, the settings and i, never on the other prompts.
        """
        ...


class Scorer(Protocol):
    """What says how likely continuations are."""

    def score(self, contexts: Sequence[Prompt], continuations: Sequence[str]) -> list[Score]:
        """The score of continuation i after context i, in order. Equal contexts may be read once."""
        ...


class Responder(Generator, Scorer, Protocol):
    """Both."""
