"""`bactrian data show`: packed rows as the model will see them, learnt tokens in colour."""

import itertools

import numpy as np
from rich.console import Console
from rich.text import Text

from bactrian.data import packing
from bactrian.data.records import Batch
from bactrian.data.tokenizer import Tokenizer
from bactrian.errors import InputError
from bactrian.prepare import Prepared

_LEARNT, _SEEN = "bold green", "dim"


def rows(prepared: Prepared, tokenizer: Tokenizer, update: int, example: int | None) -> None:
    """Print the rows of one update (counted from 1), or one example alone in a row. Raises `InputError`."""
    batch, title = _chosen(prepared, update, example)
    # Not wrapped here: a line break would look like one of the text.
    console = Console(highlight=False, soft_wrap=True)
    console.print(title, markup=False)
    console.print(Text.assemble("learnt tokens are ", ("green", _LEARNT), ", the others are only seen"))
    for row in range(len(batch.tokens)):
        if batch.segments[row].any():
            _print_row(console, tokenizer, batch, row)


def _chosen(prepared: Prepared, update: int, example: int | None) -> tuple[Batch, str]:
    plan, corpus = prepared.training.plan, prepared.training.corpus
    if example is None:
        if not 1 <= update <= prepared.steps:
            raise InputError(f"update {update}: {prepared.name} has updates 1 to {prepared.steps}")
        counts = prepared.training.count(update - 1)
        title = f"{prepared.name}, update {update} of {prepared.steps}: " + ", ".join(
            f"{v} {k}" for k, v in counts.items()
        )
        return packing.batch(plan, corpus, update - 1), title.replace("_", " ")
    if not 0 <= example < len(corpus):
        raise InputError(f"example {example}: {prepared.name} has examples 0 to {len(corpus) - 1}")
    batch = packing.empty(1, int(prepared.training.places[example]), 1, plan.branches)
    packing.fill(batch, 0, [(example, corpus[example])])
    return batch, f"{prepared.name}, example {example} of {len(corpus)}"


def _print_row(console: Console, tokenizer: Tokenizer, batch: Batch, row: int) -> None:
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
        (tokenizer.decode(ids[start:stop], skip_special=False), _LEARNT if learnt[start] else _SEEN)
        for start, stop in itertools.pairwise(edges)
    ]
