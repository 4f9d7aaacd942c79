"""A tokenizer's Jinja chat template: messages → text, as `transformers` renders it.

Templates are other people's programs, so they run in Jinja's sandbox. Contents stay plain text: where one could be read
as a special token, its first character is swapped for a private one until the text has been cut.
"""

import json
import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace
from datetime import datetime
from functools import lru_cache
from itertools import chain, islice
from typing import Any, ClassVar, NamedTuple

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.nodes import Node
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from bactrian.data.records import Messages
from bactrian.errors import ChatError

_BEGIN, _END = "generation_begins", "generation_ends"  # what a template writes around a mark, if it is given them


_MARK = re.compile(r"\{%-?\s*generation\s*-?%\}")


class _Generation(Extension):
    """`{% generation %}` marks what a model wrote, in templates that have it; the marks change no character."""

    tags: ClassVar[set[str]] = {"generation"}

    def parse(self, parser: Parser) -> list[Node]:
        next(parser.stream)
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        begin, end = (nodes.Output([nodes.Name(name, "load")]) for name in (_BEGIN, _END))
        return [begin, *body, end]


def _raise(message: str) -> None:
    raise jinja2.TemplateError(message)


def _to_json(value: Any, ensure_ascii: bool = False, **options: Any) -> str:
    # Jinja's own filter escapes HTML, which would change what the model reads.
    return json.dumps(value, ensure_ascii=ensure_ascii, **options)


@lru_cache(maxsize=8)
def _compile(template: str) -> jinja2.Template:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    return environment.from_string(template)


def render(template: str, messages: Messages, tokens: dict[str, str], generate: bool) -> str:
    """The text of a conversation, with an assistant's header at its end if `generate`.

    tokens: what the template calls `bos_token` and `eos_token`. Raises `ChatError` where the template does.
    """
    turns = [{"role": message.role, "content": message.content} for message in messages]
    try:
        return _compile(template).render(messages=turns, add_generation_prompt=generate, **tokens)
    except (jinja2.TemplateError, TypeError, ValueError, LookupError, ArithmeticError) as error:
        raise ChatError(
            f'the chat template refuses these messages: {error}; change their roles or use chat = "tulu"'
        ) from error


def has_marks(template: str) -> bool:
    """Whether a template marks what a model wrote."""
    return _MARK.search(template) is not None


def render_marked(template: str, messages: Messages, tokens: dict[str, str]) -> tuple[str, list[tuple[int, int]]]:
    """The text of a conversation, and the spans of it that the template marks. Raises `ChatError` as `render` does."""
    begin, end = islice(_private([template, *tokens.values(), *(message.content for message in messages)]), 2)
    written = render(template, messages, {**tokens, _BEGIN: begin, _END: end}, generate=False)
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


def disguise(messages: Messages, special: Collection[str], template: str) -> Disguise:
    """Swaps the first character of whatever could be read as a special token, in every content.

    That is a special token written out, a beginning of one at a content's end (the template may write the rest), or the
    end of one at a content's start. No content changes its length. Most need no swap: then nothing is copied.
    """
    places = [_places(message.content, frozenset(special)) for message in messages]
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
