"""The text of a compiled program, read: its computations and instructions, and how often each instruction runs.

The text is what XLA prints after its last pass, for TPUs, GPUs and CPUs. A loop's trips are those that XLA knows, or
that its condition compares with; of a loop whose length is known only when it runs the caller says how long it is.
"""

import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

from bactrian.plan import hlo_text

_HEAD = re.compile(r"(ENTRY )?%?([^\s(]+)\b.*\{$")
_FRAME = re.compile(r"stack_frame_id=(\d+)")
_TRIPS = re.compile(r"known_trip_count\W+n\W+(\d+)")
_OP_NAME = re.compile(r'op_name="((?:\\.|[^"\\])*)"')
# What applies a computation to elements or blocks of its operands, which is no run of it.
_APPLIES = ("reduce", "reduce-window", "map", "sort", "scatter", "select-and-scatter", "custom-call")
_CALLS = (
    "calls",
    "body",
    "condition",
    "to_apply",
    "true_computation",
    "false_computation",
    "branch_computations",
    "called_computations",
)
_COMPARES = {"LT": 0, "NE": 0, "LE": 1}  # by how much more often a loop runs than the limit says
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

    def get(self, attribute: str) -> str:
        """An attribute's text, empty where it has none of that name."""
        return hlo_text.attributes(self.attributes).get(attribute, "")

    @property
    def called(self) -> list[str]:
        """The computations that its attributes name, in their order."""
        texts = [self.get(attribute) for attribute in _CALLS]
        return [name.strip(" %") for text in texts for name in text.strip("{}").split(",") if name]


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
        """How often a loop's body runs: what XLA knows, or from its first index to the limit that it compares with."""
        told = _TRIPS.search(loop.attributes)
        if told:
            return float(told[1])
        condition = self.computations[loop.get("condition").strip("%")]
        for compare in condition.values():
            more = _COMPARES.get(compare.get("direction")) if compare.opcode == "compare" else None
            if more is None:
                continue
            limit = self._constant(condition, compare.operands[1])
            if limit is not None:
                index = self._through(condition, compare.operands[0])
                first = self._first(loop, index) if index is not None else None
                return max(0.0, limit - (first or 0.0) + more)
        return unknown(loop)

    def _first(self, loop: Instruction, index: Instruction) -> float | None:
        """The constant that an element of a loop's tuple begins with."""
        here = self._home(loop)
        given = self._through(here, loop.operands[0])
        number = index.get("index") if index.opcode == "get-tuple-element" else ""
        if given is None or given.opcode != "tuple" or not number:
            return None
        return self._constant(here, given.operands[int(number)])

    def _home(self, instruction: Instruction) -> dict[str, Instruction]:
        return next(part for part in self.computations.values() if part.get(instruction.name) is instruction)

    def _constant(self, here: dict[str, Instruction], name: str) -> float | None:
        found = self._through(here, name)
        if found is None or found.opcode != "constant":
            return None
        try:
            return float(found.operands[0])
        except ValueError:
            return None

    def _through(self, here: dict[str, Instruction], name: str) -> Instruction | None:
        """What a copy, however it is called, is a copy of."""
        found = here.get(name)
        while found is not None and found.opcode in ("copy", "bitcast", "convert", "opt-barrier"):
            found = here.get(found.operands[0])
        return found

    def _called(self, instruction: Instruction) -> list[str]:
        opcode = instruction.opcode.removesuffix("-start")
        # A collective's `to_apply` is its reduction; what an asynchronous one runs, it runs once.
        if opcode in (*_APPLIES, "all-reduce", "reduce-scatter") or opcode.endswith(("-update", "-done")):
            return []
        missing = [name for name in instruction.called if name not in self.computations]
        if missing:
            raise hlo_text.misread(f"{instruction.name} calls {missing[0]}, which is not there")
        return instruction.called


def parse(text: str) -> Program:
    """The program of a compiled module's text."""
    stack = _stack(text)
    computations: dict[str, dict[str, Instruction]] = {}
    entry, current = "", None
    for line in text.splitlines():
        if current is None:
            head = None if line.startswith(("HloModule", " ")) else _HEAD.match(line)
            if head:
                current = computations[head[2]] = {}
                entry = head[2] if head[1] else entry
        elif line.startswith("}"):
            current = None
        else:
            words = hlo_text.line(line)
            if words is not None:
                _add(current, words, stack)
    if not computations.get(entry):
        raise hlo_text.misread("it has no entry")
    return Program(computations, entry)


def size(shape: str) -> float:
    """Bytes of an array's or a tuple's elements, without the padding of a layout."""
    return sum(math.prod(lengths) * _width(dtype) for dtype, lengths in hlo_text.arrays(shape))


def arrays(shape: str) -> list[str]:
    """The arrays in a type's text, each as `bf16[2,8]`."""
    return [f"{dtype}[{','.join(map(str, lengths))}]" for dtype, lengths in hlo_text.arrays(shape)]


def own_frame(instruction: Instruction) -> Frame | None:
    """The innermost place in our own source that made an instruction."""
    return next((frame for frame in instruction.frames if frame.file), None)


def _width(dtype: str) -> float:
    if dtype == "pred":
        return 1.0
    bits = re.match(r"[a-z]+(\d+)", dtype)
    assert bits is not None
    return int(bits[1]) / 8


def _add(here: dict[str, Instruction], words: hlo_text.Line, stack: list[tuple[Frame, ...]]) -> None:
    """Put an instruction into its computation, and before it the elements of tuples that it takes by number."""
    frame = _FRAME.search(words.attributes)
    number = int(frame[1]) if frame else 0
    frames = stack[number] if number < len(stack) else ()
    if words.opcode in ("constant", "parameter", "iota"):
        names = [words.inside] if words.inside else []
    else:
        names = [_element(here, each) for each in hlo_text.operands(words.inside)]
    here[words.name] = Instruction(words.name, words.opcode, words.shape, tuple(names), words.attributes, frames)


def _element(here: dict[str, Instruction], operand: hlo_text.Reference) -> str:
    """The name of an operand; one that is an element of a tuple becomes an instruction of its own."""
    name = operand.name
    for index in operand.indices:
        if name not in here:
            raise hlo_text.misread(f"an element of {name}, which nothing makes")
        whole, name = here[name], f"{name}#{index}"
        if name not in here:
            shape = hlo_text.element(whole.shape, index)
            here[name] = Instruction(name, "get-tuple-element", shape, (whole.name,), f", index={index}", whole.frames)
    return name


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
