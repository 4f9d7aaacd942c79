"""How much a stage has to do: its model, its updates, and the rows of each, from the data or from what is said of it.

Where data and model are at hand the plan of the run itself is used. Where they are not, the recipe says how many rows
each source has and how many places an example takes on average, and lengths are drawn for them: from an exponential
distribution, whose quartiles are those that Ivison et al. (2023) report of the Tulu V2 mixture (230 and 1,464 tokens at
a mean of 1,097; drawn 316 and 1,521). They are packed by the run's own packer.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from bactrian import pipeline
from bactrian.data import mixture, packing
from bactrian.data.packing import Plan
from bactrian.errors import ModelError, RecipeError
from bactrian.model import hf_config, llama
from bactrian.prepare import check_places, check_positions
from bactrian.recipe import DPO, Recipe, Stage, StageName
from bactrian.stage import adapters_of

_SHORTEST = 16  # places of a drawn example


@dataclass(frozen=True)
class Workload:
    """What one update computes, on average over a stage, and how many there are.

    places: that hold tokens. pairs: of places of which one sees the other, counted as if no example had branches.
    computed_places: padding too. microbatches: that are not padding alone.
    drawn: whether lengths were drawn, for want of the data. adapters: that are trained, if not the model.
    """

    name: StageName
    config: llama.Config
    plan: Plan
    microbatch_rows: int
    places: float
    pairs: float
    drawn: bool
    adapters: llama.Lora | None = None

    @property
    def trained(self) -> llama.Config:
        """The model of an update, with its adapters."""
        return replace(self.config, lora=self.adapters)

    @property
    def updates(self) -> int:
        return len(self.plan.updates)

    @property
    def branches(self) -> int:
        return self.plan.branches

    @property
    def microbatches(self) -> float:
        return float(np.mean([-(-len(rows) // self.microbatch_rows) for rows in self.plan.updates]))

    @property
    def computed_places(self) -> float:
        return self.microbatches * self.microbatch_rows * self.plan.row_length


class Lengths(NamedTuple):
    """A stage's examples.

    places: that each takes in a row, int64 [examples]. order: those of every update, int32 [updates, batch].
    """

    config: llama.Config
    places: np.ndarray
    order: np.ndarray
    branches: int
    drawn: bool


def of(recipe: Recipe, name: StageName, row_parts: int, place_parts: int) -> Workload:
    """One stage's workload, its rows shared out in `row_parts`, the places of a row in `place_parts`.

    Raises `RecipeError` where neither the data is at hand nor its size is stated, or where a run would refuse it.
    """
    check_places(name, recipe.stages()[name], place_parts)
    return packed(lengths(recipe, name), name, recipe.stages()[name], row_parts, place_parts)


def lengths(recipe: Recipe, name: StageName) -> Lengths:
    """A stage's examples, from its data or drawn. Raises `RecipeError` where they may be too long for the model."""
    settings = recipe.stages()[name]
    given = _real(recipe, name) if is_at_hand(recipe, settings) else _stated(recipe, name)
    check_positions(name, settings, recipe.model.source, given.config.max_positions)
    return given


def packed(given: Lengths, name: StageName, settings: Stage, row_parts: int, place_parts: int) -> Workload:
    """The workload of examples, packed for a mesh."""
    rows = -(-settings.microbatch_rows // row_parts) * row_parts
    plan = packing.plan(
        given.places, given.order, settings.row_length, rows, given.branches, places_multiple=place_parts
    )
    used = given.places[given.order].astype(np.float64)
    updates = len(given.order)
    pairs = float(np.sum(used * (used + 1) / 2) / updates)
    places = float(np.sum(used) / updates)
    return Workload(name, given.config, plan, rows, places, pairs, given.drawn, adapters_of(settings))


def is_at_hand(recipe: Recipe, settings: Stage) -> bool:
    """Whether the stage's data and its model lie on this machine, or the recipe does not say how large they are."""
    if recipe.model.config is None or settings.mean_places is None or any(s.rows is None for s in settings.data):
        return True
    local = [recipe.model.source, *(source.path for source in settings.data)]
    return all(not name.startswith(("hf:", "pypi:")) and Path(name).exists() for name in local)


def stated_model(recipe: Recipe) -> llama.Config:
    """The architecture in the recipe's `model.config`, with the positions to train with. Raises `ModelError`."""
    assert recipe.model.config is not None
    config, quantization, _ = hf_config.read(Path(recipe.model.config))
    if quantization is not None:  # there are no tensors here to judge by
        raise ModelError(
            f"{recipe.model.config}: the weights are quantized ({quantization}); take the model that was not quantized"
        )
    return replace(config, max_positions=recipe.model.max_positions or config.max_positions)


def _real(recipe: Recipe, name: StageName) -> Lengths:
    """The examples of a run's own data."""
    base, prepared = pipeline.prepare_stage(recipe, name)
    corpus, settings = prepared.training.corpus, recipe.stages()[name]
    order = mixture.order(len(corpus), settings.batch_size, settings.epochs, recipe.seed)
    return Lengths(base.config, corpus.places(), order, corpus.branches, False)


def _stated(recipe: Recipe, name: StageName) -> Lengths:
    """As many examples as the recipe says, of drawn lengths."""
    settings = recipe.stages()[name]
    places = _drawn(settings, name, recipe.seed)
    order = mixture.order(len(places), settings.batch_size, settings.epochs, recipe.seed)
    return Lengths(stated_model(recipe), places, order, 2 if isinstance(settings, DPO) else 1, True)


def _drawn(settings: Stage, name: StageName, seed: int) -> np.ndarray:
    """Places of each example of a stage whose data is elsewhere, int64 [examples]."""
    counts = [min(source.rows or 0, source.limit or source.rows or 0) for source in settings.data]
    if sum(counts) < settings.batch_size:
        raise RecipeError(f"{name}: {sum(counts)} examples do not fill a batch of {settings.batch_size}")
    assert settings.mean_places is not None
    drawn = np.random.default_rng(seed).exponential(settings.mean_places, sum(counts))
    longest = min(settings.max_length - 1, settings.row_length)
    return np.clip(np.round(drawn), _SHORTEST, longest).astype(np.int64)
