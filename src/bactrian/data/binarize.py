"""Scored answers to one prompt → which of them are compared: pairs, or one ranking, by a named policy.

best_random:  the best with any other, at random, even if it is as good (HuggingFaceH4/ultrafeedback_binarized)
best_lower:   the best with one that is worse, at random (argilla/ultrafeedback-binarized-preferences-cleaned)
best_worst:   the best with the worst
all_pairs:    every two, the better one first
ranking:      all at once, best first; of equally good ones the first
"""

import hashlib
import itertools
from collections.abc import Iterator, Sequence
from typing import Literal, get_args

Policy = Literal["best_random", "best_lower", "best_worst", "all_pairs", "ranking"]
POLICIES: tuple[Policy, ...] = get_args(Policy)


def choose(
    scores: Sequence[float], policy: Policy, min_margin: float, key: str
) -> Iterator[tuple[int, ...] | Literal["too_few_answers", "tie", "small_margin"]]:
    """The answers of each record, by index, best first; or why there is no such record.

    min_margin: what two neighbours' scores must differ by; with 0 they must still differ, but for `best_random`.
    key: what chance depends on, so that it is a function of the prompt and the seed, not of the order of the rows.

    Example: scores 3, 9, 3, 5 and `all_pairs` with margin 3 give (1, 0), (1, 2), (1, 3), two `small_margin` for the
    pairs of 5 with 3, and a `tie`.
    """
    if len(scores) < 2:
        yield "too_few_answers"
        return
    order = sorted(range(len(scores)), key=lambda index: -scores[index])  # of equals, the first comes first
    if policy == "ranking":
        yield _ranking(scores, order, min_margin)
        return
    for best, other in _pairs(scores, order, policy, key):
        margin = scores[best] - scores[other]
        if margin == 0 and (policy != "best_random" or min_margin > 0):
            yield "tie"
        else:
            yield (best, other) if margin >= min_margin else "small_margin"


def _pairs(scores: Sequence[float], order: Sequence[int], policy: Policy, key: str) -> Iterator[tuple[int, int]]:
    best, *others = order
    match policy:
        case "best_random":
            yield best, _pick(sorted(others), key)
        case "best_lower":
            lower = sorted(other for other in others if scores[other] < scores[best])
            yield best, _pick(lower or sorted(others), key)
        case "best_worst":
            yield best, order[-1]
        case _:
            yield from itertools.combinations(order, 2)


def _ranking(
    scores: Sequence[float], order: Sequence[int], min_margin: float
) -> tuple[int, ...] | Literal["tie", "small_margin"]:
    chosen = [order[0]]
    for index in order[1:]:
        margin = scores[chosen[-1]] - scores[index]
        if margin > 0 and margin >= min_margin:
            chosen.append(index)
    if len(chosen) > 1:
        return tuple(chosen)
    return "tie" if scores[order[0]] == scores[order[-1]] else "small_margin"


def _pick(indices: Sequence[int], key: str) -> int:
    digest = hashlib.sha256(key.encode()).digest()
    return indices[int.from_bytes(digest[:8], "big") % len(indices)]
