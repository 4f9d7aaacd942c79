"""The text of a compiled program, read: its computations and instructions, and how often each instruction runs.

The text is what XLA prints after its last pass, for TPUs, GPUs and CPUs. A loop's trips are those that XLA knows, or
that its condition compares with; of a loop whose length is known only when it runs the caller says how long it is.
"""

import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

_HEAD = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
_LINE = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = ")
_ARRAY = re.compile(r"\b(pred|[a-z]+\d+(?:e\d+m\d+\w*)?)\[([\d,<=]*)\]")
_OP_NAME = re.compile(r'op_name="([^"]*)"')
_FRAME = re.compile(r"stack_frame_id=(\d+)")
_CALLED = re.compile(r"(?:calls|body|condition|true_computation|false_computation|to_apply)=%([\w.\-]+)")
_BRANCHES = re.compile(r"(?:branch_computations|called_computations)=\{([^}]*)\}")
_TRIPS = re.compile(r'known_trip_count":\{"n":"(\d+)"')
_INSIDE = "bactrian/"


class Frame(NamedTuple):
    """A place in the source: file, function, line."""

    file: str
    function: str
    line: int


class Instruction(NamedTuple):
    """One instruction. `shape` is the text of its result's type; `frames` lead from the innermost call outwards."""

    name: str
    opcode: str
    shape: str
    operands: tuple[str, ...]
    attributes: str
    frames: tuple[Frame, ...]

    @property
    def op_name(self) -> str:
        found = _OP_NAME.search(self.attributes)
        return found[1] if found else ""


class Run(NamedTuple):
    """An instruction, the computation it stands in, and how often it runs.

    home: the computation that it runs as a part of: of what stands in a fusion, the one that the fusion stands in.
    """

    instruction: Instruction
    computation: str
    home: str
    times: float


Trips = Callable[[Instruction], float]  # of a loop whose length XLA does not know


@dataclass(frozen=True)
class Program:
    """Computations by name, each its instructions by name in order; `entry` names the first to run."""

    computations: dict[str, dict[str, Instruction]]
    entry: str

    def runs(self, trips: Trips = lambda loop: 1.0) -> Iterator[Run]:
        """Every instruction of every computation that runs, those inside fusions and asynchronous ones too.

        Both branches of a conditional count. What a reduction applies to its elements is passed over.
        """
        waiting = [(self.entry, self.entry, 1.0)]
        while waiting:
            name, home, times = waiting.pop()
            for instruction in self.computations[name].values():
                yield Run(instruction, name, home, times)
                each = times * (self.trips(instruction, trips) if instruction.opcode == "while" else 1.0)
                inside = instruction.opcode == "fusion"
                waiting += [(called, home if inside else called, each) for called in self._called(instruction)]

    def trips(self, loop: Instruction, unknown: Trips) -> float:
        """How often a loop's body runs."""
        told = _TRIPS.search(loop.attributes)
        if told:
            return float(told[1])
        condition = self.computations[_attribute(loop, "condition")]
        for compare in condition.values():
            if compare.opcode == "compare" and "direction=LT" in compare.attributes:
                for operand in compare.operands:
                    limit = condition.get(operand)
                    if limit is not None and limit.opcode == "constant":
                        return float(limit.operands[0])
        return unknown(loop)

    def _called(self, instruction: Instruction) -> list[str]:
        opcode = instruction.opcode
        if opcode not in ("fusion", "while", "conditional", "call") and not opcode.endswith("-start"):
            return []
        found = _CALLED.findall(instruction.attributes)
        for names in _BRANCHES.findall(instruction.attributes):
            found += re.findall(r"[\w.\-]+", names)
        # A collective's `to_apply` is its reduction.
        reductions = {"all-reduce-start", "reduce-scatter-start"}
        return [] if instruction.opcode in reductions else [name for name in found if name in self.computations]


def parse(text: str) -> Program:
    """The program of a compiled module's text."""
    stack = _stack(text)
    computations: dict[str, dict[str, Instruction]] = {}
    entry, current = "", None
    for line in text.splitlines():
        if current is None:
            head = _HEAD.match(line)
            if head and not line.startswith("HloModule"):
                current = computations[head[2]] = {}
                entry = head[2] if head[1] else entry
        elif line.startswith("}"):
            current = None
        else:
            instruction = _instruction(line, stack)
            if instruction is not None:
                current[instruction.name] = instruction
    return Program(computations, entry)


def size(shape: str) -> float:
    """Bytes of an array's or a tuple's elements, without the padding of a layout."""
    total = 0.0
    for dtype, lengths in _ARRAY.findall(shape):
        count = math.prod(int(length.removeprefix("<=")) for length in lengths.split(",") if length)
        total += count * _width(dtype)
    return total


def arrays(shape: str) -> list[str]:
    """The arrays in a type's text, each as `bf16[2,8]`."""
    return [f"{dtype}[{lengths}]" for dtype, lengths in _ARRAY.findall(shape)]


def own_frame(instruction: Instruction) -> Frame | None:
    """The innermost place in our own source that made an instruction."""
    return next((frame for frame in instruction.frames if frame.file), None)


def _width(dtype: str) -> float:
    if dtype == "pred":
        return 1.0
    bits = re.match(r"[a-z]+(\d+)", dtype)
    assert bits is not None
    return int(bits[1]) / 8


def _instruction(line: str, stack: list[tuple[Frame, ...]]) -> Instruction | None:
    found = _LINE.match(line)
    if not found:
        return None
    rest = line[found.end() :]
    end = _closing(rest, 0) + 1 if rest.startswith("(") else rest.index(" ")
    shape, rest = rest[:end], rest[end:].lstrip()
    opening = rest.index("(")
    closing = _closing(rest, opening)
    inside, attributes = rest[opening + 1 : closing], rest[closing + 1 :]
    operands = re.findall(r"%([\w.\-]+)", inside) or ([inside] if inside else [])
    frame = _FRAME.search(attributes)
    number = int(frame[1]) if frame else 0
    frames = stack[number] if number < len(stack) else ()
    return Instruction(found[1], rest[:opening], shape, tuple(operands), attributes, frames)


def _closing(text: str, start: int) -> int:
    depth = 0
    for match in re.compile(r"[()]").finditer(text, start):
        depth += 1 if match[0] == "(" else -1
        if depth == 0:
            return match.start()
    return len(text) - 1


def _stack(text: str) -> list[tuple[Frame, ...]]:
    """The frames of every stack frame id, from the innermost outwards; files outside the package have no name."""
    tables = {name: _table(text, name) for name in ("FileNames", "FunctionNames", "FileLocations", "StackFrames")}
    places = [Frame("", "", 0)]
    for row in tables["FileLocations"]:
        numbers = dict(re.findall(r"(\w+)=(\d+)", row))
        file = tables["FileNames"][int(numbers["file_name_id"]) - 1].strip('"')
        function = tables["FunctionNames"][int(numbers["function_name_id"]) - 1].strip('"')
        inside = file.rpartition(_INSIDE)[2] if _INSIDE in file else ""
        places.append(Frame(inside, function, int(numbers["line"])))
    frames: list[tuple[Frame, ...]] = [()]
    for index, row in enumerate(tables["StackFrames"], 1):
        numbers = dict(re.findall(r"(\w+)=(\d+)", row))
        # A parent's number is one more than its index: 1 is the root, which is no frame.
        parent = int(numbers.get("parent_frame_id", index)) - 1
        outer = frames[parent] if parent < index else ()
        frames.append((places[int(numbers["file_location_id"])], *outer))
    return frames


def _table(text: str, title: str) -> list[str]:
    found = re.search(rf"^{title}\n((?:\d+ .*\n)*)", text, re.M)
    return [line.partition(" ")[2] for line in found[1].splitlines()] if found else []


def _attribute(instruction: Instruction, name: str) -> str:
    found = re.search(rf"{name}=%([\w.\-]+)", instruction.attributes)
    assert found is not None, f"{instruction.name} has no {name}"
    return found[1]
