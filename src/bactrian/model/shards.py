"""A device's share of a model: the table that says who holds what, and what a device fetches and adds up.

A pass over a mesh is one `jax.shard_map`: every device runs the code of a single one on its own rows, places, heads and
tokens of the vocabulary. A weight lies split over the devices and is fetched where it is used, in the dtype that is
computed in; its gradient goes back the same way, each device adding up the part that it holds. So over the axes data
and fsdp nothing travels but weights and their gradients, whatever the compiler does.

Between the layers a device holds the places that are its own among those of the axes sequence and tensor. A layer
fetches the tensor axis's places before its products and adds up over it after them (Korthikanti et al. 2022, figure 5).
For attention the devices of the sequence axis trade places for heads, each then having whole rows of some heads, and
all the same to do (Jacobs et al. 2023, DeepSpeed-Ulysses). Where the heads cannot be shared out so, each keeps the
queries of its own places and gathers keys and values of the whole rows (Llama Team 2024, The Llama 3 Herd of Models,
section 3.3.2): more travels, unless few keys serve many queries, and the last places have most to see.

Shapes: B rows, T places, D hidden width, V vocabulary, H query heads, G key/value heads, K head width.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from bactrian.model.attention import Part

AXES = ("data", "fsdp", "sequence", "tensor")

# The name of an axis of an array → the mesh axes that it is split over.
TABLE: dict[str, tuple[str, ...]] = {
    "batch": ("data", "fsdp"),
    "places": ("sequence",),
    "own_places": ("sequence", "tensor"),  # of the residual stream
    "embed": ("fsdp", "sequence"),
    "vocab": ("tensor",),
    "heads": ("tensor",),
    "kv_heads": ("tensor",),
    "mlp": ("tensor",),
    "residual": (),  # vectors: too small to be worth fetching
    "head_dim": (),
    "rank": (),
    "segments": (),
    "branches": (),
    "layers": (),
}
ROWS = ("batch", "places")
HIDDEN = ("batch", "own_places")

_LAYS_OUT = ("broadcast_in_dim", "dynamic_slice", "pad", "reshape", "transpose")

Counts = Mapping[str, int]  # how many there are to be split of what an axis's name says: heads, not their numbers
Axes = tuple[str, ...]


def size(mesh: Mesh, names: tuple[str, ...]) -> int:
    """How many parts these mesh axes make."""
    return math.prod(mesh.shape[name] for name in names)


def splits(mesh: Mesh, axes: Axes, counts: Counts) -> list[tuple[str, ...]]:
    """The mesh axes that each axis of an array is split over, by the table.

    Where key/value heads or the vocabulary do not divide over theirs, the hidden width is split over these too, so that
    the array is still held in as many parts.
    """
    found = [TABLE[axis] for axis in axes]
    moved: tuple[str, ...] = ()
    for index, axis in enumerate(axes):
        if axis in counts and counts[axis] % size(mesh, found[index]):
            moved, found[index] = moved + found[index], ()
    if moved and "embed" in axes:
        embed = axes.index("embed")
        if counts["embed"] % size(mesh, found[embed] + moved) == 0:
            found[embed] += moved
    return found


def partition(mesh: Mesh, axes: Axes, counts: Counts) -> P:
    """`splits`, as JAX names it."""
    return P(*(names or None for names in splits(mesh, axes, counts)))


def gathers_keys(sizes: Mapping[str, int], counts: Counts) -> bool:
    """Whether the devices of the sequence axis, of a mesh of these sizes, cannot trade places for heads.

    They can where the heads of a tensor part divide over them, and those of its keys do so too or are shared.
    """
    sequence = sizes["sequence"]
    heads, groups = (max(counts[name] // sizes["tensor"], 1) for name in ("heads", "kv_heads"))
    return bool(heads % sequence or (groups % sequence and sequence % groups))


def is_fetch(primitive: Any, *_: Any, **parameters: Any) -> bool:
    """Whether an operation fetches a weight: what is never kept from the forward pass for the backward one."""
    return primitive.name == "all_gather" and "fsdp" in parameters["axis_name"]


def is_gathered(primitive: Any, *_: Any, **parameters: Any) -> bool:
    """Whether an operation fetches a weight, gathers keys, or only lays numbers out, as is done with gathered ones.

    Kept of all layers, keys of whole rows would fill the devices that share a row because it is too long for one.
    """
    gathers = primitive.name == "all_gather" and {"fsdp", "sequence"} & set(parameters["axis_name"])
    return bool(gathers) or primitive.name in _LAYS_OUT


@dataclass(frozen=True)
class Share:
    """What one device of a mesh does in `run`; without a mesh a single device that has everything."""

    mesh: Mesh | None
    counts: Counts

    def run(self, part: Callable[..., Any], given: tuple[Any, ...], returned: Axes) -> Callable[..., Any]:
        """`part`, which computes one device's part of a result, as a function of whole arrays.

        `given`: of each argument, or of all arrays in it, the axes' names; `returned`: of the result. What has no axes
        is the same on every device.
        """
        if self.mesh is None:
            return part
        mesh = self.mesh

        def split(axes: Axes) -> P:
            return partition(mesh, axes, self.counts)

        inputs = jax.tree.map(split, given, is_leaf=is_axes)
        # Unchecked: the loops' carries begin as constants, which the check does not take for a device's own.
        return jax.shard_map(part, mesh=mesh, in_specs=inputs, out_specs=split(returned), check_vma=False)

    def fetch(self, weight: jax.Array, axes: Axes, dtype: Any) -> jax.Array:
        """The part of a weight that this device computes with, cast to `dtype`."""
        weight = weight.astype(dtype)
        if self.mesh is None:
            return weight
        held = splits(self.mesh, axes, self.counts)
        embed = axes.index("embed") if "embed" in axes else None
        if embed is not None and size(self.mesh, held[embed]) > 1:
            weight = jax.lax.all_gather(weight, held[embed], axis=embed, tiled=True)
        for index, axis in enumerate(axes):
            if TABLE[axis] == ("tensor",) and not held[index]:
                weight = self._own(weight, index, self.counts[axis])
        return weight

    def places_before(self, hidden_BTD: jax.Array) -> jax.Array:
        """The places of all devices that share in a layer's products, of those that each holds between layers."""
        if not self._splits("tensor"):
            return hidden_BTD
        return jax.lax.all_gather(hidden_BTD, "tensor", axis=1, tiled=True)

    def sum_after(self, partial_BTD: jax.Array) -> jax.Array:
        """The sum over those devices of what each made of the places, and of it the places that are one's own."""
        if not self._splits("tensor"):
            return partial_BTD
        return jax.lax.psum_scatter(partial_BTD, "tensor", scatter_dimension=1, tiled=True)

    def whole_rows(self, tree: Any) -> Any:
        """Arrays [B, T, …] of a part of the places with those of the whole row."""
        if not self._splits("sequence"):
            return tree
        return jax.tree.map(lambda array: jax.lax.all_gather(array, "sequence", axis=1, tiled=True), tree)

    def queries_part(self, count: int) -> Part | None:
        """Which places `queries` are of, if a device holds so many; None where they are of whole rows."""
        return Part(jax.lax.axis_index("sequence") * count, count) if self.gathers_keys else None

    def queries(self, queries_BTHK: jax.Array) -> jax.Array:
        """Whole rows of some of the heads, of a part of the places of all; or those places, where keys are gathered."""
        if not self._trades_heads:
            return queries_BTHK
        return jax.lax.all_to_all(queries_BTHK, "sequence", split_axis=2, concat_axis=1, tiled=True)

    def keys(self, keys_BTGK: jax.Array) -> jax.Array:
        """Keys or values of whole rows for the heads of `queries`."""
        if self.gathers_keys:
            return self.whole_rows(keys_BTGK)
        heads = keys_BTGK.shape[2]
        if self.mesh is None or heads % self.mesh.shape["sequence"] == 0:
            return self.queries(keys_BTGK)
        return self._own(self.whole_rows(keys_BTGK), 2, heads, "sequence")

    def mixed(self, mixed_BTHK: jax.Array) -> jax.Array:
        """The way back from `queries`."""
        if not self._trades_heads:
            return mixed_BTHK
        return jax.lax.all_to_all(mixed_BTHK, "sequence", split_axis=1, concat_axis=2, tiled=True)

    def embed(self, embedding_VD: jax.Array, tokens_BT: jax.Array) -> jax.Array:
        """The rows of the embedding, fetched, that belong to tokens; for `sum_after`."""
        if not self._splits("tensor"):
            return embedding_VD[tokens_BT]
        own_BT, is_own_BT = own_tokens(tokens_BT, embedding_VD.shape[0], "tensor")
        return jnp.where(is_own_BT[:, :, None], embedding_VD[own_BT], 0)

    def sum_over_rows(self, value: jax.Array) -> jax.Array:
        """The sum over all rows and places of what is a device's own, and the same on those that share its rows."""
        return value if self.mesh is None else jax.lax.psum(value, (*TABLE["batch"], *TABLE["places"]))

    @property
    def gathers_keys(self) -> bool:
        """Whether attention is of a device's own places, over keys of whole rows that are gathered."""
        return self.mesh is not None and gathers_keys(self.mesh.shape, self.counts)

    def vocabulary_axis(self) -> str | None:
        """The mesh axis over which the logits of a token lie."""
        return "tensor" if self._splits("tensor") else None

    @property
    def _trades_heads(self) -> bool:
        return self._splits("sequence") and not self.gathers_keys

    def _splits(self, name: str) -> bool:
        return self.mesh is not None and self.mesh.shape[name] > 1

    def _own(self, whole: jax.Array, index: int, count: int, name: str = "tensor") -> jax.Array:
        """A device's part of an axis that the mesh axis does not divide: the one that several share, or one padded."""
        assert self.mesh is not None
        parts, here = self.mesh.shape[name], jax.lax.axis_index(name)
        unit = whole.shape[index] // count
        if count < parts:
            return jax.lax.dynamic_slice_in_dim(whole, here * count // parts * unit, unit, index)
        each = -(-count // parts) * unit
        padding = [(0, each * parts - length if axis == index else 0) for axis, length in enumerate(whole.shape)]
        return jax.lax.dynamic_slice_in_dim(jnp.pad(whole, padding), here * each, each, index)


ALONE = Share(None, {})


def own_tokens(tokens_BT: jax.Array, count: int, axis: str) -> tuple[jax.Array, jax.Array]:
    """Tokens as places in a device's part of the vocabulary, of `count`, 0 for others; and which are its own."""
    own_BT = tokens_BT - jax.lax.axis_index(axis) * count
    is_own_BT = (own_BT >= 0) & (own_BT < count)
    return jnp.where(is_own_BT, own_BT, 0), is_own_BT


def is_axes(node: Any) -> bool:
    """Whether a node of a tree is an array's axes: a tuple of names, as opposed to one of trees."""
    return isinstance(node, tuple) and all(isinstance(name, str) for name in node)
