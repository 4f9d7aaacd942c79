"""`bactrian data show`: packed rows as the model will see them, learnt tokens in colour; in the terminal, or a page."""

import itertools
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.text import Text

from bactrian import progress
from bactrian.data import continuation, packing
from bactrian.data.records import Batch
from bactrian.data.tokenizer import Tokenizer
from bactrian.errors import InputError, shown
from bactrian.look import page
from bactrian.prepare import Prepared

_LEARNT, _SEEN = "bold green", "dim"


@dataclass(frozen=True)
class Chosen:
    """What to show: one example, or those with some text, or the rows of an update (counted from 1).

    limit: how many examples with the text; and in a page how many of the first examples beside the update's own.
    """

    update: int = 1
    example: int | None = None
    search: str | None = None
    limit: int = 100


def show(prepared: Prepared, tokenizer: Tokenizer, chosen: Chosen, html: Path | None) -> None:
    """Print what is chosen, or write it as a page. Raises `InputError` where it is not there."""
    corpus = prepared.training.corpus
    examples = _examples(prepared, tokenizer, chosen)
    if html is not None:
        update = chosen.update if examples is None else None
        first = range(min(chosen.limit, len(corpus))) if examples is None else examples
        page.write(html, prepared, tokenizer, first, update)
        progress.say(f"wrote {html}")
    elif examples is None:
        _print(tokenizer, *_update(prepared, chosen.update))
    else:
        for index in examples:
            _print(tokenizer, *_alone(prepared, index))


def _examples(prepared: Prepared, tokenizer: Tokenizer, chosen: Chosen) -> list[int] | None:
    """The examples asked for, or None where an update is."""
    corpus = prepared.training.corpus
    if chosen.example is not None:
        if not 0 <= chosen.example < len(corpus):
            raise InputError(f"example {chosen.example}: {prepared.name} has examples 0 to {len(corpus) - 1}")
        return [chosen.example]
    if chosen.search is not None:
        found = page.matching(corpus, tokenizer, chosen.search, chosen.limit)
        if not found:
            raise InputError(f"{chosen.search!r} is in no example of {prepared.name}")
        return found
    if not 1 <= chosen.update <= prepared.steps:
        raise InputError(f"update {chosen.update}: {prepared.name} has updates 1 to {prepared.steps}")
    return None


def _update(prepared: Prepared, update: int) -> tuple[Batch, str]:
    counts = prepared.training.count(update - 1)
    title = f"{prepared.name}, update {update} of {prepared.steps}: " + ", ".join(f"{v} {k}" for k, v in counts.items())
    return packing.batch(prepared.training.plan, prepared.training.corpus, update - 1), title.replace("_", " ")


def _alone(prepared: Prepared, example: int) -> tuple[Batch, str]:
    corpus = prepared.training.corpus
    batch = packing.empty(1, int(prepared.training.places[example]), 1, prepared.training.plan.branches)
    packing.fill(batch, 0, [(example, corpus[example])])
    return batch, f"{prepared.name}, example {example} of {len(corpus)}"


def _print(tokenizer: Tokenizer, batch: Batch, title: str) -> None:
    # Not wrapped here: a line break would look like one of the text.
    console = progress.Plain()
    console.print(title)
    console.print(Text.assemble("learnt tokens are ", ("green", _LEARNT), ", the others are only seen"))
    for row in range(len(batch.tokens)):
        if batch.segments[row].any():
            _print_row(console, tokenizer, batch, row)


def _print_row(console: progress.Plain, tokenizer: Tokenizer, batch: Batch, row: int) -> None:
    used = int((batch.segments[row] > 0).sum())
    console.rule(f"row {row + 1}: {used} of {batch.segments.shape[1]} places", align="left")
    for segment, example in enumerate(batch.examples[row], start=1):
        if example < 0:
            continue
        inside = batch.segments[row] == segment
        for branch in np.unique(batch.branches[row][inside]):
            places = np.flatnonzero(inside & (batch.branches[row] == branch))
            console.print(_path(tokenizer, batch, row, places, int(branch), int(example)))


def _path(tokenizer: Tokenizer, batch: Batch, row: int, places: np.ndarray, branch: int, example: int) -> Text:
    """The tokens of one branch. A branch begins with its copy of the last shared token, which is not shown twice."""
    heading = f"example {example}" if branch == 0 else f"  branch {branch}"
    ids = [int(batch.targets[row, place]) for place in places]
    learnt = [bool(batch.weights[row, place] > 0) for place in places]
    if batch.positions[row, places[0]] == 0:
        ids, learnt = [int(batch.tokens[row, places[0]]), *ids], [False, *learnt]
    return Text.assemble((f"{heading}: ", "cyan"), *_runs(tokenizer, ids, learnt))


def _runs(tokenizer: Tokenizer, ids: list[int], learnt: list[bool]) -> list[tuple[str, str]]:
    """Text of neighbouring tokens of one kind, decoded together so that characters of several tokens come out whole."""
    edges = [0, *(i for i in range(1, len(ids)) if learnt[i] != learnt[i - 1]), len(ids)]
    return [
        (
            shown(continuation.after(tokenizer, ids[:start], ids[start:stop], False)),
            _LEARNT if learnt[start] else _SEEN,
        )
        for start, stop in itertools.pairwise(edges)
    ]
