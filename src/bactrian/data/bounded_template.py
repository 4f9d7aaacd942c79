"""Jinja for other people's templates: Jinja's sandbox, in which a template also cannot take all time or memory.

Nothing is rendered otherwise than by Jinja; what goes beyond the limits raises `TemplateError`. Counted are the rounds
of loops, calls, and the characters and items of whatever a template makes; what would be large is refused before it is
made, since a process that has run out of memory cannot say so. Nothing is computed while a template is compiled.
"""

import re
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, ClassVar

import jinja2
from jinja2 import nodes
from jinja2.runtime import LoopContext, Undefined
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer

LONGEST_TEMPLATE = 2**18  # characters; those of models have up to 30,000
STEPS = 300_000  # rounds of loops and filters, and thrice the calls, of one rendering
LARGEST = 2**24  # characters of a text
MADE = 2**28  # characters of all that one rendering makes
_ITEM = 8  # an item of a list takes as much as so many characters
_ITEMS = 2**19  # values inside of one that is compared or written
SECONDS = 20  # of one rendering: what the limits above leave room for on a slow machine
_BITS = 2**15  # of a whole number
_WIDEST = 10_000  # columns that a text is filled up to

_FLAT = (str, bytes, int, float, bool, type(None), Undefined)
# Filters whose work goes with all that lies inside of a value; for others its own length tells.
_DEEP = frozenset({"string", "join", "tojson", "pprint", "urlencode", "xmlattr", "escape", "e", "forceescape"}) | {
    *("unique", "groupby", "sort", "dictsort", "sum", "min", "max"),  # they compare
}
_WIDE = frozenset({"center", "indent", "wordwrap", "truncate", "batch", "slice", "tojson", "round"}) | {
    *("ljust", "rjust", "zfill", "expandtabs", "to_bytes"),  # methods
}
# In a format: a width of five digits, or one that comes from an argument.
_FAR = re.compile(r"%[^a-zA-Z%]*(?:\d{5}|\*)|:[^{}]*\d{5}[^{}]*\}|\{[\w.\[\]]*(?:!\w)?:[^{}]*\{")
# What templates are rewritten with; no template can spell these names.
_COUNTED, _JOINED, _SLICED, _WEIGHED = " counted", " joined", " sliced", " weighed"


class _Spent(threading.local):
    """What the rendering under way has used."""

    steps = made = 0
    until = float("inf")


class Environment(ImmutableSandboxedEnvironment):
    """An environment for templates that are not to be trusted; call `guard` when its filters and tests are complete."""

    intercepted_binops: ClassVar[frozenset[str]] = frozenset({"+", "*", "**", "%"})  # type: ignore[misc]

    def __init__(self, **options: Any):
        super().__init__(optimized=False, finalize=_finalize, **options)
        self.spent = _Spent()
        self.concat = self._concat  # type: ignore[assignment]
        # Text at random is nobody's template; what looks for addresses takes time that grows with the square.
        del self.globals["lipsum"], self.filters["urlize"]

    def guard(self) -> None:
        """Put every filter and test behind the limits."""
        for name, function in self.filters.items():
            self.filters[name] = self._guarded(function, name, deep=name in _DEEP)
        for name, function in self.tests.items():
            self.tests[name] = self._guarded(function, name, deep=True)
        own = {_COUNTED: self.counted, _JOINED: self._joined, _SLICED: self._sliced, _WEIGHED: self._comparable}
        self.filters.update(own)

    def render(self, template: jinja2.Template, variables: dict[str, Any]) -> str:
        """A template's text, within the limits; what it is given counts for nothing. Raises what templates raise."""
        spent, outer = self.spent, (self.spent.steps, self.spent.made, self.spent.until)
        given = _weight(list(variables.values()), MADE, MADE)
        spent.steps, spent.made, spent.until = 0, -8 * given, time.monotonic() + SECONDS
        try:
            return self._concat(template.root_render_func(template.new_context(variables)))
        except RecursionError:
            raise jinja2.TemplateError("it calls itself too often, or nests too deep") from None
        finally:
            spent.steps, spent.made, spent.until = outer

    def counted(self, values: Iterable[Any]) -> Iterator[Any]:
        """The values of a loop, each of which is a step."""
        for value in values:
            self._step()
            yield value

    def call(self, context: Any, function: Any, /, *args: Any, **kwargs: Any) -> Any:  # type: ignore[override]
        self._step(3)
        if isinstance(function, LoopContext) and args:
            args = (self.counted(args[0]), *args[1:])
        method = getattr(function, "__wrapped__", function)  # the sandbox has a `format` of its own around Python's
        owner, name = getattr(method, "__self__", None), getattr(method, "__name__", "")
        if isinstance(owner, str | bytes | list | tuple | dict | int):
            args = tuple(map(self._at_hand, args))
            self._check(name, owner, [*args, *kwargs.values()], deep=not isinstance(owner, dict))
        return self._counted_size(super().call(context, function, *args, **kwargs))

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        if operator == "%" and isinstance(left, str | bytes):
            self._check("format", left, [right], deep=True)
        elif isinstance(left, int) and isinstance(right, int):
            size = left.bit_length() * right if operator == "**" else left.bit_length() + right.bit_length()
            if size > _BITS:
                raise jinja2.TemplateError("it makes numbers of thousands of digits")
        elif operator == "*":
            sizes = [max(each, 0) if isinstance(each, int) else _length(each) for each in (left, right)]
            self._make(sizes[0] * sizes[1] if isinstance(left, int) or isinstance(right, int) else 1)
        elif operator == "+":
            self._make(_length(left) + _length(right))
        return super().call_binop(context, operator, left, right)

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        if len(source) > LONGEST_TEMPLATE:
            raise jinja2.TemplateError(f"it is longer than {LONGEST_TEMPLATE:,} characters")
        tree = super()._parse(source, name, filename)
        _Limits().visit(tree)
        tree.set_environment(self)
        return tree

    def _step(self, count: int = 1) -> None:
        spent = self.spent
        spent.steps += count
        if spent.steps > STEPS:
            raise jinja2.TemplateError(f"it takes more than {STEPS:,} steps")
        if time.monotonic() > spent.until:
            raise jinja2.TemplateError(f"it takes longer than {SECONDS} s")

    def _make(self, size: int) -> None:
        """Count what is about to be made."""
        self.spent.made += size
        if size > LARGEST or self.spent.made > MADE:
            limit = LARGEST if size > LARGEST else MADE
            raise jinja2.TemplateError(f"it makes texts or lists of more than {limit:,} characters")

    def _guarded(self, function: Callable[..., Any], name: str, deep: bool) -> Callable[..., Any]:
        passed = 1 if hasattr(function, "jinja_pass_arg") else 0  # the environment or context comes first

        def guarded(*args: Any, **kwargs: Any) -> Any:
            self._step()
            given = [*args[:passed], *map(self._at_hand, args[passed:])]
            self._check(name, given[passed], [*given[passed + 1 :], *kwargs.values()], deep)
            return self._counted_size(function(*given, **kwargs))

        if passed:
            guarded.jinja_pass_arg = function.jinja_pass_arg  # type: ignore[attr-defined]
        return guarded

    def _at_hand(self, value: Any) -> Any:
        """What a filter makes one by one, all made: only then is its size known."""
        return list(self.counted(value)) if hasattr(value, "__next__") else value

    def _check(self, name: str, value: Any, given: list[Any], deep: bool) -> None:
        """Refuse, before it is made, what a filter or method would make too large."""
        size = self._weigh([value, *given]) if deep else _length(value) + self._weigh(given)
        numbers = [abs(each) for each in given if isinstance(each, int) and not isinstance(each, bool)]
        width = sum(numbers) if name in _WIDE else 0
        if width > _WIDEST:
            raise jinja2.TemplateError(f"{name}: it asks for more than {_WIDEST:,} columns or parts")
        if name in ("format", "format_map") and isinstance(value, str | bytes):
            text = value if isinstance(value, str) else value.decode(errors="replace")
            if _FAR.search(text):
                raise jinja2.TemplateError("it formats to a width of thousands of columns, or one that it computes")
            size *= 1 + text.count("{") + text.count("%")
        elif name == "replace" and len(given) > 1:
            old, new = (each if isinstance(each, str | bytes) else str(each) for each in given[:2])
            text = value if isinstance(value, str) else str(value)
            size += (text.count(old) if isinstance(old, str) and old else len(text) + 1) * len(new)
        elif name == "join" and given:
            size += _length(value) * _length(given[0])
        elif name in ("indent", "tojson", "expandtabs"):
            size *= 1 + width + sum(len(each) for each in given if isinstance(each, str))
        elif name == "wordwrap":
            size *= 1 + sum(len(each) for each in given if isinstance(each, str))
        self._make(size)

    def _counted_size(self, value: Any) -> Any:
        self._make(_length(value))
        return value

    def _weigh(self, value: Any) -> int:
        size = _weight(value, LARGEST, _ITEMS)
        if size > LARGEST:
            raise jinja2.TemplateError(f"it works on more than {_ITEMS:,} items or {LARGEST:,} characters at once")
        return size

    def _comparable(self, value: Any) -> Any:
        """The value, if it is not too large to be compared, or written."""
        if not isinstance(value, _FLAT):
            self._weigh(value)
        return value

    def _concat(self, pieces: Iterable[str]) -> str:
        parts: list[str] = []
        size = 0
        for piece in pieces:
            size += len(piece)
            if size > LARGEST:
                break
            parts.append(piece)
        self._make(size)
        return "".join(parts)

    def _joined(self, values: list[Any]) -> str:
        """What `~` makes."""
        self._make(sum(len(value) if isinstance(value, str) else self._weigh(value) for value in values))
        return "".join(map(str, values))

    def _sliced(self, value: Any, start: Any, stop: Any, step: Any) -> Any:
        return self._counted_size(value[slice(start, stop, step)])


@jinja2.pass_context  # so that Jinja computes no text ahead
def _finalize(context: Any, value: Any) -> Any:
    """Every value that is written goes through here."""
    return context.environment._comparable(value)


class _Limits(NodeTransformer):
    """Leads what Jinja has no hook for through the environment."""

    def visit(self, node: nodes.Node, *args: Any, **kwargs: Any) -> nodes.Node:
        self.generic_visit(node)
        match node:
            case nodes.For():
                node.iter = _through(_COUNTED, node.iter)
            case nodes.Concat():
                return _through(_JOINED, nodes.List(node.nodes, lineno=node.lineno))
            case nodes.Getitem(arg=nodes.Slice() as part):
                bounds = [each or nodes.Const(None, lineno=node.lineno) for each in (part.start, part.stop, part.step)]
                return _through(_SLICED, node.node, *bounds)
            case nodes.Compare():
                # A value that holds others is compared with one that does not in no time.
                if sum(not _is_plain(side) for side in (node.expr, *(each.expr for each in node.ops))) > 1:
                    node.expr = _through(_WEIGHED, node.expr)
                    for operand in node.ops:
                        operand.expr = _through(_WEIGHED, operand.expr)
            case nodes.Pair(key=nodes.Expr() as key) if not _is_plain(key):
                node.key = _through(_WEIGHED, key)
            case _:
                pass
        return node


def _through(name: str, value: Any, *args: nodes.Expr) -> nodes.Filter:
    return nodes.Filter(value, name, list(args), [], None, None, lineno=value.lineno)


def _is_plain(node: nodes.Node) -> bool:
    if isinstance(node, nodes.List | nodes.Tuple):
        return all(map(_is_plain, node.items))
    return isinstance(node, nodes.Const)


def _length(value: Any) -> int:
    if isinstance(value, str | bytes):
        return len(value)
    return _ITEM * len(value) if isinstance(value, list | tuple | dict) else 1


def _weight(value: Any, limit: int, most: int) -> int:
    """Characters and items of all that lies inside of a value, each time it lies there; more than `limit` if they are,
    or if the items are more than `most`."""
    if isinstance(value, str):
        return len(value)
    size, waiting = 0, [value]
    while waiting and size <= limit:
        each = waiting.pop()
        size += 1
        if isinstance(each, str | bytes):
            size += len(each)
        elif isinstance(each, dict):
            waiting += [*each.keys(), *each.values()]
            most -= len(each)
        elif isinstance(each, list | tuple | set | frozenset):
            waiting += each
            most -= len(each)
        elif isinstance(each, int):
            size += each.bit_length() // 3
        if most < 0:
            return limit + 1
    return size
