"""A stage's data made ready before anything is paid for: tokenized, every row planned, every token accounted for."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, get_args

import numpy as np

from bactrian.data import corpus as corpora
from bactrian.data import mixture, packing
from bactrian.data.chat import Chat
from bactrian.data.corpus import Corpus
from bactrian.data.packing import Plan
from bactrian.errors import DataError, RecipeError
from bactrian.recipe import SFT, PublishedLayout, RunLayout, Stage, StageName

_HELDOUT_UPDATE = 64  # held-out examples packed together
_LOOKED_AT = 2000  # examples whose ends and beginnings are read
_FORMATS: dict[StageName, tuple[RunLayout, ...]] = {
    "sft": ("messages", "alpaca", "sharegpt", "prompt_completion", *get_args(PublishedLayout)),
    "dpo": ("preference", "hh"),
}


@dataclass(frozen=True)
class Examples:
    """A corpus with the plan of its rows. `places` and `learned` count places of a row per example."""

    corpus: Corpus
    plan: Plan
    places: np.ndarray
    learned: np.ndarray

    @classmethod
    def of(cls, corpus: Corpus, plan: Plan, places: np.ndarray) -> "Examples":
        return cls(corpus, plan, places, corpus.learned())

    def count(self, update: int) -> dict[str, int]:
        """Examples, tokens and learnt tokens of one update."""
        examples = self.plan.examples(update)
        return {
            "examples": len(examples),
            "tokens": int(self.places[examples].sum()),
            "learned_tokens": int(self.learned[examples].sum()),
        }


class Parts(NamedTuple):
    """Into how many parts devices share out the rows of a batch, and the places of a row; whose rows are read here."""

    rows: int
    places: int
    own: frozenset[int] | None = None  # of the parts of the rows; None: all

    def owning(self, plan: Plan, microbatch_rows: int) -> Plan:
        """The plan with the rows that are read here. Each microbatch is shared out by itself."""
        if self.own is None:
            return plan
        each = microbatch_rows // self.rows
        return replace(plan, own=frozenset(r for r in range(plan.rows) if r % microbatch_rows // each in self.own))


ALONE = Parts(1, 1)


@dataclass(frozen=True)
class Prepared:
    """A stage whose data is tokenized and whose every row is planned, so many of them to be computed at once."""

    name: StageName
    settings: Stage
    training: Examples
    heldout: Examples | None
    microbatch_rows: int

    @property
    def steps(self) -> int:
        return len(self.training.plan.updates)

    def ledger(self) -> dict[str, Any]:
        """What became of every row, token and place: each line adds up."""
        plan, corpus = self.training.plan, self.training.corpus
        used = np.array([example for update in range(self.steps) for example in plan.examples(update)])
        tokens, learned = int(self.training.places[used].sum()), int(self.training.learned[used].sum())
        # The empty rows that fill up a last microbatch are computed too.
        together = self.microbatch_rows
        computed = sum(-(-len(rows) // together) * together for rows in plan.updates) * plan.row_length
        seen = {
            "updates": self.steps,
            "examples": len(used),
            "examples_left_out": len(corpus) * self.settings.epochs - len(used),
            "places": computed,
            "learned": learned,
            "masked": tokens - learned,
            "padding": computed - tokens,
            "row_length": plan.row_length,
        }
        ledger = {"corpus": corpus.key, **corpus.ledger, "training": seen}
        return (
            ledger
            if self.heldout is None
            else {**ledger, "heldout": {"corpus": self.heldout.corpus.key, **self.heldout.corpus.ledger}}
        )


def check_places(name: StageName, settings: Stage, parts: int) -> None:
    """Raise `RecipeError` where the places of a row cannot be shared out in so many equal parts."""
    if settings.row_length % parts:
        fitting = settings.row_length // parts * parts
        raise RecipeError(
            f"{name}.row_length is {settings.row_length}, and its places do not divide over mesh.sequence × "
            f"mesh.tensor = {parts}; {fitting or parts} would"
        )


def check_positions(name: StageName, settings: Stage, model: str, positions: int) -> None:
    """Raise `RecipeError` where an example may be longer than the model of this name has positions."""
    if settings.max_length > positions:
        raise RecipeError(
            f"{name}.max_length is {settings.max_length}, and {model} has {positions} positions; lower it, or set "
            f"model.max_positions to train with more"
        )


def check_formats(name: StageName, settings: Stage) -> None:
    """Raise `DataError` where a stage cannot learn from rows laid out as a source's are."""
    for source in (*settings.data, *settings.heldout):
        if source.format not in _FORMATS[name]:
            *others, last = _FORMATS[name]
            wanted = f"{', '.join(others)} or {last}"
            advice = "; a policy of pairs, as all_pairs, makes pairs of rankings" if source.format == "ranking" else ""
            raise DataError(
                f"{source.path}: {name} cannot learn from format {source.format!r}; it takes {wanted}{advice}"
            )


class Fault(NamedTuple):
    """Something of which a model would learn the wrong thing: its name for machines, and in words."""

    name: str
    text: str


def faults(corpus: Corpus, chat: Chat) -> list[Fault]:
    """What is wrong with a stage's examples, of which some are looked at, evenly spread."""
    found = []
    if not chat.ends_turn:
        text = "the chat template ends an assistant's turn in no special token, so that no model learns to stop"
        found.append(Fault("no_end_of_turn", f'{text}; use chat = "tulu", or repair the template'))
    looked_at = np.unique(np.linspace(0, len(corpus) - 1, min(len(corpus), _LOOKED_AT)).astype(int)).tolist()
    twice = unended = 0
    for index in looked_at:
        example = corpus[index]
        paths = [example.branch(b) for b in range(len(example.starts))] or [(example.tokens, example.learn)]
        bos = chat.tokenizer.bos_id
        twice += any(len(tokens) > 1 and bos is not None and (tokens[:2] == bos).all() for tokens, _ in paths)
        unended += any(not _ends(tokens[learn], chat) for tokens, learn in paths)
    if twice:
        text = f"{twice:,} of {len(looked_at):,} examples looked at begin with two BOS tokens; one is the tokenizer's"
        found.append(Fault("double_bos", f"{text} and one the chat template's: take it out of either"))
    if unended:
        text = f"{unended:,} of {len(looked_at):,} examples looked at do not end in a learnt token that ends a turn"
        found.append(Fault("end_not_learnt", f"{text}; look at one with `bactrian data show`"))
    return found


def _ends(learnt: np.ndarray, chat: Chat) -> bool:
    """Whether what is learnt ends where a turn does: a line end may follow, of which the format makes a next turn."""
    ends = np.flatnonzero(np.isin(learnt, chat.stop_ids))
    if not len(learnt) or (len(ends) and ends[-1] == len(learnt) - 1):
        return True
    return len(ends) > 0 and not chat.tokenizer.decode(learnt[ends[-1] + 1 :].tolist()).strip()


def refuse_faults(prepared: Prepared, chat: Chat) -> None:
    """Raise `DataError` where a model would learn the wrong thing; `bactrian data check` finds the same."""
    found = faults(prepared.training.corpus, chat)
    if found:
        raise DataError(f"{prepared.name}: {found[0].text}", found[0].name)


def prepare(name: StageName, settings: Stage, chat: Chat, seed: int, cache: Path, parts: Parts = ALONE) -> Prepared:
    """Tokenize a stage's data, or find it tokenized, and plan its rows.

    Raises `DataError`, `ChatError`, and `RecipeError` where rows cannot be shared out in equal parts.
    """
    check_places(name, settings, parts.places)
    check_formats(name, settings)
    limits = corpora.Limits(settings.max_length, settings.row_length)
    on_bad_row = settings.on_bad_row
    corpus = corpora.build(settings.data, chat, limits, settings.max_dropped, cache, on_bad_row=on_bad_row)
    order = mixture.order(len(corpus), settings.batch_size, settings.epochs, seed)
    if not len(order):
        raise DataError(f"{name}: {len(corpus)} examples do not fill a batch of {settings.batch_size}")
    places = corpus.places()
    rows = -(-settings.microbatch_rows // parts.rows) * parts.rows
    plan = packing.plan(places, order, settings.row_length, rows, corpus.branches, places_multiple=parts.places)
    if isinstance(settings, SFT) and settings.mean_over is not None:
        plan = packing.mean_of_means(plan, order, corpus.learned(), settings.mean_over)
    training = Examples.of(corpus, parts.owning(plan, rows), places)
    if not settings.heldout:
        return Prepared(name, settings, training, None, rows)
    held = corpora.build(settings.heldout, chat, limits, settings.max_dropped, cache, on_bad_row=on_bad_row)
    groups = np.split(np.arange(len(held)), range(_HELDOUT_UPDATE, len(held), _HELDOUT_UPDATE))
    held_places = held.places()
    # At the length of the training rows, where the examples fit, the score is already compiled.
    length = plan.row_length if held_places.max() <= plan.row_length else None
    held_plan = packing.plan(
        held_places, groups, settings.row_length, rows, held.branches, length, places_multiple=parts.places
    )
    heldout = Examples.of(held, parts.owning(held_plan, rows), held_places)
    return Prepared(name, settings, training, heldout, rows)
