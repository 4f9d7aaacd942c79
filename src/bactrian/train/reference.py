"""The reference model as a column: its log-probabilities, computed once and kept on disk.

They are computed on the rows of training, by the function that training uses, so that at the first step the policy's
are the very same numbers. The file's name is a hash of all they depend on: where anything differs they are computed
again. A pass that was interrupted goes on where it stopped.
"""

import hashlib
import io
import json
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from bactrian import progress as progresses
from bactrian.data import packing
from bactrian.data.packing import Examples, Plan
from bactrian.data.records import Batch
from bactrian.errors import HostLost
from bactrian.files import sealed
from bactrian.hosts import ALONE, Hosts
from bactrian.train import scores
from bactrian.train.scores import Score
from bactrian.train.trainer import Parameters, split

_KEEP_EVERY = 10.0  # seconds between writes of an unfinished pass
VERSION = 2  # of the code that computes and keeps them; a change of the numbers or of the file changes it


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

    Read from `path` where it is there and whole, else computed, telling `progress` how many of how many examples are
    done. Several hosts compute together, and the first one writes.
    """
    shape, partial = (len(corpus), plan.branches), path.with_suffix(".partial.npy")
    whole = _found(path, shape, hosts, "whether the reference is on disk")
    if whole is not None:
        return whole
    values = _found(partial, shape, hosts, "whether a part of the reference is on disk")
    values = np.full(shape, np.nan, np.float32) if values is None else values
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


def _found(path: Path, shape: tuple[int, int], hosts: Hosts, what: str) -> np.ndarray | None:
    """What the first host finds, on all of them. Raises `HostLost` where another does not find it."""
    first = _read(path, shape) if hosts.is_first else None
    if not hosts.agree(what, lambda: first is not None):
        return None
    values = first if hosts.is_first else _read(path, shape)
    if values is None:
        raise HostLost(f"{path}: not there as the first host reads it; see that all hosts share the run's folder")
    return values


def _read(path: Path, shape: tuple[int, int]) -> np.ndarray | None:
    """What was kept; None where nothing is, or what is there was damaged, which is said."""
    if not path.exists():
        return None
    content = sealed.read(path)
    values = None if content is None else np.load(io.BytesIO(content))
    if values is None or values.shape != shape:
        progresses.say(f"{path}: log-probabilities that were damaged: computed again")
        return None
    return values


def _save(path: Path, values: np.ndarray) -> None:
    content = io.BytesIO()
    np.save(content, values)
    sealed.write(path, content.getvalue())
