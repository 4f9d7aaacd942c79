"""The Llama family as pure functions: parameters, and forward over packed rows.

The family takes in Mistral (sliding window) and Qwen 2 and 3 (biases, query/key norms) by their configs. Parameters
are a nested dict of arrays; those of all layers are stacked, so that the layers are one `lax.scan`. `specs` says of
each parameter its shape, the names of its axes and how it starts, and everything else (loading, sharding,
initialization) reads it there.

Shapes: B rows, T places, D hidden width, H query heads, G key/value heads, K head width, F MLP width, V vocabulary,
L layers.
"""

import math
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import Mesh

from bactrian.model import attention, shards
from bactrian.model import prefix as prefixes
from bactrian.model.attention import Implementation, Places
from bactrian.model.prefix import Prefix
from bactrian.model.shards import Share

Parameters = dict[str, Any]
Dtype = Literal["float32", "bfloat16"]
Remat = Literal["none", "dots", "full"]


@dataclass(frozen=True)
class RopeScaling:
    """Llama 3's stretch of the rotary frequencies (rope_type "llama3" of the Hugging Face config)."""

    factor: float
    low_frequency_factor: float
    high_frequency_factor: float
    original_positions: int


@dataclass(frozen=True)
class Lora:
    """Adapters of low rank (Hu et al. 2021): to the products x W of `targets` is added alpha / rank · x A B.

    `targets` are matrices of a layer, by their names in `specs`.
    """

    rank: int
    alpha: float
    targets: tuple[str, ...]


@dataclass(frozen=True)
class Config:
    """The architecture of one model. Sizes are counts; `rms_norm_eps` and `rope_theta` are the model's own.

    `lora`: adapters beside its matrices, while they are trained.
    """

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    max_positions: int
    rms_norm_eps: float
    rope_theta: float
    rope_scaling: RopeScaling | None = None
    tied_embeddings: bool = False
    qkv_bias: bool = False
    output_bias: bool = False
    qk_norm: bool = False
    sliding_window: int | None = None
    architecture: Literal["llama", "mistral", "qwen2", "qwen3"] = "llama"
    lora: Lora | None = None


@dataclass(frozen=True)
class Compute:
    """How a forward pass computes, and over which devices; results do not depend on it beyond rounding."""

    dtype: Dtype = "float32"
    remat: Remat = "none"
    attention: Implementation = "blocked"
    mesh: Mesh | None = None


class Spec(NamedTuple):
    """What one parameter is: its shape, the name of each axis, and how it starts (see `init`)."""

    shape: tuple[int, ...]
    axes: tuple[str, ...]
    init: Literal["normal", "fan_in", "ones", "zeros"]


def specs(config: Config) -> dict[str, Any]:
    """The tree of parameters as `Spec`s; "layers" holds every layer stacked, and "adapters" every layer's A and B.

    Matrices are [input, output], but for the embedding and the unembedding, which are both [vocabulary, hidden].
    """
    D, F, V = config.hidden_size, config.intermediate_size, config.vocab_size
    H, G = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    layer = {
        "input_norm": Spec((D,), ("residual",), "ones"),
        "q_proj": Spec((D, H), ("embed", "heads"), "normal"),
        "k_proj": Spec((D, G), ("embed", "kv_heads"), "normal"),
        "v_proj": Spec((D, G), ("embed", "kv_heads"), "normal"),
        "o_proj": Spec((H, D), ("heads", "embed"), "normal"),
        "post_attention_norm": Spec((D,), ("residual",), "ones"),
        "gate_proj": Spec((D, F), ("embed", "mlp"), "normal"),
        "up_proj": Spec((D, F), ("embed", "mlp"), "normal"),
        "down_proj": Spec((F, D), ("mlp", "embed"), "normal"),
    }
    if config.qkv_bias:
        layer["q_bias"] = Spec((H,), ("heads",), "zeros")
        layer["k_bias"] = Spec((G,), ("kv_heads",), "zeros")
        layer["v_bias"] = Spec((G,), ("kv_heads",), "zeros")
    if config.output_bias:
        layer["o_bias"] = Spec((D,), ("residual",), "zeros")
    if config.qk_norm:
        layer["q_norm"] = Spec((config.head_dim,), ("head_dim",), "ones")
        layer["k_norm"] = Spec((config.head_dim,), ("head_dim",), "ones")
    stacked = {
        name: Spec((config.num_layers, *spec.shape), ("layers", *spec.axes), spec.init) for name, spec in layer.items()
    }
    tree: dict[str, Any] = {
        "embedding": Spec((V, D), ("vocab", "embed"), "normal"),
        "layers": stacked,
        "final_norm": Spec((D,), ("residual",), "ones"),
    }
    if not config.tied_embeddings:
        tree["unembedding"] = Spec((V, D), ("vocab", "embed"), "normal")
    if config.lora is not None:
        tree["adapters"] = _adapters(stacked, config.lora)
    return tree


def _adapters(layers: dict[str, Spec], lora: Lora) -> dict[str, Spec]:
    tree = {}
    for name in lora.targets:
        (count, inputs, outputs), (stack, before, after), _ = layers[name]
        tree[f"{name}_a"] = Spec((count, inputs, lora.rank), (stack, before, "rank"), "fan_in")
        tree[f"{name}_b"] = Spec((count, lora.rank, outputs), (stack, "rank", after), "zeros")
    return tree


def axes(config: Config) -> dict[str, Any]:
    """The tree of parameters as the names of their axes."""
    return jax.tree.map(lambda spec: spec.axes, specs(config), is_leaf=_is_spec)


def share(config: Config, mesh: Mesh | None) -> Share:
    """What a device of a mesh has and does of this model."""
    counts = {
        "vocab": config.vocab_size,
        "embed": config.hidden_size,
        "heads": config.num_heads,
        "kv_heads": config.num_kv_heads,
        "mlp": config.intermediate_size,
    }
    return Share(mesh, counts)


def init(config: Config, key: jax.Array, dtype: Any = jnp.float32) -> Parameters:
    """Fresh parameters: matrices normal with deviation 0.02, norms one, biases zero; adapters that change nothing."""
    return start(specs(config), key, dtype)


def start(tree_of_specs: dict[str, Any], key: jax.Array, dtype: Any = jnp.float32) -> Parameters:
    """What parameters of these specs start as; "fan_in" is uniform within ±1/√inputs, as PEFT starts every A."""
    flat, tree = jax.tree.flatten(tree_of_specs, is_leaf=_is_spec)
    keys = jax.random.split(key, len(flat))

    def one(spec: Spec, key: jax.Array) -> jax.Array:
        if spec.init == "normal":
            return 0.02 * jax.random.normal(key, spec.shape, dtype)
        if spec.init == "fan_in":
            bound = spec.shape[-2] ** -0.5
            return jax.random.uniform(key, spec.shape, dtype, -bound, bound)
        return jnp.full(spec.shape, 1.0 if spec.init == "ones" else 0.0, dtype)

    return jax.tree.unflatten(tree, [one(spec, key) for spec, key in zip(flat, keys, strict=True)])


def forward(
    parameters: Parameters,
    config: Config,
    tokens_BT: jax.Array,
    places: Places,
    compute: Compute = Compute(),
    before: Prefix | None = None,
) -> jax.Array:
    """Hidden states [B, T, D] of packed rows after the final norm, in the compute dtype.

    `logprobs.selected` makes log-probabilities of them, `logits` whole logits. With a prefix every row comes after it,
    and positions count from the prefix's beginning. Over a mesh there is none, and the rows and their places divide
    over the mesh's axes.
    """
    own = share(config, compute.mesh)
    if compute.mesh is None:
        return _forward(parameters, config, tokens_BT, places, compute, own, before)
    assert before is None, "a prefix is read by one device"

    def part(parameters: Parameters, tokens_BT: jax.Array, places: Places) -> jax.Array:
        return _forward(parameters, config, tokens_BT, places, compute, own)

    given = (axes(config), shards.ROWS, jax.tree.map(lambda _: shards.ROWS, places))
    return own.run(part, given, shards.HIDDEN)(parameters, tokens_BT, places)


def _forward(
    parameters: Parameters,
    config: Config,
    tokens_BT: jax.Array,
    places: Places,
    compute: Compute,
    share: Share,
    before: Prefix | None = None,
) -> jax.Array:
    names = axes(config)
    angles = rotation(config, places.positions)
    part = share.queries_part(tokens_BT.shape[1])
    own = attention.over(share.whole_rows(places), config.sliding_window, compute.attention, part)

    def one_layer(hidden_BTD: jax.Array, scanned: tuple[dict[str, Parameters], Any]):
        stacked, known = scanned

        def attend(queries, keys, values):
            if known is None or before is None:
                return share.mixed(own(share.queries(queries), share.keys(keys), share.keys(values)))
            layers_own = Prefix(known[0], known[1], before.length)
            return prefixes.attend(queries, keys, values, places, config.sliding_window, layers_own)

        layer = {
            name: share.fetch(weight, names[tree][name][1:], compute.dtype)
            for tree, weights in stacked.items()
            for name, weight in weights.items()
        }
        return _layer(layer, config, hidden_BTD, angles, attend, share), None

    stacked = {tree: parameters[tree] for tree in ("layers", "adapters") if tree in names}
    scanned = (stacked, None if before is None else (before.keys, before.values))
    embedding_VD = share.fetch(parameters["embedding"], names["embedding"], compute.dtype)
    hidden_BTD = share.sum_after(share.embed(embedding_VD, tokens_BT))
    hidden_BTD, _ = jax.lax.scan(_rematerialized(one_layer, compute, share, config.lora), hidden_BTD, scanned)
    return rms_norm(hidden_BTD, parameters["final_norm"].astype(compute.dtype), config.rms_norm_eps)


def read_prefix(
    parameters: Parameters, config: Config, tokens_P: jax.Array, length: jax.Array, compute: Compute = Compute()
) -> Prefix:
    """The keys and values of the first `length` tokens, stacked, for `forward`; the rest of the tokens is padding."""
    assert config.lora is None, "adapters are merged before a prefix is read"
    positions = jnp.arange(tokens_P.shape[0])[None]
    places = Places(jnp.ones_like(positions), jnp.zeros_like(positions), positions)
    own = attention.over(places, config.sliding_window, compute.attention)
    angles = rotation(config, positions)

    def one_layer(hidden_BTD: jax.Array, layer: Parameters):
        kept = []

        def attend(queries, keys, values):
            kept.append(tuple(array[0].transpose(1, 0, 2) for array in (keys, values)))
            return own(queries, keys, values)

        layer = jax.tree.map(lambda weight: weight.astype(compute.dtype), layer)
        return _layer(layer, config, hidden_BTD, angles, attend), kept[0]

    hidden_BTD = parameters["embedding"].astype(compute.dtype)[tokens_P[None]]
    _, (keys, values) = jax.lax.scan(one_layer, hidden_BTD, parameters["layers"])
    return Prefix(keys, values, length)


def no_prefix(config: Config, dtype: Any) -> Prefix:
    """A prefix of no tokens, for `forward`, whose attention is then the one for reading alone."""
    shape = (config.num_layers, config.num_kv_heads, 0, config.head_dim)
    return Prefix(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype), jnp.int32(0))


def unembedding(parameters: Parameters) -> jax.Array:
    """The matrix [V, D] whose products with hidden states are the logits; the embedding itself where they are tied."""
    return parameters["unembedding"] if "unembedding" in parameters else parameters["embedding"]


def logits(parameters: Parameters, hidden_BTD: jax.Array) -> jax.Array:
    """Whole logits [B, T, V] in float32: for sampling and for tests. Training never makes them."""
    weight_VD = unembedding(parameters).astype(hidden_BTD.dtype)
    return jnp.einsum("btd,vd->btv", hidden_BTD, weight_VD, preferred_element_type=jnp.float32)


def _layer(
    layer: Parameters, config: Config, hidden_BTD: jax.Array, angles, attend, share: Share = shards.ALONE
) -> jax.Array:
    normed = share.places_before(rms_norm(hidden_BTD, layer["input_norm"], config.rms_norm_eps))
    rows, length, _ = normed.shape

    def project(x_BTD: jax.Array, name: str, bias: str = "") -> jax.Array:
        return _project(x_BTD, layer, name, layer.get(bias), config.lora)

    def heads(name: str) -> jax.Array:
        projected = project(normed, f"{name}_proj", f"{name}_bias")
        split = projected.reshape(rows, length, -1, config.head_dim)
        if config.qk_norm and name != "v":
            split = rms_norm(split, layer[f"{name}_norm"], config.rms_norm_eps)
        return split

    queries, keys = rotate(heads("q"), angles), rotate(heads("k"), angles)
    mixed = attend(queries, keys, heads("v")).reshape(rows, length, -1)
    attended = share.sum_after(project(mixed, "o_proj"))
    hidden_BTD = hidden_BTD + (attended + layer["o_bias"] if config.output_bias else attended)
    normed = share.places_before(rms_norm(hidden_BTD, layer["post_attention_norm"], config.rms_norm_eps))
    gated = jax.nn.silu(project(normed, "gate_proj")) * project(normed, "up_proj")
    return hidden_BTD + share.sum_after(project(gated, "down_proj"))


def _project(x_BTD: jax.Array, layer: Parameters, name: str, bias_F: jax.Array | None, lora: Lora | None) -> jax.Array:
    # As one 2-D product: the backward pass of the 3-D one costs half as much again on XLA's CPU backend.
    x_ND = x_BTD.reshape(-1, x_BTD.shape[-1])
    projected = x_ND @ layer[name]
    if bias_F is not None:
        projected = projected + bias_F
    if lora is not None:
        if name in lora.targets:
            projected = projected + (lora.alpha / lora.rank * (x_ND @ layer[f"{name}_a"])) @ layer[f"{name}_b"]
        projected = checkpoint_name(projected, "product")
    return projected.reshape(*x_BTD.shape[:-1], -1)


def rms_norm(x: jax.Array, scale: jax.Array, epsilon: float, axis: int = -1) -> jax.Array:
    """Root mean square normalization over an axis (Zhang and Sennrich 2019), in float32."""
    wide = x.astype(jnp.float32)
    normed = wide * jax.lax.rsqrt(jnp.mean(wide * wide, axis=axis, keepdims=True) + epsilon)
    return normed.astype(x.dtype) * scale


def rotation(config: Config, positions_BT: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Cosine and sine [B, T, 1, K/2] of each position's rotary angles, in float32."""
    half = config.head_dim // 2
    frequencies = config.rope_theta ** (-jnp.arange(half, dtype=jnp.float32) / half)
    if config.rope_scaling is not None:
        frequencies = _stretch(frequencies, config.rope_scaling)
    angles = positions_BT[:, :, None, None].astype(jnp.float32) * frequencies
    return jnp.cos(angles), jnp.sin(angles)


def _stretch(frequencies: jax.Array, scaling: RopeScaling) -> jax.Array:
    """Llama 3.1: low frequencies are divided by the factor, high ones kept, those between interpolated."""
    turns = scaling.original_positions * frequencies / (2 * math.pi)
    low, high = scaling.low_frequency_factor, scaling.high_frequency_factor
    kept = jnp.clip((turns - low) / (high - low), 0.0, 1.0)
    return kept * frequencies + (1 - kept) * frequencies / scaling.factor


def rotate(x_BTHK: jax.Array, angles: tuple[jax.Array, jax.Array]) -> jax.Array:
    """Queries or keys turned by their positions' angles."""
    # Hugging Face's layout: the two halves of a head are the two parts of each rotated pair.
    cosine, sine = angles
    first, second = jnp.split(x_BTHK.astype(jnp.float32), 2, axis=-1)
    rotated = jnp.concatenate([first * cosine - second * sine, second * cosine + first * sine], axis=-1)
    return rotated.astype(x_BTHK.dtype)


def _rematerialized(one_layer, compute: Compute, share: Share, lora: Lora | None):
    policies = jax.checkpoint_policies
    if compute.remat == "none":
        if compute.mesh is None:
            return one_layer
        # All is kept but weights that were fetched, and keys that were gathered, which would be those of all layers.
        again = shards.is_gathered if share.gathers_keys else shards.is_fetch
        return jax.checkpoint(one_layer, policy=lambda *about, **more: not again(*about, **more))
    if compute.remat == "full":
        return jax.checkpoint(one_layer, policy=policies.nothing_saveable)
    if lora is not None:
        # Each product once, with what its adapter adds: both products of one are not kept beside it.
        return jax.checkpoint(one_layer, policy=policies.save_only_these_names("product", "attention"))
    products = policies.dots_with_no_batch_dims_saveable
    attention_too = policies.save_from_both_policies(products, policies.save_only_these_names("attention"))
    return jax.checkpoint(one_layer, policy=attention_too)


def _is_spec(node: Any) -> bool:
    return isinstance(node, Spec)
