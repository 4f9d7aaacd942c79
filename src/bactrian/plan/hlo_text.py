"""The words of compiled text: shapes, operands and attributes, read by their brackets and not by their layout.

An instruction is `[ROOT] %name = SHAPE opcode(OPERANDS), key=value, …`. Versions of XLA differ in what they leave out
(the percent sign, the operands' types) and in how they write an element of a tuple: as an instruction of its own, or as
`%name#3` where it is used. Both read alike here. What cannot be read is refused, since a line passed over would be a
number that is silently too small.
"""

import re
from functools import lru_cache
from typing import NamedTuple

from bactrian.errors import RunFailed

_MARK = re.compile(r'"(?:\\.|[^"\\])*"|/\*.*?\*/|[()\[\]{},]')
_ARRAY = re.compile(r"\b(token|opaque|pred|[a-z]+\d+(?:e\d+m\d+\w*)?)\[([\d,<=]*)\]")
_NAME = re.compile(r"\s+(ROOT )?%?([^\s=%]+) = ")
_OPCODE = re.compile(r"\s*([a-z][\w\-]*)\(")
_REFERENCE = re.compile(r"%?([^\s#%]+)((?:#\d+)*)")
_LAYOUT = re.compile(r"\{[^{}]*\}")
_SIZELESS = ("token", "opaque")


class Line(NamedTuple):
    """An instruction's words; `inside` is the text between its parentheses, `attributes` what follows them."""

    name: str
    is_root: bool
    shape: str
    opcode: str
    inside: str
    attributes: str


class Reference(NamedTuple):
    """An operand: the instruction of that name, or the element of its tuple that the indices lead to."""

    name: str
    indices: tuple[int, ...]


class Misread(RunFailed):
    """Compiled text that is not as it is read here: no number that is taken from it can be trusted."""


def misread(what: str) -> Misread:
    """What to raise where compiled text is not as this version reads it."""
    return Misread(f"the compiled text was misread: {what}; nothing of the plan would be right")


def line(text: str) -> Line | None:
    """The words of an instruction's line; None of a line that has none."""
    named = _NAME.match(text)
    if named is None:
        return None
    end = _end_of_shape(text, named.end())
    opcode = _OPCODE.match(text, end)
    if opcode is None:
        raise misread(f"no operation in {text.strip()[:80]!r}")
    closing = _closing(text, opcode.end() - 1)
    inside, attributes = text[opcode.end() : closing], text[closing + 1 :]
    return Line(named[2], bool(named[1]), text[named.end() : end], opcode[1], inside, attributes)


def operands(inside: str) -> list[Reference]:
    """The operands between an instruction's parentheses; types before their names are passed over."""
    found = []
    for part in split(inside):
        reference = _REFERENCE.fullmatch(part.rpartition(" ")[2])
        if reference is None:
            raise misread(f"no operand in {part[:80]!r}")
        found.append(Reference(reference[1], tuple(map(int, reference[2].split("#")[1:]))))
    return found


@lru_cache(maxsize=1 << 16)
def attributes(text: str) -> dict[str, str]:
    """`, key=value, …` as a mapping of texts."""
    pairs = (part.partition("=") for part in split(text))
    return {key: value for key, equals, value in pairs if equals}


def split(text: str) -> list[str]:
    """The parts between commas that stand in no bracket and no string; comments are left out."""
    parts, depth, start = [], 0, 0
    if "/*" in text:
        text = _MARK.sub(lambda mark: "" if mark[0].startswith("/*") else mark[0], text)
    for mark in _MARK.finditer(text):
        if mark[0] in "([{":
            depth += 1
        elif mark[0] in ")]}":
            depth -= 1
        elif mark[0] == "," and not depth:
            parts.append(text[start : mark.start()])
            start = mark.end()
    parts.append(text[start:])
    return [part for each in parts if (part := each.strip())]


def element(shape: str, index: int) -> str:
    """The type of an element of a tuple."""
    parts = split(shape[1:-1]) if shape.startswith("(") else []
    if index >= len(parts):
        raise misread(f"no element {index} in {shape[:80]!r}")
    return parts[index]


def arrays(shape: str) -> list[tuple[str, list[int]]]:
    """The arrays in a type, as its dtype and lengths each; tuples, layouts and what has no size are passed over."""
    found = _ARRAY.findall(_LAYOUT.sub("", shape))
    return [(dtype, list(map(int, re.findall(r"\d+", lengths)))) for dtype, lengths in found if dtype not in _SIZELESS]


def _end_of_shape(text: str, start: int) -> int:
    if text[start] == "(":
        return _closing(text, start) + 1
    array = _ARRAY.match(text, start)
    if array is None:
        raise misread(f"no type in {text.strip()[:80]!r}")
    layout = array.end()
    return _closing(text, layout) + 1 if text[layout : layout + 1] == "{" else layout


def _closing(text: str, start: int) -> int:
    """Where the bracket that opens at `start` closes."""
    depth = 0
    for mark in _MARK.finditer(text, start):
        if mark[0] in "([{":
            depth += 1
        elif mark[0] in ")]}":
            depth -= 1
            if not depth:
                return mark.start()
    raise misread(f"brackets do not close in {text.strip()[:80]!r}")
