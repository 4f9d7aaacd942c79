"""The engine: token ids in, token ids out.

A prompt waits until one of the batch's slots is free, is read into a cache of its own and moves into the slot; then all
slots step together, one token each. A slot whose answer has ended steps on unheeded until the host, which looks every
few steps, gives it to the next prompt. What a row answers depends on its prompt, the settings and its place in the list
of prompts, never on the other rows. What many prompts begin with is read once and looked back at by all of them.

Lengths are rounded up to a few buckets, so that few programs are compiled.

Shapes: B slots, T new tokens, S cache places, V vocabulary.
"""

import math
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bactrian.data import sharing
from bactrian.errors import InputError
from bactrian.inference import sampling
from bactrian.model import llama
from bactrian.model.prefix import Prefix

_LOOK_EVERY = 8  # steps between two looks of the host at what was generated
_SMALLEST_BUCKET = 32
_READ_AT_ONCE = 512  # tokens of a prompt per prefill call: bounds its attention scores and the number of programs
_LARGE = 1024  # requests whose caches are longer run together by multiples of it, shorter ones by powers of two
_GROUP_COST = 4096  # tokens read in the time that slots stand idle because prompts that begin alike run by themselves

Finish = Literal["stop", "length"]


Ids = Sequence[int] | np.ndarray
Ended = Callable[[np.ndarray], bool]  # whether an answer's tokens so far, int32 [N], are all that is wanted


@dataclass(frozen=True)
class Settings:
    """How to generate. Temperature 0 takes the likeliest token; top_k 0 and top_p 1 leave all tokens to draw from."""

    max_tokens: int = 256
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    stop_ids: tuple[int, ...] = ()
    seed: int = 0

    def __post_init__(self):
        if self.max_tokens < 1:
            raise InputError(f"max_tokens is {self.max_tokens}: ask for at least 1 token")
        if not (math.isfinite(self.temperature) and self.temperature >= 0):
            raise InputError(f"temperature is {self.temperature}: give 0 (greedy) or a positive number")
        if self.top_k < 0:
            raise InputError(f"top_k is {self.top_k}: give 0 (all tokens) or how many to keep")
        if not 0 < self.top_p <= 1:
            raise InputError(f"top_p is {self.top_p}: give a number above 0 and at most 1 (all tokens)")
        if not 0 <= self.seed < 2**32:
            raise InputError(f"seed is {self.seed}: give a whole number from 0 to {2**32 - 1}")

    @property
    def mode(self) -> sampling.Mode:
        if self.temperature == 0:
            return "greedy"
        return "plain" if self.top_k == 0 and self.top_p == 1 else "filtered"


@dataclass(frozen=True)
class Generated:
    """One answer: its tokens, int32 [N], without the stop token, and whether that or the limit ended it."""

    tokens: np.ndarray
    finish: Finish


class Rows(NamedTuple):
    """What a slot knows beside its cache: the token it reads next, how many it has read, and its random key."""

    tokens_B: jax.Array
    lengths_B: jax.Array
    keys_B: jax.Array


class _Request(NamedTuple):
    """`prompt` is without what it shares with the others of its group."""

    index: int
    prompt: np.ndarray
    places: int


@dataclass
class _Answering:
    index: int
    left: int
    tokens: np.ndarray


class Engine:
    """A model ready to generate: its layers unstacked and cast once."""

    def __init__(
        self,
        config: llama.Config,
        parameters: llama.Parameters,
        *,
        dtype: llama.Dtype = "float32",
        max_rows: int = 32,
    ):
        if max_rows < 1:
            raise InputError(f"max_rows is {max_rows}: the engine needs at least 1 row")
        self.config = config
        self.dtype = dtype
        self.max_rows = max_rows
        self._parameters = jax.tree.map(lambda weight: jnp.asarray(weight, dtype), llama.unstack(parameters))

    def generate(self, prompts: Sequence[Ids], settings: Settings, ended: Ended | None = None) -> list[Generated]:
        """An answer to each prompt, in the prompts' order; any number of prompts of any lengths.

        `ended` is asked now and then, and stops an answer early; some tokens may come after what made it say so.
        Row i draws with `fold_in(PRNGKey(seed), i)`. Raises InputError for a prompt that is empty, that holds ids
        outside the vocabulary, or that leaves no room for `max_tokens`.
        """
        arrays = [self._checked(index, prompt, settings) for index, prompt in enumerate(prompts)]
        pieces: list[list[np.ndarray]] = [[] for _ in arrays]
        finishes: list[Finish] = ["length"] * len(arrays)
        for shared, members in sharing.groups(arrays, _GROUP_COST):
            before = self._read_shared(arrays[members[0]][:shared]) if shared else None
            requests = [_request(index, arrays[index][shared:], settings) for index in members]
            # One long prompt does not make the caches of all others long.
            for _, alike in groupby(sorted(requests, key=lambda each: each.places), lambda each: _size(each.places)):
                for index, tokens, finish in self._run(list(alike), settings, _LOOK_EVERY, before, ended):
                    pieces[index].append(tokens)
                    finishes[index] = finish or finishes[index]
        return [Generated(np.concatenate(p), finish) for p, finish in zip(pieces, finishes, strict=True)]

    def stream(self, prompt: Ids, settings: Settings) -> Iterator[int]:
        """The tokens of `generate([prompt], settings)`, each as soon as it is known, without the stop token."""
        request = _request(0, self._checked(0, prompt, settings), settings)  # here: a bad prompt fails at the call
        return (int(token) for _, tokens, _ in self._run([request], settings, 1) for token in tokens)

    def _checked(self, index: int, prompt: Ids, settings: Settings) -> np.ndarray:
        tokens = np.asarray(prompt, np.int32)
        length, limit = len(tokens), self.config.max_positions
        if length == 0:
            raise InputError(f"prompt {index} is empty: give at least one token")
        if tokens.min() < 0 or tokens.max() >= self.config.vocab_size:
            outside = tokens[(tokens < 0) | (tokens >= self.config.vocab_size)][0]
            raise InputError(
                f"prompt {index} holds id {outside}: this model's ids are 0 to {self.config.vocab_size - 1}"
            )
        if length + settings.max_tokens > limit:
            raise InputError(
                f"prompt {index} has {length} tokens and may be answered with {settings.max_tokens}, but the model has "
                f"{limit} positions: shorten the prompt or lower max_tokens"
            )
        return tokens

    def _read_shared(self, tokens: np.ndarray) -> Prefix:
        parts = _parts(tokens)
        cache = self._fill(parts, _empty(self.config, 1, sum(map(len, parts)), self.dtype)[0], None)
        keys, values = (tuple(array[0] for array in arrays) for arrays in cache)
        return Prefix(keys, values, jnp.int32(len(tokens)))

    def _fill(self, parts: list[np.ndarray], cache: llama.Cache, before: Prefix | None) -> llama.Cache:
        start = 0
        for part in parts:
            cache = _read(self._parameters, self.config, part[None], cache, start, before)
            start += len(part)
        return cache

    def _run(
        self,
        requests: list[_Request],
        settings: Settings,
        look_every: int,
        before: Prefix | None = None,
        ended: Ended | None = None,
    ) -> Iterator[tuple[int, np.ndarray, Finish | None]]:
        """Answers requests of one cache size: (index, new tokens, how it ended or None), as the host learns them."""
        places = _rounded(max(request.places for request in requests))
        count = min(_power_of_two(len(requests)), self.max_rows)
        cache, rows = _empty(self.config, count, places, self.dtype)
        knobs = sampling.Knobs(
            jnp.float32(settings.temperature or 1), jnp.int32(settings.top_k), jnp.float32(settings.top_p)
        )
        waiting, answering = deque(requests), dict[int, _Answering]()
        while waiting or answering:
            for slot in set(range(count)) - set(answering):
                if waiting:
                    request = waiting.popleft()
                    cache, rows = self._admit(request, slot, cache, rows, settings, before)
                    answering[slot] = _Answering(request.index, settings.max_tokens, np.zeros(0, np.int32))
            drawn = []
            for _ in range(min(look_every, max(answer.left for answer in answering.values()))):
                state = (cache, rows, places - 1, knobs)
                cache, rows = _step(self._parameters, self.config, *state, settings.mode, before)
                drawn.append(rows.tokens_B)
            columns = np.stack(jax.device_get(drawn), axis=1)
            for slot, answer in list(answering.items()):
                tokens, finish = _until_end(columns[slot], answer.left, settings.stop_ids)
                answer.left -= len(tokens)
                if ended:
                    answer.tokens = np.concatenate([answer.tokens, tokens])
                    finish = "stop" if ended(answer.tokens) else finish
                if finish:
                    del answering[slot]
                yield answer.index, tokens, finish

    def _admit(
        self,
        request: _Request,
        slot: int,
        cache: llama.Cache,
        rows: Rows,
        settings: Settings,
        before: Prefix | None,
    ):
        """The batch with the request in the slot; the next step reads its prompt's last token, all before is read."""
        own = _empty(self.config, 1, cache.keys[0].shape[2], self.dtype)[0]
        own = self._fill(_parts(request.prompt[:-1]), own, before)
        key = jax.random.fold_in(jax.random.PRNGKey(settings.seed), request.index)
        length = len(request.prompt) - 1
        return _move(cache, rows, slot, own, Rows(jnp.int32(request.prompt[-1]), jnp.int32(length), key))


@partial(jax.jit, static_argnames=("config", "count", "places", "dtype"))
def _empty(config: llama.Config, count: int, places: int, dtype: str) -> tuple[llama.Cache, Rows]:
    zeros_B = jnp.zeros(count, jnp.int32)
    return llama.empty_cache(config, count, places, dtype), Rows(zeros_B, zeros_B, jnp.zeros((count, 2), jnp.uint32))


@partial(jax.jit, static_argnames="config", donate_argnames="cache")
def _read(
    parameters: llama.Parameters,
    config: llama.Config,
    tokens_BT: Any,
    cache: llama.Cache,
    start: Any,
    before: Prefix | None,
):
    """Prefill: the cache with the tokens' keys and values from place `start` on."""
    lengths_B = jnp.full(tokens_BT.shape[0], start, jnp.int32)
    return llama.extend(parameters, config, tokens_BT, cache, lengths_B, before)[1]


@partial(jax.jit, donate_argnames="cache")
def _move(cache: llama.Cache, rows: Rows, slot: Any, own: llama.Cache, row: Any) -> tuple[llama.Cache, Rows]:
    cache = jax.tree.map(lambda all, one: all.at[slot].set(one[0]), cache, own)
    return cache, jax.tree.map(lambda all, one: all.at[slot].set(one), rows, row)


@partial(jax.jit, static_argnames=("config", "mode"), donate_argnames="cache")
def _step(
    parameters: llama.Parameters,
    config: llama.Config,
    cache: llama.Cache,
    rows: Rows,
    last_place: Any,
    knobs: sampling.Knobs,
    mode: sampling.Mode,
    before: Prefix | None,
) -> tuple[llama.Cache, Rows]:
    """Decode: every slot reads its token and draws the next."""
    hidden_BTD, cache = llama.extend(parameters, config, rows.tokens_B[:, None], cache, rows.lengths_B, before)
    logits_BV = llama.logits(parameters, hidden_BTD)[:, 0]
    # A slot that nobody heeds stays at the last place, inside the cache.
    lengths_B = jnp.minimum(rows.lengths_B + 1, last_place)
    # A draw's number counts from the prompt's beginning, whatever of it is shared.
    drawn_B = lengths_B if before is None else lengths_B + before.length
    keys_B = jax.vmap(jax.random.fold_in)(rows.keys_B, drawn_B)
    return cache, Rows(sampling.choose(logits_BV, keys_B, knobs, mode), lengths_B, rows.keys_B)


def _until_end(drawn: np.ndarray, left: int, stop_ids: tuple[int, ...]) -> tuple[np.ndarray, Finish | None]:
    """The part of a slot's new tokens that belongs to its answer, and how the answer ended, if it did."""
    tokens = drawn[:left]
    stops = np.flatnonzero(np.isin(tokens, stop_ids))
    if stops.size:
        return tokens[: stops[0]], "stop"
    return tokens, "length" if len(tokens) == left else None


def _request(index: int, prompt: np.ndarray, settings: Settings) -> _Request:
    padded_end = sum(len(part) for part in _parts(prompt[:-1]))
    return _Request(index, prompt, max(padded_end, len(prompt) + settings.max_tokens))


def _parts(tokens: np.ndarray) -> list[np.ndarray]:
    """The tokens as prefill calls take them: whole parts, then a rest padded with zeros to its bucket."""
    whole = len(tokens) // _READ_AT_ONCE * _READ_AT_ONCE
    parts = [tokens[start : start + _READ_AT_ONCE] for start in range(0, whole, _READ_AT_ONCE)]
    if rest := len(tokens) - whole:
        padding = max(_SMALLEST_BUCKET, _power_of_two(rest)) - rest
        parts.append(np.pad(tokens[whole:], (0, padding)))
    return parts


def _size(places: int) -> int:
    """Which requests run together: those whose caches round up to the same power of two, or step of `_LARGE`."""
    if places > _LARGE:
        return -(-places // _LARGE) * _LARGE
    return max(_SMALLEST_BUCKET, _power_of_two(places))


def _rounded(places: int) -> int:
    """The places of a cache: as many as are needed, up to an eighth more, since every step reads them all."""
    grain = max(_SMALLEST_BUCKET, _power_of_two(places) >> 3)
    return -(-places // grain) * grain


def _power_of_two(count: int) -> int:
    return 1 << (count - 1).bit_length()
