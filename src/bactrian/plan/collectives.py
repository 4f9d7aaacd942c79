"""What the devices of a mesh send each other in one run of a compiled program, by kind and by mesh axis.

Bytes are those that leave one device, as the ring algorithms send them: of an all-gather everybody's part but one's
own, of an all-reduce twice that (once to add up, once to hand out). Devices are numbered as they lie in the mesh.
"""

import math
import re
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from bactrian.plan import groups, hlo, hlo_text
from bactrian.plan.groups import Sizes
from bactrian.plan.hlo import Frame, Instruction, Program, Trips

KINDS = (
    "all-gather",
    "all-reduce",
    "reduce-scatter",
    "all-to-all",
    "ragged-all-to-all",
    "collective-permute",
    "collective-broadcast",
)

# What hands a value on, or a slice of it; the asynchronous are slices and copies between memories.
_MOVES = ("slice", "get-tuple-element", "bitcast", "copy", "copy-start", "copy-done", "async-start", "async-done")


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
    """The collectives of a program over a mesh; those within groups of one device send nothing and are left out.

    Raises `RunFailed` where one is not what its kind says: what it makes is not as large as what it is given makes it.
    """
    seen: set[tuple[str, ...]] = set()
    for instruction, computation, home, times in program.runs(trips):
        kind = instruction.opcode.removesuffix("-start")
        if kind not in KINDS:
            _check_sends_nothing(instruction)
            continue
        channel = instruction.get("channel_id")
        if home != computation and channel:
            # TPUs run an asynchronous one inside other fusions: each of them, its start and its end hold a copy of it,
            # in one chain. Others may have its channel.
            chain = re.search(r'chain_id="?(\w+)', instruction.attributes)
            copy = (home, channel, chain[1] if chain else "")
            if copy in seen:
                continue
            seen.add(copy)
        group = groups.first(hlo_text.attributes(instruction.attributes), math.prod(sizes.values()))
        if len(group) < 2:
            continue
        here = program.computations[computation]
        given = _given(here, instruction)
        _check_sizes(instruction, kind, given, len(group))
        arrays = [array for operand in instruction.operands for array in hlo.arrays(_unpadded(here, operand))]
        if kind == "all-reduce" and computation.startswith("all-reduce-scatter"):
            kind = "reduce-scatter"  # as TPUs' compiler writes one: everybody then keeps a slice
        if kind == "collective-permute":
            arrays = hlo.arrays(_scattered(here, instruction.operands[0])) or arrays
        if kind == "all-gather":
            arrays = _made(instruction, given)
        size = sum(map(hlo.size, given))
        made_by = instruction.op_name, hlo.own_frame(instruction)
        sent = _sent(kind, size, len(group))
        yield Collective(kind, groups.axes(group, sizes), group, tuple(arrays), sent, times, *made_by)


def _given(here: dict[str, Instruction], instruction: Instruction) -> list[str]:
    """The arrays that a collective is given."""
    missing = [operand for operand in instruction.operands if operand not in here]
    if missing or not instruction.operands:
        raise hlo_text.misread(f"{instruction.name} is given {missing or 'nothing'}, which nothing makes")
    return [array for operand in instruction.operands for array in hlo.arrays(here[operand].shape)]


def _made(instruction: Instruction, given: list[str]) -> list[str]:
    """The arrays that a collective makes; the result of one that is started is its operands, what they become, and
    perhaps what it is followed by."""
    made = hlo.arrays(instruction.shape)
    return made[len(given) : 2 * len(given)] if instruction.opcode.endswith("-start") and made[len(given) :] else made


def _check_sizes(instruction: Instruction, kind: str, given: list[str], group: int) -> None:
    """Raise `RunFailed` where a collective does not make as much of what it is given as its kind says."""
    more, less = (group, 1) if kind == "all-gather" else (1, group) if kind == "reduce-scatter" else (1, 1)
    made = _made(instruction, given)
    ours, its = more * sum(map(elements, given)), less * sum(map(elements, made))
    if ours != its and kind != "ragged-all-to-all":
        raise hlo_text.misread(
            f"{instruction.name}, {kind} in groups of {group}, makes {', '.join(made)} of {', '.join(given)}"
        )


def _check_sends_nothing(instruction: Instruction) -> None:
    """Raise `RunFailed` of an instruction over devices that is of no kind that is counted."""
    over = instruction.get("replica_groups") or instruction.get("source_target_pairs")
    if over not in ("", "{}") and not instruction.opcode.endswith(("-done", "-update")):
        raise hlo_text.misread(f"{instruction.name} is of a kind that is not known: {instruction.opcode}")


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
        index = int(left.get("index")) if left.opcode == "get-tuple-element" else index
        left = here.get(left.operands[0])
    if left is None or not (left.opcode == "reduce-scatter" or left.get("calls").startswith("%all-reduce-scatter")):
        return ""
    return _unpadded(here, left.operands[index])


def _sent(kind: str, size: float, group: int) -> float:
    """Bytes that leave a device that gives `size` bytes."""
    if kind == "all-gather":
        return (group - 1) * size
    if kind in ("reduce-scatter", "all-to-all", "ragged-all-to-all"):
        return size * (group - 1) / group
    return 2 * size * (group - 1) / group if kind == "all-reduce" else size
