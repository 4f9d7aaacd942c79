"""What the devices of a mesh send each other in one run of a compiled program, by kind and by mesh axis.

Bytes are those that leave one device, as the ring algorithms send them: of an all-gather everybody's part but one's
own, of an all-reduce twice that (once to add up, once to hand out). Devices are numbered as they lie in the mesh.
"""

import math
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

import numpy as np

from bactrian.plan import hlo
from bactrian.plan.hlo import Frame, Instruction, Program, Trips

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute", "collective-broadcast")

# What hands a value on, or a slice of it; the asynchronous are slices and copies between memories.
_MOVES = ("slice", "get-tuple-element", "bitcast", "copy", "copy-start", "copy-done", "async-start", "async-done")

Sizes = Mapping[str, int]  # of a mesh's axes, in their order


class Collective(NamedTuple):
    """One collective of a program.

    axes: the mesh axes that it goes over. group: the devices of one of its groups.
    arrays: what it makes of whole things, as `bf16[2,8]`: an all-gather's results, the others' operands, and of the
    permute that ends a reduce-scatter what that one scatters.
    sent: bytes that leave a device each time; times: how often it runs.
    """

    kind: str
    axes: tuple[str, ...]
    group: tuple[int, ...]
    arrays: tuple[str, ...]
    sent: float
    times: float
    op_name: str
    frame: Frame | None


class Traffic(NamedTuple):
    """All collectives of one kind over the same axes: how many run, and the bytes that leave a device."""

    kind: str
    axes: tuple[str, ...]
    group_size: int
    count: float
    bytes: float


def of(program: Program, sizes: Sizes, trips: Trips = lambda loop: 1.0) -> Iterator[Collective]:
    """The collectives of a program over a mesh; those within groups of one device send nothing and are left out."""
    seen: set[tuple[str, ...]] = set()
    for instruction, computation, home, times in program.runs(trips):
        kind = instruction.opcode.removesuffix("-start")
        if kind not in KINDS:
            continue
        channel = re.search(r"channel_id=(\d+)", instruction.attributes)
        if home != computation and channel:
            # TPUs run an asynchronous one inside other fusions: each of them, its start and its end hold a copy of it,
            # in one chain. Others may have its channel.
            chain = re.search(r'chain_id="?(\w+)', instruction.attributes)
            copy = (home, channel[1], chain[1] if chain else "")
            if copy in seen:
                continue
            seen.add(copy)
        if kind == "all-reduce" and computation.startswith("all-reduce-scatter"):
            kind = "reduce-scatter"  # as TPUs' compiler writes one: everybody then keeps a slice
        group = _group(instruction.attributes, math.prod(sizes.values()))
        if len(group) < 2:
            continue
        here = program.computations[computation]
        given = [here[operand].shape for operand in instruction.operands if operand in here]
        size = sum(map(hlo.size, given))
        arrays = [array for operand in instruction.operands for array in hlo.arrays(_unpadded(here, operand))]
        if kind == "collective-permute":
            arrays = hlo.arrays(_scattered(here, instruction.operands[0])) or arrays
        if kind == "all-gather":
            # The result of one that is started is its operands, then what they become.
            arrays = hlo.arrays(instruction.shape)[-len(given) :]
        yield Collective(
            kind,
            _axes(group, sizes),
            group,
            tuple(arrays),
            _sent(kind, size, len(group)),
            times,
            instruction.op_name,
            hlo.own_frame(instruction),
        )


def summed(collectives: Iterable[Collective]) -> list[Traffic]:
    """Traffic by kind and axes, the most bytes first."""
    found: dict[tuple[str, tuple[str, ...]], Traffic] = {}
    for each in collectives:
        key = each.kind, each.axes
        before = found.get(key, Traffic(*key, len(each.group), 0.0, 0.0))
        found[key] = before._replace(count=before.count + each.times, bytes=before.bytes + each.sent * each.times)
    return sorted(found.values(), key=lambda traffic: -traffic.bytes)


def elements(array: str) -> int:
    """How many elements `bf16[2,8]` has."""
    return math.prod(int(length) for length in re.findall(r"\d+", array.partition("[")[2]))


def _unpadded(here: dict[str, Instruction], name: str) -> str:
    """The type of what an operand is, before the compiler filled it up to equal parts."""
    operand = here.get(name)
    if operand is not None and operand.opcode == "pad" and operand.operands[0] in here:
        return here[operand.operands[0]].shape
    return operand.shape if operand is not None else ""


def _scattered(here: dict[str, Instruction], name: str) -> str:
    """The type of what a reduce-scatter scatters, where a value is a slice of what it leaves; else nothing.

    TPUs' compiler fills the parts up to whole tiles, and a device then passes on to the next what is that one's.
    """
    left, index = here.get(name), 0
    while left is not None and (left.opcode in _MOVES or "ConcatBitcast" in left.attributes):
        element = re.search(r"index=(\d+)", left.attributes) if left.opcode == "get-tuple-element" else None
        index = int(element[1]) if element else index
        left = here.get(left.operands[0])
    if left is None or not (left.opcode == "reduce-scatter" or "calls=%all-reduce-scatter" in left.attributes):
        return ""
    return _unpadded(here, left.operands[index])


def _sent(kind: str, size: float, group: int) -> float:
    """Bytes that leave a device that gives `size` bytes."""
    if kind == "all-gather":
        return (group - 1) * size
    if kind in ("reduce-scatter", "all-to-all"):
        return size * (group - 1) / group
    return 2 * size * (group - 1) / group if kind == "all-reduce" else size


def _axes(group: tuple[int, ...], sizes: Sizes) -> tuple[str, ...]:
    """The mesh axes along which the devices of a group differ."""
    places = np.array(np.unravel_index(group, tuple(sizes.values())))
    return tuple(axis for axis, along in zip(sizes, places, strict=True) if np.any(along != along[0]))


def _group(attributes: str, devices: int) -> tuple[int, ...]:
    """The first group of a collective. XLA writes them out, as a reshaped range, or by the axes of a mesh; of a permute
    it writes who gives to whom, and the group are those that the first pair leads to."""
    pairs = re.search(r"source_target_pairs=\{([\d,{} ]*)\}", attributes)
    if pairs:
        return _joined([(int(giver), int(taker)) for giver, taker in re.findall(r"(\d+),(\d+)", pairs[1])])
    written = re.search(r"replica_groups=\{\{([\d, ]*)\}", attributes)
    if written:
        return tuple(map(int, written[1].split(",")))
    range_of = re.search(r"replica_groups=\[([\d,]+)\]<=(\[[\d,]+\](?:T\([\d,]+\))?)", attributes)
    if range_of:
        return tuple(_order(range_of[2]).reshape(_numbers(range_of[1]))[0].tolist())
    mesh = re.search(
        r"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\(([^)]*(?:\([\d,]*\))?)\))? ?\{([^}]*)\}", attributes
    )
    if mesh:
        return _mesh_group(mesh[1], mesh[2], mesh[3])
    return tuple(range(devices))


def _joined(pairs: list[tuple[int, int]]) -> tuple[int, ...]:
    """The devices that trade with each other, directly or through others, with those of the first pair of two."""
    found = set(next((pair for pair in pairs if pair[0] != pair[1]), ()))
    grown: set[int] = set()
    while grown != found:
        grown, found = found, found.union(*(pair for pair in pairs if found.intersection(pair)))
    return tuple(sorted(found))


def _mesh_group(axes: str, order: str | None, varied: str) -> tuple[int, ...]:
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
