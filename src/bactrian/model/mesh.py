"""Devices into a mesh, and the sharding of everything that lies on it.

The table that names are looked up in is `shards.TABLE`; what every device computes is there too.
"""

import math
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jax.tree_util import DictKey

from bactrian.errors import RecipeError
from bactrian.model import llama, shards
from bactrian.model.shards import AXES

if TYPE_CHECKING:
    from bactrian.recipe import Mesh as Settings

__all__ = [
    "AXES",
    "check",
    "make",
    "of_batch",
    "of_cache",
    "of_parameters",
    "of_state",
    "own_parts",
    "parts",
    "place",
    "sharding",
    "sizes",
]


def sizes(settings: "Settings", devices: int) -> dict[str, int]:
    """The size of every axis for so many devices; the one that is -1 takes what the others leave.

    Raises `RecipeError`, with the arithmetic, where they do not multiply to the number of devices.
    """
    found = {axis: int(getattr(settings, axis)) for axis in AXES}
    open_axes = [axis for axis, size in found.items() if size == -1]
    fixed = math.prod(size for size in found.values() if size != -1)
    told = " × ".join(f"{axis} {size}" for axis, size in found.items() if size != -1)
    if open_axes and devices % fixed == 0:
        return found | {open_axes[0]: devices // fixed}
    if not open_axes and fixed == devices:
        return found
    if open_axes:
        raise RecipeError(f"mesh: {told} = {fixed} does not divide the {devices} devices; change one of them")
    raise RecipeError(
        f"mesh: {told} = {fixed}, and there are {devices} devices; give one of them as -1 to take what the others leave"
    )


def check(sizes: dict[str, int], config: llama.Config) -> None:
    """Raise `RecipeError`, with the arithmetic, where a model does not divide over a mesh of these sizes."""
    tensor = sizes["tensor"]
    _divides(
        config.hidden_size, "features of the residual stream", {axis: sizes[axis] for axis in shards.TABLE["embed"]}
    )
    _divides(config.intermediate_size, "features of the MLP", {"tensor": tensor})
    _divides(config.num_heads, "heads", {"tensor": tensor})
    groups = config.num_kv_heads
    if groups % tensor and tensor % groups:
        shared = f"{groups} key/value heads over tensor = {tensor}"
        fitting = [n for n in _divisors(config.num_heads) if groups % n == 0 or n % groups == 0]
        raise RecipeError(f"mesh: {shared}: neither divides the other; tensor can be {_listed(fitting)}")


def parts(sizes: dict[str, int]) -> tuple[int, int]:
    """How many parts these make of the rows of a batch, and of the places of a row."""
    rows, places = (math.prod(sizes[axis] for axis in shards.TABLE[name]) for name in shards.HIDDEN)
    return rows, places


def make(sizes: dict[str, int], devices: Any = None) -> Mesh | None:
    """A mesh of these devices, all there are if not said; None for one device, which needs none.

    Neighbours along the last axes are near each other where the hardware says so. Several TPU slices, between which the
    network is slow, are parts of one axis, data or fsdp. Raises `RecipeError` where neither divides over them.
    """
    devices = jax.devices() if devices is None else devices
    if len(devices) == 1:
        return None
    shape = tuple(sizes[axis] for axis in AXES)
    slices = len({getattr(device, "slice_index", 0) for device in devices})
    if slices == 1:
        return Mesh(mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True), AXES)
    outer = next((axis for axis in shards.TABLE["batch"] if sizes[axis] % slices == 0), None)
    if outer is None:
        told = " nor ".join(f"{axis} {sizes[axis]}" for axis in shards.TABLE["batch"])
        raise RecipeError(f"mesh: neither {told} divides over {slices} TPU slices; make one of them a multiple of it")
    between = tuple(slices if axis == outer else 1 for axis in AXES)
    within = tuple(size // parts for size, parts in zip(shape, between, strict=True))
    grid = mesh_utils.create_hybrid_device_mesh(within, between, devices, allow_split_physical_axes=True)
    return Mesh(grid, AXES)


def sharding(mesh: Mesh, axes: tuple[str, ...]) -> NamedSharding:
    """Of an array with axes of these names, by the table alone."""
    return NamedSharding(mesh, shards.partition(mesh, axes, {}))


def of_parameters(mesh: Mesh, config: llama.Config) -> llama.Parameters:
    """The sharding of every parameter."""
    counts = llama.share(config, mesh).counts
    return jax.tree.map(
        lambda axes: NamedSharding(mesh, shards.partition(mesh, axes, counts)),
        llama.axes(config),
        is_leaf=shards.is_axes,
    )


def of_state(mesh: Mesh, config: llama.Config, state: Any) -> Any:
    """The sharding of everything in a training state, given as arrays or as their shapes.

    What lies in it under the name of a parameter, as an optimizer's moments do, is split as that is, over every axis
    that it has in common with it; all else is the same on every device.
    """
    counts = llama.share(config, mesh).counts
    named = jax.tree_util.tree_leaves_with_path(llama.axes(config), is_leaf=shards.is_axes)
    splits = {_names(path): shards.splits(mesh, axes, counts) for path, axes in named}

    def one(path: tuple[Any, ...], leaf: Any) -> NamedSharding:
        found = splits.get(_names(path), [])
        if len(found) != len(leaf.shape):
            return NamedSharding(mesh, P())
        divides = (length % shards.size(mesh, names) == 0 for names, length in zip(found, leaf.shape, strict=True))
        return NamedSharding(
            mesh, P(*(names or None if fits else None for names, fits in zip(found, divides, strict=True)))
        )

    return jax.tree_util.tree_map_with_path(one, state)


def of_batch(mesh: Mesh, batch: Any) -> Any:
    """The sharding of every column of a batch, whose columns' last axes are named by its `axes`."""

    def one(axes: tuple[str, ...], column: Any) -> NamedSharding:
        spec = shards.partition(mesh, axes, {})
        return NamedSharding(mesh, P(*(None,) * (column.ndim - len(axes)), *spec))

    return type(batch)(*(one(axes, column) for axes, column in zip(batch.axes, batch, strict=True)))


def of_decoding(mesh: Mesh, config: llama.Config) -> llama.Parameters:
    """The sharding of every parameter as `decoding.lay_out` leaves them: no stack of layers, matrices turned."""
    whole = of_parameters(mesh, config)

    def one(stacked: NamedSharding) -> NamedSharding:
        return NamedSharding(mesh, P(*reversed(stacked.spec[1:])))

    layer = jax.tree.map(one, whole["layers"])
    return {**whole, "layers": (layer,) * config.num_layers}


def of_cache(mesh: Mesh, config: llama.Config, rows: int) -> NamedSharding:
    """The sharding of every array of a decoding cache: by its rows and by key/value heads, where they divide."""
    splits = shards.splits(mesh, ("kv_heads",), llama.share(config, mesh).counts)
    over = shards.TABLE["batch"]
    while over and rows % shards.size(mesh, over):
        over = over[1:]
    return NamedSharding(mesh, P(over or None, splits[0] or None))


def own_parts(mesh: Mesh | None) -> frozenset[int] | None:
    """Which parts of the rows of a batch this process's devices hold; None where it has all the devices."""
    if mesh is None or jax.process_count() == 1:
        return None
    count = math.prod(mesh.shape[name] for name in shards.TABLE["batch"])
    held = sharding(mesh, ("batch",)).addressable_devices_indices_map((count,)).values()
    return frozenset(part for index in held if index for part in range(*index[0].indices(count)))


def place(mesh: Mesh, batch: Any) -> Any:
    """A batch on the devices of a mesh. Of rows that other processes' devices hold nothing is looked at."""

    def one(column: Any, sharding: NamedSharding) -> jax.Array:
        return jax.make_array_from_callback(column.shape, sharding, np.asarray(column).__getitem__)

    return jax.tree.map(one, batch, of_batch(mesh, batch))


def _names(path: tuple[Any, ...]) -> tuple[str, ...]:
    """The last names of a path in a tree that stand together: those of a parameter, wherever its tree lies."""
    is_name = [isinstance(key, DictKey) for key in path]
    last = max((index for index, named in enumerate(is_name) if named), default=-1)
    first = last
    while first > 0 and is_name[first - 1]:
        first -= 1
    return tuple(str(key.key) for key in path[first : last + 1]) if last >= 0 else ()


def _divides(count: int, what: str, parts: dict[str, int]) -> None:
    product = math.prod(parts.values())
    if count % product:
        said = f"{' × '.join(parts)} = {product}"
        raise RecipeError(f"mesh: {count} {what} do not divide over {said}; it can be {_listed(_divisors(count))}")


def _divisors(count: int) -> list[int]:
    return [part for part in range(1, count + 1) if count % part == 0]


def _listed(numbers: list[int]) -> str:
    """The numbers in words; of many those up to 4096 are enough."""
    *most, last = (str(number) for number in numbers if number <= 4096)
    return f"{', '.join(most)} or {last}" if most else last
