"""What must hold at the first step; a run in which it does not says why and stops.

Each check costs a forward pass of one microbatch or less, through the program that the reference pass has compiled.
"""

import math

import jax
import numpy as np

from bactrian.data import packing
from bactrian.data.packing import Examples, Plan
from bactrian.data.records import Batch
from bactrian.errors import GateFailed
from bactrian.train import preference, scores
from bactrian.train.scores import Score
from bactrian.train.trainer import Parameters, split

# Relative to a branch's log-probability, and absolute for those near 0. In one program on one row the numbers are
# equal; what differs here is the row that an example shares, and for the loss the program around the forward pass.
TOLERANCES = {"float32": 1e-4, "bfloat16": 2e-2}
_SAMPLED_EXAMPLES = 3


def check_learnt(learned: np.ndarray, examples: list[int]) -> None:
    """Every example of the first update teaches something."""
    for example in examples:
        if learned[example] == 0:
            raise GateFailed(f"example {example} has no token to learn; look at it with `bactrian data show`")


def check_packing(score: Score, parameters: Parameters, plan: Plan, corpus: Examples, rows: int, dtype: str) -> None:
    """In a packed row an example has the log-probability that it has alone in a row."""
    packed = _first_microbatch(plan, corpus, rows)
    values = dict(scores.of_examples(score, parameters, [packed]))
    for example in list(values)[:_SAMPLED_EXAMPLES]:
        single = packing.empty(rows, plan.row_length, plan.segments, plan.branches)
        packing.fill(single, 0, [(example, corpus[example])])
        [(_, alone)] = scores.of_examples(score, parameters, [single])
        if not np.allclose(values[example], alone, rtol=TOLERANCES[dtype], atol=TOLERANCES[dtype]):
            raise GateFailed(f"example {example} has log-probability {values[example]} packed and {alone} alone")


def check_reference(
    score: Score, parameters: Parameters, plan: Plan, corpus: Examples, rows: int, references: np.ndarray
) -> None:
    """On the first rows the policy is the reference, exactly, and the loss is ln 2."""
    microbatch = _first_microbatch(plan, corpus, rows)
    for example, values in scores.of_examples(score, parameters, [microbatch]):
        if not np.array_equal(values, references[example]):
            raise GateFailed(
                f"example {example}: the policy's log-probabilities are {values}, the reference's "
                f"{references[example]}; they must be equal before the first step: remove the cache's references/"
            )
        loss, _ = preference.dpo(values, references[example], 1.0)
        check_first_loss(float(loss), "float32")


def check_first_loss(loss: float, dtype: str) -> None:
    """DPO's loss before anything has changed is ln 2: what the first step reports, which is of the state before it."""
    if not math.isclose(loss, math.log(2), abs_tol=TOLERANCES[dtype]):
        raise GateFailed(f"the first loss is {loss:.6f}; at the reference it must be ln 2 = {math.log(2):.6f}")


def _first_microbatch(plan: Plan, corpus: Examples, rows: int) -> Batch:
    return jax.tree.map(lambda column: column[0], split(packing.batch(plan, corpus, 0), rows))
