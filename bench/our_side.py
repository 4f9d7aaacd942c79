"""This project's side of a comparison: a stage's reference column and its updates, as `bactrian sft` and `dpo` do them.

What is compiled is compiled on rows of padding first, so that no compilation is in a figure.
"""

import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
import training_data

from bactrian import assistant
from bactrian.data import packing
from bactrian.model import llama
from bactrian.prepare import Prepared
from bactrian.recipe import DPO, Model
from bactrian.stage import Computation, logprobs, objective_of
from bactrian.train import optimizer, trainer


class Trained(NamedTuple):
    """Seconds of the updates and of the reference pass, the first update's loss, how full the rows were.

    `references` are the used examples' reference log-probabilities, [used, K]; of conversations there are none.
    """

    config: llama.Config
    seconds: float
    reference_seconds: float
    first_loss: float
    row_fill: float
    references: np.ndarray


def train(share: Prepared, remat: llama.Remat) -> Trained:
    """Make every update of a stage."""
    base = assistant.find(training_data.MODEL)
    settings = Model(source=training_data.MODEL, chat="model", compute_dtype="float32", remat=remat)
    computation, parameters = Computation.of(settings, base.config), base.parameters()
    training, plan, rows = share.training, share.training.plan, share.microbatch_rows
    padding = packing.empty(plan.rows, plan.row_length, plan.segments, plan.branches)
    references, reference_seconds = None, 0.0
    if isinstance(share.settings, DPO):
        jax.block_until_ready(computation.score(parameters, jax.tree.map(lambda column: column[:rows], padding)))
        with tempfile.TemporaryDirectory() as folder:
            start = time.perf_counter()
            references = logprobs(computation, parameters, training, rows, "bench", Path(folder), "reference")
            reference_seconds = time.perf_counter() - start

    chain = optimizer.chain(share.settings.optimizer, share.steps + 1)
    state = computation.start(parameters, chain)
    step = computation.step(objective_of(share.settings, computation), chain, state)
    state, _ = jax.block_until_ready(step(state, trainer.split(padding, rows)))

    def batch_at(number: int):
        # Update 0 was the padding's.
        return trainer.split(packing.batch(plan, training.corpus, number - 1, references), rows)

    start = time.perf_counter()
    updates = [update for update, _ in trainer.train(step, state, batch_at, share.steps + 1, lambda _: False)]
    seconds = time.perf_counter() - start
    used = training_data.used(share)
    fill = float(training.places[used].sum() / (sum(map(len, plan.updates)) * plan.row_length))
    own = references[used] if references is not None else np.zeros((len(used), 0))
    return Trained(base.config, seconds, reference_seconds, updates[0].metrics["loss"], fill, own)
