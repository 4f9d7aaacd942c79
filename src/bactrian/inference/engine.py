"""The engine: token ids in, token ids out.

A prompt waits until one of the batch's slots is free, is read into a cache of its own, abreast with others of its size
that wait, and moves into the slot; then all slots step together, one token each. A slot whose answer has ended steps on
unheeded until the host, which looks every few steps, gives it to the next prompt; when none waits and half the slots
are done, the rest go on in a smaller batch. What a row answers depends on its prompt, the settings and its place in the
list of prompts, never on the other rows. What many prompts begin with is read once and looked back at by all of them.

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
from jax.sharding import Mesh

from bactrian.data import sharing
from bactrian.errors import InputError
from bactrian.inference import sampling
from bactrian.model import decoding, llama, shards
from bactrian.model import mesh as meshes
from bactrian.model.decoding import Cache, Shared

_LOOK_EVERY = 8  # steps between two looks of the host at what was generated
_SMALLEST_BUCKET = 32
_READ_AT_ONCE = 512  # tokens per prefill call: bounds its attention scores and the number of programs
_LARGE = 1024  # requests whose caches are longer run together by multiples of it, shorter ones by powers of two
_FEWEST = 8  # slots that a batch is not made smaller than: its step's time is that of reading the weights
MAX_ROWS = 32  # slots at most, if not said
_GROUP_COST = 4096  # tokens read in the time that slots stand idle because prompts that begin alike run by themselves

Finish = Literal["stop", "length"]


Ids = Sequence[int] | np.ndarray
Ended = Callable[[int, np.ndarray], bool]  # whether a prompt's (by its index) answer so far, int32 [N], is all of it


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

    tokens_B: Any  # int32
    lengths_B: Any  # int32
    keys_B: Any  # uint32 [B, 2]


class _Request(NamedTuple):
    """A prompt of `length` tokens, without what it shares with the others of its group.

    parts: all but its last token, as prefill takes them. places: that its cache needs.
    """

    index: int
    parts: list[np.ndarray]
    last: int
    length: int
    places: int

    @property
    def sizes(self) -> tuple[int, ...]:
        return tuple(map(len, self.parts))


@dataclass
class _Answering:
    index: int
    left: int
    tokens: np.ndarray


class Engine:
    """A model ready to generate: laid out for decoding once.

    Parameters that lie over a mesh stay where they are, and what a step computes goes to them. Of a mesh whose parts of
    the rows are more than `max_rows`, each has a row.
    """

    def __init__(
        self,
        config: llama.Config,
        parameters: llama.Parameters,
        *,
        dtype: llama.Dtype = "float32",
        max_rows: int = MAX_ROWS,
        mesh: Mesh | None = None,
    ):
        if max_rows < 1:
            raise InputError(f"max_rows is {max_rows}: the engine needs at least 1 row")
        self.config = config
        self.dtype = dtype
        self.max_rows = max_rows
        self._mesh = mesh
        self._parameters = decoding.lay_out(parameters, dtype)

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
                f"{limit} positions: shorten the prompt or lower max_tokens (--max-tokens)"
            )
        return tokens

    def _read_shared(self, tokens: np.ndarray) -> Shared:
        return _share(self._filled([_parts(tokens)], None), np.int32(len(tokens)))

    def _filled(self, prompts: list[list[np.ndarray]], before: Shared | None) -> Cache:
        """A cache with the parts of a prompt in each of its rows; all have parts of the same sizes.

        It is no longer than they are, so that its programs do not depend on the size of the batch's cache.
        """
        cache = _empty_cache(self.config, len(prompts), sum(map(len, prompts[0])), self.dtype, self._mesh)
        start = 0
        for parts in zip(*prompts, strict=True):
            cache = _read(self._parameters, self.config, np.stack(parts), cache, start, before)
            start += len(parts[0])
        return cache

    def _run(
        self,
        requests: list[_Request],
        settings: Settings,
        look_every: int,
        before: Shared | None = None,
        ended: Ended | None = None,
    ) -> Iterator[tuple[int, np.ndarray, Finish | None]]:
        """Answers requests of one cache size: (index, new tokens, how it ended or None), as the host learns them."""
        places = _rounded(max(request.places for request in requests))
        count = whole_parts(min(_slots(len(requests)), self.max_rows), self._mesh)
        cache = _empty_cache(self.config, count, places, self.dtype, self._mesh)
        rows = Rows(np.zeros(count, np.int32), np.zeros(count, np.int32), np.zeros((count, 2), np.uint32))
        knobs = sampling.Knobs(
            jnp.float32(settings.temperature or 1), jnp.int32(settings.top_k), jnp.float32(settings.top_p)
        )
        waiting, answering = deque(requests), dict[int, _Answering]()
        while waiting or answering:
            free = [slot for slot in range(count) if slot not in answering]
            arrivals = {slot: waiting.popleft() for slot, _ in zip(free, list(waiting), strict=False)}
            for slot, request in arrivals.items():
                answering[slot] = _Answering(request.index, settings.max_tokens, np.zeros(0, np.int32))
            for together in _read_together(arrivals):
                cache, rows = self._admit(together, cache, rows, settings, before)
            drawn = []
            for _ in range(min(look_every, max(answer.left for answer in answering.values()))):
                state = (cache, rows, places - 1, knobs)
                cache, rows = step(self._parameters, self.config, *state, settings.mode, before, self._mesh)
                drawn.append(rows.tokens_B)
            columns = np.stack(jax.device_get(drawn), axis=1)
            for slot, answer in list(answering.items()):
                tokens, finish = _until_end(columns[slot], answer.left, settings.stop_ids)
                answer.left -= len(tokens)
                if ended:
                    answer.tokens = np.concatenate([answer.tokens, tokens])
                    finish = "stop" if ended(answer.index, answer.tokens) else finish
                if finish:
                    del answering[slot]
                yield answer.index, tokens, finish
            fewer = whole_parts(max(_FEWEST, _slots(len(answering))), self._mesh)
            if answering and not waiting and fewer * 2 <= count:
                kept, count = sorted(answering), fewer
                answering = {new: answering[old] for new, old in enumerate(kept)}
                cache, rows = _narrow(cache, rows, np.resize(kept, count))

    def _admit(
        self,
        arrivals: dict[int, _Request],
        cache: Cache,
        rows: Rows,
        settings: Settings,
        before: Shared | None,
    ) -> tuple[Cache, Rows]:
        """The batch with each request in its slot; the next step reads a prompt's last token, all before is read."""
        requests = list(arrivals.values())
        size = 1 if len(requests) == 1 else _abreast(requests[0])
        # Rows that are left over are read as the first is, and moved nowhere.
        padded = requests + [requests[0]] * (size - len(requests))
        slots = np.array([*arrivals, *[len(rows.tokens_B)] * (size - len(requests))], np.int32)
        own = self._filled([request.parts for request in padded], before)
        tokens = np.array([request.last for request in padded], np.int32)
        lengths = np.array([request.length - 1 for request in padded], np.int32)
        indices = np.array([request.index for request in padded], np.uint32)
        return _move(cache, rows, slots, own, Rows(tokens, lengths, _keys(np.uint32(settings.seed), indices)))


def whole_parts(slots: int, mesh: Mesh | None) -> int:
    """So many slots, or as few more as divide over the parts that a mesh makes of the rows."""
    parts = 1 if mesh is None else shards.size(mesh, shards.TABLE["batch"])
    return -(-slots // parts) * parts


_share = jax.jit(decoding.share)


@partial(jax.jit, static_argnums=(0, 1, 2, 3, 4))
def _empty_cache(config: llama.Config, rows: int, places: int, dtype: llama.Dtype, mesh: Mesh | None) -> Cache:
    cache = decoding.empty_cache(config, rows, places, dtype)
    return cache if mesh is None else jax.lax.with_sharding_constraint(cache, meshes.of_cache(mesh, config, rows))


@jax.jit
def _keys(seed: Any, indices: Any) -> jax.Array:
    return jax.vmap(partial(jax.random.fold_in, jax.random.PRNGKey(seed)))(indices)


@partial(jax.jit, static_argnames="config", donate_argnames="cache")
def _read(
    parameters: llama.Parameters, config: llama.Config, tokens_BT: Any, cache: Cache, start: Any, before: Shared | None
) -> Cache:
    """Prefill: the cache with the tokens' keys and values from place `start` on."""
    lengths_B = jnp.full(tokens_BT.shape[0], start, jnp.int32)
    return decoding.extend(parameters, config, tokens_BT, cache, lengths_B, before)[1]


@partial(jax.jit, donate_argnames="cache")
def _move(cache: Cache, rows: Rows, slots: Any, own: Cache, arrived: Rows) -> tuple[Cache, Rows]:
    """The batch with the arrived rows in their slots; what a slot held behind their places is overwritten in time."""

    def moved(all: jax.Array, some: jax.Array) -> jax.Array:
        return all.at[(slots, *map(slice, some.shape[1:]))].set(some, mode="drop")

    return jax.tree.map(moved, (cache, rows), (own, arrived))


@jax.jit
def _narrow(cache: Cache, rows: Rows, slots: Any) -> tuple[Cache, Rows]:
    return jax.tree.map(lambda all: all[slots], (cache, rows))


@partial(jax.jit, static_argnames=("config", "mode", "mesh"), donate_argnames="cache")
def step(
    parameters: llama.Parameters,
    config: llama.Config,
    cache: Cache,
    rows: Rows,
    last_place: Any,
    knobs: sampling.Knobs,
    mode: sampling.Mode,
    before: Shared | None,
    mesh: Mesh | None,
) -> tuple[Cache, Rows]:
    """Decode: every slot reads its token and draws the next."""
    hidden_DB, cache = decoding.extend(parameters, config, rows.tokens_B[:, None], cache, rows.lengths_B, before)
    logits_BV = decoding.logits(parameters, hidden_DB)
    # A slot that nobody heeds stays at the last place, inside the cache.
    lengths_B = jnp.minimum(rows.lengths_B + 1, last_place)
    # A draw's number counts from the prompt's beginning, whatever of it is shared.
    drawn_B = lengths_B if before is None else lengths_B + before.length
    keys_B = jax.vmap(jax.random.fold_in)(rows.keys_B, drawn_B)
    rows = Rows(sampling.choose(logits_BV, keys_B, knobs, mode), lengths_B, rows.keys_B)
    # The host looks at them.
    return cache, rows if mesh is None else jax.lax.with_sharding_constraint(rows, meshes.sharding(mesh, ()))


def _until_end(drawn: np.ndarray, left: int, stop_ids: tuple[int, ...]) -> tuple[np.ndarray, Finish | None]:
    """The part of a slot's new tokens that belongs to its answer, and how the answer ended, if it did."""
    tokens = drawn[:left]
    stops = np.flatnonzero(np.isin(tokens, stop_ids))
    if stops.size:
        return tokens[: stops[0]], "stop"
    return tokens, "length" if len(tokens) == left else None


def _request(index: int, prompt: np.ndarray, settings: Settings) -> _Request:
    parts = _parts(prompt[:-1])
    places = max(sum(map(len, parts)), len(prompt) + settings.max_tokens)
    return _Request(index, parts, int(prompt[-1]), len(prompt), places)


def _read_together(arrivals: dict[int, _Request]) -> Iterator[dict[int, _Request]]:
    """The requests of some slots, by the prefill calls that read them: alone, or many of one size abreast."""
    alike: dict[tuple[int, ...], list[int]] = {}
    for slot, request in arrivals.items():
        alike.setdefault(request.sizes, []).append(slot)
    for slots in alike.values():
        size = _abreast(arrivals[slots[0]])
        while slots:
            count = min(size, len(slots))
            if count * 2 < size:  # padded to a full call they would take longer than one by one
                count = 1
            yield {slot: arrivals[slot] for slot in slots[:count]}
            slots = slots[count:]


def _abreast(request: _Request) -> int:
    """How many requests of this size one prefill call reads."""
    return max(1, _READ_AT_ONCE // max(request.sizes, default=_READ_AT_ONCE))


def _parts(tokens: np.ndarray) -> list[np.ndarray]:
    """The tokens as prefill calls take them: whole parts, then a rest padded with zeros to its bucket."""
    whole = len(tokens) // _READ_AT_ONCE * _READ_AT_ONCE
    parts = [tokens[start : start + _READ_AT_ONCE] for start in range(0, whole, _READ_AT_ONCE)]
    if rest := len(tokens) - whole:
        padding = max(_SMALLEST_BUCKET, _power_of_two(rest)) - rest
        parts.append(np.pad(tokens[whole:], (0, padding)))
    return parts


def _slots(requests: int) -> int:
    """How many slots a batch of so many requests has: of few sizes, so that few programs are compiled."""
    return _power_of_two(requests) if requests < _FEWEST else -(-requests // _FEWEST) * _FEWEST


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
