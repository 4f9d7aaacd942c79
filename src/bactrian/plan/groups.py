"""Who takes part in a collective: its groups of devices, in every form that XLA writes them.

Written out, as a reshaped range, or by the axes of a mesh; of a permute it writes who gives to whom, and a group are
those that the first pair leads to.
"""

import math
import re
from collections.abc import Mapping

import numpy as np

from bactrian.plan import hlo_text

Sizes = Mapping[str, int]  # of a mesh's axes, in their order


def axes(group: tuple[int, ...], sizes: Sizes) -> tuple[str, ...]:
    """The mesh axes along which the devices of a group differ."""
    places = np.array(np.unravel_index(group, tuple(sizes.values())))
    return tuple(axis for axis, along in zip(sizes, places, strict=True) if np.any(along != along[0]))


def first(attributes: Mapping[str, str], devices: int) -> tuple[int, ...]:
    """The first group of a collective among so many devices; without a word of groups all are one. Raises `RunFailed`
    where they are written in no form that is known."""
    pairs, groups = attributes.get("source_target_pairs"), attributes.get("replica_groups", "{}")
    if "device_ids" in attributes:  # of a mesh whose devices are in another order: it follows its axes
        groups = f"{groups}, device_ids={attributes['device_ids']}"
    if pairs is not None:
        found = _joined([(int(giver), int(taker)) for giver, taker in re.findall(r"(\d+),\s*(\d+)", pairs)])
    else:
        found = _written(groups, devices)
    if found is None or any(device >= devices for device in found) or (pairs is None and devices % len(found)):
        raise hlo_text.misread(f"groups of {devices} devices that are {(pairs or groups)[:80]}")
    return found


def _written(groups: str, devices: int) -> tuple[int, ...] | None:
    if groups == "{}":
        return tuple(range(devices))
    listed = re.match(r"\{\{([\d,\s]+)\}", groups)
    if listed:
        return tuple(map(int, listed[1].split(",")))
    range_of = re.fullmatch(r"\[([\d,]+)\]<=(\[[\d,]+\](?:T\([\d,]+\))?)", groups)
    if range_of:
        return tuple(_order(range_of[2]).reshape(_numbers(range_of[1]))[0].tolist())
    mesh = re.fullmatch(r"mesh\[([^\]]*)\](?:,\s*device_ids=\(([^)]*(?:\([\d,]*\))?)\))?\s*\{([^}]*)\}", groups)
    return _of_mesh(mesh[1], mesh[2], mesh[3]) if mesh else None


def _joined(pairs: list[tuple[int, int]]) -> tuple[int, ...]:
    """The devices that trade with each other, directly or through others, with those of the first pair of two."""
    found = set(next((pair for pair in pairs if pair[0] != pair[1]), ()))
    grown: set[int] = set()
    while grown != found:
        grown, found = found, found.union(*(pair for pair in pairs if found.intersection(pair)))
    return tuple(sorted(found))


def _of_mesh(axes: str, order: str | None, varied: str) -> tuple[int, ...]:
    """`'a'=2,'b'=4`, an order such as `[2,4]T(1,0)`, and the axes `'a'` or parts of them `'b':(2)2` of a group."""
    sizes = {name: int(size) for name, size in re.findall(r"'([^']+)'=(\d+)", axes)}
    parts: dict[str, list[int]] = {name: [size] for name, size in sizes.items()}
    kept: set[tuple[str, int]] = set()
    for name, before, size in re.findall(r"'([^']+)'(?::\((\d+)\)(\d+))?", varied):
        if size:
            first, own = int(before), int(size)
            parts[name] = [first, own, sizes[name] // (first * own)]
            kept.add((name, 1))
        else:
            kept.add((name, 0))
    flat = [(name, index, size) for name, split in parts.items() for index, size in enumerate(split)]
    devices = np.arange(math.prod(sizes.values())) if order is None else _order(order)
    grid = devices.reshape([size for _, _, size in flat])
    return tuple(grid[tuple(slice(None) if (n, i) in kept else 0 for n, i, _ in flat)].ravel().tolist())


def _order(text: str) -> np.ndarray:
    """The numbers that `[2,8]T(1,0)`, or a list of numbers, stands for."""
    shape = re.match(r"\[([\d,]+)\](?:T\(([\d,]+)\))?", text)
    if shape is None:
        return np.array(_numbers(text))
    lengths = _numbers(shape[1])
    grid = np.arange(math.prod(lengths)).reshape(lengths)
    return (grid.transpose(_numbers(shape[2])) if shape[2] else grid).ravel()


def _numbers(text: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", text)]
