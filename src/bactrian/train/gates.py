"""What must hold at the first step; a run in which it does not says why and stops.

Together they cost a forward pass of one microbatch, through the program that the reference pass has compiled (with
adapters one more, through the program of held-out scores), and one of a few short rows.
"""

import math
from dataclasses import replace

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
# equal; what differs here is the row that an example shares or has alone, and the program that computes it.
TOLERANCES = {"float32": 1e-4, "bfloat16": 2e-2}
_SAMPLED_EXAMPLES = 3


def check_learnt(learned: np.ndarray, examples: list[int]) -> None:
    """Every example of the first update teaches something."""
    for example in examples:
        if learned[example] == 0:
            raise GateFailed(f"example {example} has no token to learn; look at it with `bactrian data show`")


def first_logprobs(
    score: Score, parameters: Parameters, plan: Plan, corpus: Examples, rows: int
) -> dict[int, np.ndarray]:
    """The examples of the first microbatch of training, with the log-probabilities of their branches."""
    batch = packing.batch(replace(plan, scales=None), corpus, 0)
    microbatch: Batch = jax.tree.map(lambda column: column[0], split(batch, rows))
    return dict(scores.of_examples(score, parameters, [microbatch]))


def check_packing(
    first: dict[int, np.ndarray],
    score: Score,
    parameters: Parameters,
    plan: Plan,
    corpus: Examples,
    rows: int,
    dtype: str,
    places_multiple: int = 1,
) -> None:
    """In a packed row an example has the log-probability that it has alone in a row.

    Looked at are some that others stand before, the shortest: alone their rows are short, and cost little. The places
    of a row are a multiple of `places_multiple`, as the devices ask for that share them.
    """
    laid = {example: packing.lay_out(corpus[example]) for example in first}
    leading = {row[0] for row in plan.updates[0][:rows]}
    sampled = sorted(laid, key=lambda example: (example in leading, len(laid[example].tokens)))[:_SAMPLED_EXAMPLES]
    longest = max(len(laid[example].tokens) for example in sampled)
    length = 1 << (longest - 1).bit_length()  # of few lengths, so that few programs are compiled
    length = min(plan.row_length, -(-length // places_multiple) * places_multiple)
    single = packing.empty(-(-len(sampled) // rows) * rows, length, 1, plan.branches)
    for row, example in enumerate(sampled):
        packing.fill(single, row, [(example, corpus[example])])
    for example, alone in scores.of_examples(score, parameters, [single]):
        if not np.allclose(first[example], alone, rtol=TOLERANCES[dtype], atol=TOLERANCES[dtype]):
            raise GateFailed(f"example {example} has log-probability {first[example]} packed and {alone} alone")


def check_reference(first: dict[int, np.ndarray], references: np.ndarray) -> None:
    """On the first rows the policy is the reference, exactly, and the loss is ln 2."""
    for example, values in first.items():
        if not np.array_equal(values, references[example]):
            raise GateFailed(
                f"example {example}: the policy's log-probabilities are {values}, the reference's "
                f"{references[example]}; they must be equal before the first step: remove the cache's references/"
            )
        loss, _ = preference.dpo(values, references[example], 1.0)
        check_first_loss(float(loss), "float32")


def check_adapters(first: dict[int, np.ndarray], plain: dict[int, np.ndarray], dtype: str) -> None:
    """Fresh adapters change nothing: with them and without the first rows have the same log-probabilities."""
    for example, values in first.items():
        if not np.allclose(values, plain[example], rtol=TOLERANCES[dtype], atol=TOLERANCES[dtype]):
            raise GateFailed(
                f"example {example} has log-probability {values} with fresh adapters and {plain[example]} without; "
                f"they must change nothing before the first step"
            )


def check_first_loss(loss: float, dtype: str) -> None:
    """DPO's loss before anything has changed is ln 2: what the first step reports, which is of the state before it."""
    if not math.isclose(loss, math.log(2), abs_tol=TOLERANCES[dtype]):
        raise GateFailed(f"the first loss is {loss:.6f}; at the reference it must be ln 2 = {math.log(2):.6f}")
