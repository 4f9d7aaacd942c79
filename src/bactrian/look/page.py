"""`bactrian data show --html`: examples and packed rows as one page that needs nothing beside itself.

The page holds what it is given, not the whole corpus: an update's rows with their examples, the first examples, or
those with some text. In it one searches by text or index, sees learnt tokens in colour, branches side by side, and the
ids of the token under the pointer.
"""

import bisect
import itertools
from collections.abc import Iterable, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2
import numpy as np

from bactrian.data import continuation
from bactrian.data.corpus import Corpus
from bactrian.data.records import Example
from bactrian.data.tokenizer import Tokenizer
from bactrian.files import documents
from bactrian.files.atomic import replacing
from bactrian.prepare import Prepared

_BROKEN = "�"  # of bytes that are no character
_LONGEST_CHARACTER = 8  # tokens: 4 bytes, and more where they are spelt out
_OPENING = 60  # characters of an example in the list

Span = list[Any]  # text, class in the page ("l" learnt, "s" special, "l s" both), ids


def write(path: Path, prepared: Prepared, tokenizer: Tokenizer, examples: Sequence[int], update: int | None) -> None:
    """Write the page of some examples, and of the rows of an update (counted from 1) with theirs."""
    rows = () if update is None else prepared.training.plan.updates[update - 1]
    shown = sorted({*examples, *(index for row in rows for index in row)})
    corpus = prepared.training.corpus
    template = resources.files("bactrian") / "templates" / "data.html.jinja"
    spans = _Spans(tokenizer)
    entries = [_example(corpus, index, prepared, spans) for index in shown]
    _shorten_openings(entries)
    content = {
        "summary": f"{len(shown):,} of {len(corpus):,} examples, {prepared.steps:,} updates",
        "examples": entries,
        "update": None if update is None else _update(prepared, update),
    }
    # In a script nothing is escaped; only `</` or `<!--` could end it.
    data = documents.dumps(content).replace("<", "\\u003c")
    with replacing(path) as temporary:
        source = jinja2.Template(template.read_text(encoding="utf-8"))
        temporary.write_text(
            source.render(title=f"{prepared.name}: what the model learns", data=data), encoding="utf-8"
        )


def _update(prepared: Prepared, update: int) -> dict[str, Any]:
    training = prepared.training
    rows = training.plan.updates[update - 1]
    counts = ", ".join(f"{count:,} {name}" for name, count in training.count(update - 1).items()).replace("_", " ")
    return {
        "title": f"update {update} of {prepared.steps}",
        "facts": f"{counts}, in {len(rows)} rows of {training.plan.row_length} places; the rest of a row is padding",
        "rows": [
            {
                "length": training.plan.row_length,
                "used": int(training.places[list(row)].sum()),
                "examples": [[index, int(training.places[index])] for index in row],
            }
            for row in rows
        ],
    }


def _example(corpus: Corpus, index: int, prepared: Prepared, spans: "_Spans") -> dict[str, Any]:
    example = corpus[index]
    shared = example.starts[0] if example.starts else len(example.tokens)
    ends = (*example.starts[1:], len(example.tokens))
    branches = (
        [
            {
                "name": _name(number, len(example.starts), int(example.learn[start:end].sum())),
                "spans": spans.of(example.tokens[start:end], example.learn[start:end]),
            }
            for number, (start, end) in enumerate(zip(example.starts, ends, strict=True), 1)
        ]
        if example.starts
        else []
    )
    shown = spans.of(example.tokens[:shared], example.learn[:shared])
    learnt = int(prepared.training.learned[index])
    opening = " ".join("".join(str(span[0]) for span in shown if "s" not in span[1]).split())
    return {
        "index": index,
        "facts": f"{_source(corpus, index)}: {len(example.tokens):,} tokens, {learnt:,} learnt",
        "opening": opening,
        "shared": shown,
        "branches": branches,
    }


def _shorten_openings(entries: list[dict[str, Any]]) -> None:
    """Leave out what all examples begin with (a system message, say), and what is too long for the list."""
    openings = [entry["opening"] for entry in entries]
    same = "".join(a[0] for a in itertools.takewhile(lambda a: len(set(a)) == 1, zip(*openings, strict=False)))
    begin = same.rfind(" ") + 1 if len(entries) > 1 else 0
    for entry in entries:
        entry["opening"] = entry["opening"][begin : begin + _OPENING]


def _name(number: int, of: int, learnt: int) -> str:
    names = {2: ("chosen", "rejected")}.get(of)
    return f"{names[number - 1] if names else f'rank {number}'} ({learnt:,} learnt)"


def _source(corpus: Corpus, index: int) -> str:
    """Which source of the stage an example is of; they lie in the corpus one after the other."""
    ends = list(itertools.accumulate(entry["kept"] for entry in corpus.ledger["sources"]))
    return Path(corpus.ledger["sources"][bisect.bisect_right(ends, index)]["path"]).name


class _Spans:
    """Tokens as the page shows them; a character of several tokens is one span."""

    def __init__(self, tokenizer: Tokenizer):
        self._tokenizer = tokenizer
        self._special = set(tokenizer.special.values())
        self._texts: dict[int, str] = {}

    def of(self, tokens: np.ndarray, learn: np.ndarray) -> list[Span]:
        ids, learnt = tokens.tolist(), learn.tolist()
        found: list[Span] = []
        at = 0
        while at < len(ids):
            end = self._end(ids, at)
            text = self._text(ids[at]) if end == at + 1 else self._tokenizer.decode(ids[at:end], False)
            kinds = [name for name, holds in (("l", learnt[at]), ("s", ids[at] in self._special)) if holds]
            found.append([text, " ".join(kinds), *ids[at:end]])
            at = end
        return found

    def _end(self, ids: list[int], at: int) -> int:
        """Where the character that a token begins is whole; after the token itself if it never is."""
        if _BROKEN not in self._text(ids[at]):
            return at + 1
        for end in range(at + 2, min(at + _LONGEST_CHARACTER, len(ids)) + 1):
            if _BROKEN not in self._tokenizer.decode(ids[at:end], False):
                return end
        return at + 1

    def _text(self, token: int) -> str:
        if token not in self._texts:
            self._texts[token] = self._tokenizer.token_text(token)
        return self._texts[token]


def matching(corpus: Corpus, tokenizer: Tokenizer, text: str, limit: int) -> list[int]:
    """The first `limit` examples in which a text stands, case ignored."""
    wanted = text.casefold()
    found = (index for index in range(len(corpus)) if wanted in _whole(corpus[index], tokenizer).casefold())
    return list(itertools.islice(found, limit))


def _whole(example: Example, tokenizer: Tokenizer) -> str:
    bounds: Iterable[int] = (0, *example.starts, len(example.tokens))
    shared, *branches = [example.tokens[start:end] for start, end in itertools.pairwise(bounds)]
    own = [continuation.after(tokenizer, shared, branch, False) for branch in branches]
    return "\n".join([tokenizer.decode(shared, False), *own])
