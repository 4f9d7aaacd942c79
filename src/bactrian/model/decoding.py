"""Reading tokens over a cache, for prefill and decoding: the layers of `llama.forward` once more, features first.

Hidden states are [D, N], matrices [output, input]. A step of a few rows is then a product that reads every weight once
and in order: on XLA's CPU backend 8 to 32 tokens go through all layers 1.2 to 1.3 times as fast as through `x @ W`.
Layers are a tuple, not stacked, since a scan copies each layer's weights out of the stack.

What many sequences begin with can be read once (`Shared`) and seen by all of them: they come after it.

Shapes: B rows, T new tokens, N = B·T, D hidden width, H query heads, G key/value heads, R = H/G query heads that share
one, Q = R·T queries of a row and group, K head width, S cache places, P shared places, V vocabulary.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from bactrian.model import llama
from bactrian.model.llama import Config, Parameters

_LOWEST = -1e30  # the score of what is not seen: finite, so that a place that sees nothing has a maximum


class Cache(NamedTuple):
    """Keys [B, G, K, S] and values [B, G, S, K] of the tokens so far, an array per layer; place i holds position i."""

    keys: tuple[jax.Array, ...]
    values: tuple[jax.Array, ...]


class Shared(NamedTuple):
    """A beginning that was read once: keys [G, P, K] and values [G, K, P], an array per layer.

    Places 0 … length - 1 hold its positions; what comes after is padding. `length` is an int32 scalar.
    """

    keys: tuple[jax.Array, ...]
    values: tuple[jax.Array, ...]
    length: jax.Array


class _Seen(NamedTuple):
    """What each query sees of its row's cache, bool [B, T, S], and of what is shared, bool [P, B, T] or [P, 1, 1]."""

    own_BTS: jax.Array
    shared_PBT: jax.Array | None


def lay_out(parameters: Parameters, dtype: Any) -> Parameters:
    """The parameters as decoding takes them: cast, the layers a tuple of dicts, their matrices [output, input]."""
    layers = parameters["layers"]
    count = layers["input_norm"].shape[0]

    def one(weight: jax.Array) -> jax.Array:
        return jnp.asarray(weight.T, dtype)

    whole = {name: jnp.asarray(weight, dtype) for name, weight in parameters.items() if name != "layers"}
    return {**whole, "layers": tuple({name: one(w[i]) for name, w in layers.items()} for i in range(count))}


def empty_cache(config: Config, rows: int, places: int, dtype: Any = jnp.float32) -> Cache:
    """A cache for `rows` sequences of up to `places` tokens."""
    groups, width = config.num_kv_heads, config.head_dim
    shapes = ((rows, groups, width, places), (rows, groups, places, width))
    return Cache(*(tuple(jnp.zeros(shape, dtype) for _ in range(config.num_layers)) for shape in shapes))


def share(cache: Cache, length: jax.Array) -> Shared:
    """The first `length` tokens in a cache of one row, for others to come after."""
    keys, values = (tuple(array[0].transpose(0, 2, 1) for array in arrays) for arrays in cache)
    return Shared(keys, values, length)


def extend(
    parameters: Parameters,
    config: Config,
    tokens_BT: jax.Array,
    cache: Cache,
    lengths_B: jax.Array,
    before: Shared | None = None,
) -> tuple[jax.Array, Cache]:
    """Hidden states [D, B·T] of tokens that follow `lengths_B` cached ones, and the cache with them in it.

    `parameters` are as `lay_out` gives them. Rows may be padded on the right: what padding writes lies after the row's
    last token, where nothing looks before the next call overwrites it. The cache must have room for lengths + T.
    """
    own_BT = lengths_B[:, None] + jnp.arange(tokens_BT.shape[1])[None, :]
    positions_BT = own_BT if before is None else own_BT + before.length
    angles = llama.rotation(config, positions_BT)
    seen = _seen(config, own_BT, positions_BT, cache.keys[0].shape[-1], before)
    # Worked out once: fused into every layer they would be worked out in each.
    angles, seen = jax.lax.optimization_barrier((angles, seen))
    hidden_DN = parameters["embedding"][tokens_BT.reshape(-1)].T
    keys, values = list(cache.keys), list(cache.values)
    for index, layer in enumerate(parameters["layers"]):

        def attend(queries_BTHK, keys_BTGK, values_BTGK, index=index):
            keys[index] = _write(keys[index], keys_BTGK.transpose(0, 2, 3, 1), lengths_B, axis=2)
            values[index] = _write(values[index], values_BTGK.transpose(0, 2, 1, 3), lengths_B, axis=1)
            prior = None if before is None else (before.keys[index], before.values[index])
            return _attend(queries_BTHK, keys[index], values[index], seen, prior)

        hidden_DN = _layer(layer, config, hidden_DN, tokens_BT.shape, angles, attend)
    hidden_DN = _rms_norm(hidden_DN, parameters["final_norm"], config.rms_norm_eps)
    return hidden_DN, Cache(tuple(keys), tuple(values))


def logits(parameters: Parameters, hidden_DN: jax.Array) -> jax.Array:
    """Whole logits [N, V] in float32."""
    return jnp.matmul(llama.unembedding(parameters), hidden_DN, preferred_element_type=jnp.float32).T


def _layer(layer: Parameters, config: Config, hidden_DN: jax.Array, shape_BT, angles, attend) -> jax.Array:
    def project(name: str, x: jax.Array) -> jax.Array:
        projected = layer[f"{name}_proj"] @ x
        return projected + layer[f"{name}_bias"][:, None] if f"{name}_bias" in layer else projected

    def heads(name: str) -> jax.Array:
        split = project(name, normed_DN).reshape(-1, config.head_dim, *shape_BT).transpose(2, 3, 0, 1)
        if config.qk_norm and name != "v":
            split = llama.rms_norm(split, layer[f"{name}_norm"], config.rms_norm_eps)
        return split

    normed_DN = _rms_norm(hidden_DN, layer["input_norm"], config.rms_norm_eps)
    mixed_BTHK = attend(llama.rotate(heads("q"), angles), llama.rotate(heads("k"), angles), heads("v"))
    hidden_DN = hidden_DN + project("o", mixed_BTHK.reshape(hidden_DN.shape[1], -1).T)
    normed_DN = _rms_norm(hidden_DN, layer["post_attention_norm"], config.rms_norm_eps)
    gated = jax.nn.silu(project("gate", normed_DN)) * project("up", normed_DN)
    return hidden_DN + project("down", gated)


def _rms_norm(x_DN: jax.Array, scale_D: jax.Array, epsilon: float) -> jax.Array:
    return llama.rms_norm(x_DN, scale_D[:, None], epsilon, axis=0)


def _write(cache: jax.Array, new: jax.Array, lengths_B: jax.Array, axis: int) -> jax.Array:
    """Each row of the cache with its new entries from the row's length on, along an axis of the row."""
    update = jax.lax.dynamic_update_slice_in_dim
    return jax.vmap(lambda row, added, start: update(row, added, start, axis=axis))(cache, new, lengths_B)


def _seen(config: Config, own_BT, positions_BT, places: int, before: Shared | None) -> _Seen:
    window = config.sliding_window
    place = jnp.arange(places)
    own_BTS = place <= own_BT[:, :, None]
    if window is not None:
        own_BTS &= own_BT[:, :, None] - place < window
    if before is None:
        return _Seen(own_BTS, None)
    place_P11 = jnp.arange(before.keys[0].shape[1])[:, None, None]
    shared_PBT = place_P11 < before.length
    if window is not None:
        shared_PBT &= positions_BT - place_P11 < window
    return _Seen(own_BTS, shared_PBT)


def _attend(queries_BTHK, keys_BGKS, values_BGSK, seen: _Seen, prior: tuple[jax.Array, jax.Array] | None) -> jax.Array:
    """One softmax over what each query sees of its row's cache and of the shared places; [B, T, H, K]."""
    rows, length, heads, width = queries_BTHK.shape
    groups = keys_BGKS.shape[1]
    # The query heads of a group are more rows of one product.
    queries = (queries_BTHK * width**-0.5).transpose(0, 2, 1, 3).reshape(rows, groups, -1, length, width)
    mixed, highest, total = _over_cache(queries, keys_BGKS, values_BGSK, seen.own_BTS)
    if prior is not None:
        mixed_before, highest_before, total_before = _over_shared(queries, *prior, seen.shared_PBT)
        top = jnp.maximum(highest, highest_before)
        own, other = jnp.exp(highest - top), jnp.exp(highest_before - top)
        mixed = mixed * own[..., None] + mixed_before * other[..., None]
        total = total * own + total_before * other
    mixed = (mixed / total[..., None]).astype(queries_BTHK.dtype)
    return mixed.reshape(rows, heads, length, width).transpose(0, 2, 1, 3)


def _over_cache(queries_BGRTK, keys_BGKS, values_BGSK, seen_BTS):
    """Unnormalized attention [B, G, R, T, K] over the rows' own caches, with each query's highest score and total."""
    rows, groups, shared, length, width = queries_BGRTK.shape
    queries = queries_BGRTK.reshape(rows, groups, -1, width)
    if length == 1:
        # One query per head is no matrix: as products and sums the cache is read at the speed of memory.
        scores = jnp.sum(queries[..., None].astype(jnp.float32) * keys_BGKS[:, :, None], axis=3)
    else:
        scores = jnp.einsum("bgqk,bgks->bgqs", queries, keys_BGKS, preferred_element_type=jnp.float32)
    scores = scores.reshape(rows, groups, shared, length, -1)
    scores = jnp.where(seen_BTS[:, None, None], scores, _LOWEST)
    highest = jnp.max(scores, axis=-1)
    weights = jnp.exp(scores - highest[..., None])
    flat = weights.reshape(rows, groups, shared * length, -1)
    if length == 1:
        mixed = jnp.sum(flat[..., None] * values_BGSK[:, :, None], axis=3)
    else:
        flat = flat.astype(values_BGSK.dtype)
        mixed = jnp.einsum("bgqs,bgsk->bgqk", flat, values_BGSK, preferred_element_type=jnp.float32)
    return mixed.reshape(queries_BGRTK.shape), highest, jnp.sum(weights, axis=-1)


def _over_shared(queries_BGRTK, keys_GPK, values_GKP, seen_PBT):
    """The same over the shared places: the queries of all rows are one matrix."""
    rows, groups, shared, length, width = queries_BGRTK.shape
    queries = queries_BGRTK.transpose(1, 4, 2, 0, 3).reshape(groups, width, -1)
    scores = jnp.einsum("gpk,gkn->gpn", keys_GPK, queries, preferred_element_type=jnp.float32)
    scores = scores.reshape(groups, -1, shared, rows, length)
    scores = jnp.where(seen_PBT[:, None], scores, _LOWEST)
    highest = jnp.max(scores, axis=1, keepdims=True)
    weights = jnp.exp(scores - highest)
    flat = weights.reshape(groups, -1, shared * rows * length).astype(values_GKP.dtype)
    mixed = jnp.einsum("gkp,gpn->gkn", values_GKP, flat, preferred_element_type=jnp.float32)
    mixed = mixed.reshape(groups, width, shared, rows, length).transpose(3, 0, 2, 4, 1)
    by_row = (array.transpose(2, 0, 1, 3) for array in (highest[:, 0], jnp.sum(weights, axis=1)))
    return mixed, *by_row
