"""The operations of the matrix products in a compiled text; kernels of our own are not seen."""

import math
import re

import numpy as np

from bactrian.plan import hlo_text
from bactrian.plan.hlo import Instruction, Program, Trips

_GEMM = re.compile(r'custom_call_target="__(?:cublas|onednn|triton_gemm)')
_CONTRACTED = re.compile(r'lhs_contracting_dim(?:ension)?s"?[=:]\W*([\d",\s]+)')


def operations(program: Program, trips: Trips = lambda loop: 1.0) -> float:
    """Of one device in one run: a multiplication and an addition for each term of each sum."""
    total = 0.0
    for instruction, computation, _, times in program.runs(trips):
        total += times * _operations(program.computations[computation], instruction)
    return total


def _operations(here: dict[str, Instruction], instruction: Instruction) -> float:
    if instruction.opcode == "convolution":
        return _convolution(here, instruction)
    is_product = instruction.opcode == "dot" or _GEMM.search(instruction.attributes) is not None
    contracted = _CONTRACTED.search(instruction.attributes) if is_product else None
    if contracted is None:
        return 0.0
    left, made = _lengths(here[instruction.operands[0]].shape), _lengths(instruction.shape)
    return 2.0 * math.prod(left[int(number)] for number in re.findall(r"\d+", contracted[1])) * math.prod(made)


def _convolution(here: dict[str, Instruction], instruction: Instruction) -> float:
    """As TPUs' compiler writes products: `dim_labels=bf0_0io->b0f` says what each length is. Lengths that are slid over
    (digits) count as often as an element of the kernel lies on one of the input, which with padding may be but once."""
    labels = re.fullmatch(r"(\w+)_(\w+)->(\w+)", instruction.get("dim_labels"))
    if labels is None:
        raise hlo_text.misread(f"{instruction.name} does not say its dimensions")
    shapes = *(_lengths(here[name].shape) for name in instruction.operands[:2]), _lengths(instruction.shape)
    given, kernel, made = (
        dict(zip(label, shape, strict=True)) for label, shape in zip(labels.groups(), shapes, strict=True)
    )
    terms = 2.0 * made["b"] * made["f"] * kernel["i"]
    window = dict(re.findall(r"(\w+)=(\S+)", instruction.get("window").strip("{}")))
    for index, label in enumerate(sorted(made.keys() - {"b", "f"})):
        stride, before, over, apart = (
            int(window[name].split("x")[index].split("_")[0]) if name in window else usual
            for name, usual in (("stride", 1), ("pad", 0), ("lhs_dilate", 1), ("rhs_dilate", 1))
        )
        at = np.arange(made[label])[:, None] * stride + np.arange(kernel[label]) * apart - before
        terms *= np.count_nonzero((at >= 0) & (at <= (given[label] - 1) * over) & (at % over == 0))
    return terms


def _lengths(shape: str) -> list[int]:
    """Of the first array of a type: a library's product also hands on its workspace."""
    return hlo_text.arrays(shape)[0][1]
