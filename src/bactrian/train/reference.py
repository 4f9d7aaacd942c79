"""The reference model as a column: its log-probabilities, computed once and kept on disk.

They are computed on the rows of training, by the function that training uses, so that at the first step the policy's
are the very same numbers. The file's name is a hash of all they depend on: where anything differs they are computed
again. A pass that was interrupted goes on where it stopped.
"""

import hashlib
import json
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from bactrian.data import packing
from bactrian.data.packing import Examples, Plan
from bactrian.data.records import Batch
from bactrian.files.atomic import replacing
from bactrian.hosts import ALONE, Hosts
from bactrian.train import scores
from bactrian.train.scores import Score
from bactrian.train.trainer import Parameters, split

_KEEP_EVERY = 10.0  # seconds between writes of an unfinished pass
VERSION = 1  # of the code that computes them; a change of the numbers changes it


def key(*parts: object) -> str:
    """A name for log-probabilities that depend on `parts`: weights, corpus, plan, numeric settings."""
    return hashlib.sha256(json.dumps([VERSION, *parts], default=str).encode()).hexdigest()[:32]


def column(
    path: Path,
    plan: Plan,
    corpus: Examples,
    microbatch_rows: int,
    score: Score,
    parameters: Parameters,
    progress: Callable[[int, int], None] = lambda done, total: None,
    hosts: Hosts = ALONE,
) -> np.ndarray:
    """Log-probabilities of every example that the plan uses, float32 [examples, K]; NaN for those it does not.

    Read from `path` where it exists, else computed, telling `progress` how many of how many examples are done. Several
    hosts compute together, and the first one writes.
    """
    if hosts.agree("whether the reference is on disk", path.exists):
        return np.load(path)
    partial = path.with_suffix(".partial.npy")
    values = _reopen(partial, (len(corpus), plan.branches))
    hosts.wait("the reference begins")
    used = {example for update in range(len(plan.updates)) for example in plan.examples(update)}
    kept = time.monotonic()
    try:
        for update in range(len(plan.updates)):
            if not np.isnan(values[plan.examples(update)]).any():
                continue
            parts = microbatches(plan, corpus, update, microbatch_rows)
            wanted = [part for part in parts if np.isnan(values[part.examples[part.examples >= 0]]).any()]
            for example, logprobs in scores.of_examples(score, parameters, wanted):
                # The first row that an example is in decides: it is the one that its first training step sees.
                if np.isnan(values[example]).any():
                    values[example] = logprobs
            progress(int((~np.isnan(values[:, 0])).sum()), len(used))
            if hosts.is_first and time.monotonic() - kept > _KEEP_EVERY:
                _save(partial, values)
                kept = time.monotonic()
    except BaseException:
        if hosts.is_first:
            _save(partial, values)
        raise
    if hosts.is_first:
        _save(path, values)
        partial.unlink(missing_ok=True)
    return values


def microbatches(plan: Plan, corpus: Examples, update: int, rows: int) -> list[Batch]:
    """The microbatches of one update that are not padding alone."""
    batch = split(packing.batch(plan, corpus, update), rows)
    parts = [Batch(*(column[index] for column in batch)) for index in range(len(batch.tokens))]
    return [part for part in parts if (part.examples >= 0).any()]


def _reopen(partial: Path, shape: tuple[int, int]) -> np.ndarray:
    values = np.load(partial) if partial.exists() else np.full(shape, np.nan, np.float32)
    return values if values.shape == shape else np.full(shape, np.nan, np.float32)


def _save(path: Path, values: np.ndarray) -> None:
    with replacing(path) as temporary, temporary.open("wb") as file:
        np.save(file, values)
