"""How likely continuations are after their contexts, token ids in, numbers out, over packed rows.

Joins what packs (data/) and what computes (model/). Programs are compiled for few shapes: row lengths, numbers of rows,
questions and a shared beginning's places are rounded up.
"""

from collections.abc import Iterator, Sequence
from functools import partial
from typing import NamedTuple

import jax
import numpy as np

from bactrian.data import questions
from bactrian.data.questions import Request, Rows
from bactrian.model import attention, likelihood, llama
from bactrian.model.attention import Places
from bactrian.model.likelihood import Questions
from bactrian.model.llama import Dtype
from bactrian.model.prefix import Prefix

_AT_ONCE = {"cpu": 1024}  # places in a batch, by backend: what a processor has at hand is little
_AT_ONCE_ELSEWHERE = 16_384
_GRAIN = 16  # places of a shared beginning are a multiple of it, or of an eighth of their power of two


class Likelihood(NamedTuple):
    """Log-probability of a continuation, in nats, and whether each of its tokens was the likeliest."""

    logprob: float
    is_greedy: bool


class Scorer:
    """A model ready to score."""

    def __init__(self, config: llama.Config, parameters: llama.Parameters, *, dtype: Dtype = "float32"):
        self.config = config
        self._compute = llama.Compute(dtype, attention=attention.suited(jax.devices()[0]))
        self._parameters = parameters
        self._nothing = llama.no_prefix(config, dtype)
        self._at_once = _AT_ONCE.get(jax.default_backend(), _AT_ONCE_ELSEWHERE)

    def score(self, requests: Sequence[Request]) -> list[list[Likelihood]]:
        """Of each request the likelihood of each continuation, in order.

        No context with its longest continuation may be longer than the model's positions and one token.
        """
        logprobs = [np.zeros(len(request.continuations)) for request in requests]
        greedy = [np.ones(len(request.continuations), bool) for request in requests]
        for rows, found in self._answered(requests):
            values, likeliest = np.asarray(found.logprobs), np.asarray(found.likeliest)
            for request, continuation, question, column in rows.asked:
                logprobs[request][continuation] += values[question, column]
                greedy[request][continuation] &= likeliest[question, column]
        return [
            [Likelihood(float(value), bool(likely)) for value, likely in zip(values, likely, strict=True)]
            for values, likely in zip(logprobs, greedy, strict=True)
        ]

    def _answered(self, requests: Sequence[Request]) -> Iterator[tuple[Rows, likelihood.Answers]]:
        for beginning, batches in questions.batches(requests, self._at_once):
            before = self._read(beginning) if len(beginning) else self._nothing
            # The next batch is laid out while the device is at this one.
            waiting: tuple[Rows, likelihood.Answers] | None = None
            for rows in batches:
                found = _answer(self.config, self._compute, self._parameters, *_arrays(rows), before)
                if waiting:
                    yield waiting
                waiting = rows, found
            if waiting:
                yield waiting

    def _read(self, beginning: np.ndarray) -> Prefix:
        padded = np.pad(beginning, (0, _places(len(beginning)) - len(beginning)))
        return _read_prefix(self.config, self._compute, self._parameters, padded, np.int32(len(beginning)))


@partial(jax.jit, static_argnums=(0, 1))
def _answer(config, compute, parameters, tokens_BT, places, asked, before) -> likelihood.Answers:
    return likelihood.of_rows(parameters, config, compute, tokens_BT, places, asked, before)


@partial(jax.jit, static_argnums=(0, 1))
def _read_prefix(config, compute, parameters, tokens_P, length) -> Prefix:
    return llama.read_prefix(parameters, config, tokens_P, length, compute)


def _arrays(rows: Rows) -> tuple[np.ndarray, Places, Questions]:
    places = Places(rows.segments, rows.branches, rows.positions)  # pyright: ignore[reportArgumentType]
    asked = Questions(rows.places, rows.targets, np.int32(rows.count))  # pyright: ignore[reportArgumentType]
    return rows.tokens, places, asked


def _places(length: int) -> int:
    """The length rounded up, by an eighth at most where it is long."""
    grain = max(_GRAIN, 1 << (length - 1).bit_length() >> 3)
    return -(-length // grain) * grain
