"""What lies in a device's memory when it is fullest, from the reports that XLA writes of a program it compiles.

XLA writes them also of a program that does not fit. Each buffer is told by the instruction that makes it, and that by
the line of our source.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from bactrian.errors import RunFailed
from bactrian.plan import hlo, hlo_text
from bactrian.plan.hlo import Instruction, Program


class Buffer(NamedTuple):
    """Bytes that lie in memory at the peak: `count` arrays alike, made by one operation of one line of our source.

    name: of the operation, or of the argument that it is.
    """

    bytes: int
    count: int
    shape: str
    name: str
    source: str
    is_argument: bool


@dataclass(frozen=True)
class Report:
    """Of one program: the bytes of all it needs on a device, the largest buffers at its peak, and its text."""

    total: int
    buffers: tuple[Buffer, ...]
    program: Program


def read(folder: Path) -> Report:
    """The report of the largest program that was compiled with `--xla_dump_to` into a folder."""
    found = sorted(folder.rglob("*-memory-usage-report.txt"), key=_total)
    if not found:
        raise RunFailed(f"{folder}: XLA wrote no memory report; this version of it may not be able to")
    stem = str(found[-1]).removesuffix("-memory-usage-report.txt")
    program = hlo.parse(Path(f"{stem}.txt").read_text(encoding="utf-8"))
    makers = _Makers(program)
    peak = Path(f"{stem}-live-range.txt").read_text(encoding="utf-8").partition("(peak):\n")[2]
    buffers: dict[Buffer, int] = {}
    for line in peak.splitlines():
        row = re.match(r"\s+([\w.\-]+)\{([\d,]*)\}: (\d+) bytes", line)
        if not row:
            break
        each = _buffer(makers, row[1], int(row[2].partition(",")[0] or 0), int(row[3]))
        buffers[each] = buffers.get(each, 0) + 1
    alike = [each._replace(bytes=each.bytes * count, count=count) for each, count in buffers.items()]
    return Report(_total(found[-1]), tuple(sorted(alike, key=lambda buffer: -buffer.bytes)), program)


class _Makers:
    """Who made what an instruction of a program hands on: through loops and copies back to where it began."""

    def __init__(self, program: Program):
        self._program = program
        self._here = {name: part for part in program.computations.values() for name in part}
        self._homes = {name: home for home, part in program.computations.items() for name in part}
        self._loops: dict[str, Instruction] = {}
        for part in program.computations.values():
            for each in part.values():
                if each.opcode == "while":
                    self._loops |= dict.fromkeys(each.called, each)

    def find(self, name: str, index: int, steps: int = 32) -> Instruction | None:
        """The instruction that made the value, the `index`-th of a tuple, that an instruction has."""
        instruction = self._here[name][name] if name in self._here else None
        if instruction is None or not steps:
            return instruction
        here, operands = self._here[name], instruction.operands
        if instruction.opcode == "parameter" and self._homes[name] in self._loops:
            return self.find(self._loops[self._homes[name]].operands[0], index, steps - 1) or instruction
        if instruction.opcode == "tuple" and index < len(operands):
            return self.find(operands[index], 0, steps - 1) or instruction
        if instruction.opcode == "get-tuple-element" and operands[0] in here:
            return self.find(operands[0], int(instruction.get("index") or 0), steps - 1) or instruction
        if instruction.opcode == "while":
            body = self._program.computations[instruction.get("body").strip("%")]
            last = list(body.values())[-1]
            return self.find(last.name, index, steps - 1) or instruction
        if instruction.opcode == "fusion" and not instruction.op_name:
            inside = [each for name in instruction.called for each in self._program.computations[name].values()]
            made = hlo.arrays(instruction.shape)[index:][:1]
            alike = (each for each in reversed(inside) if each.op_name and hlo.arrays(each.shape) == made)
            return next(alike, instruction)
        if instruction.opcode in ("copy", "bitcast", "copy-start", "copy-done", "opt-barrier") and operands[0] in here:
            return self.find(operands[0], index, steps - 1) or instruction
        return instruction

    def is_argument(self, instruction: Instruction) -> bool:
        return instruction.opcode == "parameter" and self._homes[instruction.name] == self._program.entry


def _total(path: Path) -> int:
    found = re.search(r"^Total bytes: (\d+)", path.read_text(encoding="utf-8"), re.M)
    if found is None:
        raise hlo_text.misread(f"{path.name} says no total")
    return int(found[1])


def _buffer(makers: _Makers, name: str, index: int, bytes: int) -> Buffer:
    maker = makers.find(name, index)
    if maker is None:
        return Buffer(bytes, 1, "", name, "", False)
    arrays = hlo.arrays(maker.shape)
    shape = arrays[index if index < len(arrays) else 0] if arrays else ""
    frame = hlo.own_frame(maker)
    source = f"{frame.file}:{frame.line} {frame.function}" if frame else ""
    return Buffer(bytes, 1, shape, maker.op_name.replace("\\'", "'") or name, source, makers.is_argument(maker))
