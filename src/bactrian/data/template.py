"""A tokenizer's Jinja chat template: messages → text, as `transformers` renders it.

Templates are other people's programs, so they run in Jinja's sandbox. Contents stay plain text: where one could be read
as a special token, its first character is swapped for a private one until the text has been cut.
"""

import json
import re
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import datetime
from functools import lru_cache, partial
from itertools import chain, islice
from typing import Any, ClassVar, NamedTuple

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.nodes import Node
from jinja2.parser import Parser

from bactrian.data.bounded_template import Environment
from bactrian.data.records import Message, Messages
from bactrian.errors import ChatError

_BEGIN, _END = "generation_begins", "generation_ends"  # what a template writes around a mark, if it is given them


_MARK = re.compile(r"\{%-?\s*generation\s*-?%\}")


class Generation(Extension):
    """`{% generation %}` marks what a model wrote, in templates that have it; the marks change no character.

    What is set inside stays inside, as in `transformers`.
    """

    tags: ClassVar[set[str]] = {"generation"}

    def parse(self, parser: Parser) -> Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        marks: list[nodes.Expr] = [nodes.Name(name, "load") for name in (_BEGIN, _END)]
        return nodes.CallBlock(self.call_method("_marked", marks), [], [], body).set_lineno(line)

    def _marked(self, begin: Any, end: Any, caller: Any) -> str:
        return f"{begin}{caller()}{end}"


def refuse(message: str) -> None:
    raise jinja2.TemplateError(message)


def to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    # Jinja's own filter escapes HTML, which would change what the model reads.
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


@lru_cache(maxsize=8)
def _compile(template: str) -> tuple[Environment, jinja2.Template]:
    environment = Environment(trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols])
    environment.filters["tojson"] = to_json
    environment.globals["raise_exception"] = refuse
    environment.guard()
    try:
        return environment, environment.from_string(template)
    except (RecursionError, MemoryError, SyntaxError) as error:
        raise jinja2.TemplateError(f"it nests too deep ({type(error).__name__})") from None


def render(
    template: str,
    messages: Messages,
    tokens: dict[str, str],
    generate: bool,
    now: datetime | None = None,
    told: Callable[[str], Any] = str,
) -> str:
    """The text of a conversation, with an assistant's header at its end if `generate`.

    tokens: special tokens by the names that the template calls them (`bos_token`, …). now: what the template takes for
    the time, by default the time; `told` hears what it was told. Raises `ChatError` where the template does, or
    takes too much time or memory.
    """
    turns = [{"role": message.role, "content": message.content} for message in messages]
    given = {"messages": turns, "tools": None, "documents": None, "add_generation_prompt": generate, **tokens}
    given["strftime_now"] = partial(_write_time, now, told)
    try:
        environment, compiled = _compile(template)
        return environment.render(compiled, given)
    except (jinja2.TemplateError, TypeError, ValueError, LookupError, ArithmeticError, AttributeError) as error:
        raise ChatError(
            f'the chat template refuses these messages: {error}; change their roles or use chat = "tulu"'
        ) from error


def written_times(template: str, tokens: dict[str, str], now: datetime) -> str:
    """What a template writes of the time, seen on two turns; the time itself if that shows nothing."""
    written: list[str] = []
    talk = (Message("user", "a"), Message("assistant", "b"))
    for generate in (False, True):
        with suppress(ChatError):
            render(template, talk, tokens, generate, now, written.append)
    return "\n".join(written) or now.isoformat()


def _write_time(now: datetime | None, told: Callable[[str], Any], form: str) -> str:
    if re.search(r"\d{4}", form):
        raise jinja2.TemplateError("strftime_now: it asks for more than a thousand columns")
    text = (now or datetime.now()).strftime(form)
    told(text)
    return text


def has_marks(template: str) -> bool:
    """Whether a template marks what a model wrote."""
    return _MARK.search(template) is not None


def render_marked(
    template: str, messages: Messages, tokens: dict[str, str], now: datetime | None = None
) -> tuple[str, list[tuple[int, int]]]:
    """The text of a conversation, and the spans of it that the template marks. Raises `ChatError` as `render` does."""
    begin, end = islice(_private([template, *tokens.values(), *(message.content for message in messages)]), 2)
    written = render(template, messages, {**tokens, _BEGIN: begin, _END: end}, False, now)
    pieces: list[str] = []
    spans: list[tuple[int, int]] = []
    at = 0
    for part in written.split(begin):
        marked, closed, after = part.partition(end)
        if closed:
            spans.append((at, at + len(marked)))
        pieces += [marked, after]
        at += len(marked) + len(after)
    return "".join(pieces), spans


def _private(texts: Sequence[str]) -> Iterator[str]:
    """Characters that stand for nothing, and are in none of the texts."""
    characters = map(chr, chain(range(0xE000, 0xF900), range(0xF0000, 0xFFFFE)))
    return (char for char in characters if not any(char in text for text in texts))


class Disguise(NamedTuple):
    """Messages in which no special token can be read, and the table that gives their characters back."""

    messages: Messages
    back: dict[int, str]


def disguise(
    messages: Messages, special: Collection[str], template: str, said: Collection[str] | None = None
) -> Disguise:
    """Swaps the first character of whatever could be read as a special token, in every content.

    said: those that an assistant's content must not hold, if they are fewer.

    That is a special token written out, a beginning of one at a content's end (the template may write the rest), or the
    end of one at a content's start. No content changes its length. Most need no swap: then nothing is copied.
    """
    every, own = frozenset(special), frozenset(special if said is None else said)
    places = [_places(message.content, own if message.role == "assistant" else every) for message in messages]
    if not any(places):
        return Disguise(messages, {})
    swapped = sorted({message.content[i] for message, found in zip(messages, places, strict=True) for i in found})
    free = _private([template, *special, *(message.content for message in messages)])
    swap = dict(zip(swapped, free, strict=False))
    disguised = tuple(
        replace(message, content="".join(swap[c] if i in found else c for i, c in enumerate(message.content)))
        for message, found in zip(messages, places, strict=True)
    )
    return Disguise(disguised, {ord(private): char for char, private in swap.items()})


def _places(content: str, special: frozenset[str]) -> set[int]:
    forms = _forms(special)
    places: set[int] = set()
    if any(text in content for text in special):  # far faster than to look with the regex
        places |= {match.start() for match in forms.whole.finditer(content)}
    trimmed = content.strip()
    head = content.find(trimmed)
    tail = head + len(trimmed)
    if trimmed.endswith(forms.beginnings):
        places |= {tail - len(text) for text in forms.beginnings if trimmed.endswith(text)}
    if trimmed.startswith(forms.endings):
        places.add(head)
    return places


class _Forms(NamedTuple):
    """Special tokens wherever they begin (they may overlap), their proper beginnings, their proper endings."""

    whole: re.Pattern[str]
    beginnings: tuple[str, ...]
    endings: tuple[str, ...]


@lru_cache(maxsize=8)
def _forms(special: frozenset[str]) -> _Forms:
    whole = re.compile(f"(?={alternatives(special)})")
    beginnings = {text[:n] for text in special for n in range(1, len(text))}
    endings = {text[n:] for text in special for n in range(1, len(text))}
    return _Forms(whole, tuple(sorted(beginnings)), tuple(sorted(endings)))


def alternatives(texts: Collection[str]) -> str:
    """A regex for any of the texts, the longest first; it matches nothing if there are none."""
    ordered: Sequence[str] = sorted(texts, key=lambda text: (-len(text), text))
    return "(?:" + "|".join(map(re.escape, ordered)) + ")" if ordered else "(?!)"
