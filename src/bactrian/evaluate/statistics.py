"""How sure a score is, and whether two models differ: intervals, paired tests, and a word where a gap is noise.

Intervals are percentiles of a bootstrap over items (questions, instructions), which are what was drawn from a larger
set: the two turns of a question go together. Efron and Tibshirani 1993, chapters 13 and 16. Of a share with few wins or
few losses they are Wilson's: 0 of 2 says more than nothing, and less than 0 to 0. Wilson 1927; Brown, Cai and DasGupta
2001.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

_RESAMPLES = 10_000
_AT_ONCE = 500  # resamples whose indices are in memory together
_LEVEL = 0.95
_SEED = 0
_FEW = 5  # wins or losses; with fewer neither a bootstrap nor a normal interval holds
_Z = 1.959963984540054  # of the normal distribution, at the level


@dataclass(frozen=True)
class Interval:
    """A mean with the limits of its interval, at the level that `level` says."""

    mean: float
    low: float
    high: float
    level: float = _LEVEL


@dataclass(frozen=True)
class Comparison:
    """Two models on the same items: the mean difference (first less second) and whether chance would do as much.

    `p_value` is that of a sign-flipping permutation test on the items' differences; `mcnemar` that of McNemar's exact
    test on which of the two was better, ties left out.
    """

    difference: float
    low: float
    high: float
    p_value: float
    better: int
    worse: int
    mcnemar: float
    n: int

    @property
    def is_noise(self) -> bool:
        """Whether the interval of the difference holds 0."""
        return self.low <= 0 <= self.high

    def mirrored(self) -> "Comparison":
        """The second compared with the first."""
        swapped = {"better": self.worse, "worse": self.better}
        return replace(self, difference=-self.difference, low=-self.high, high=-self.low, **swapped)

    def as_row(self) -> dict[str, Any]:
        return {**asdict(self), "within_noise": self.is_noise}


def interval(items: Sequence[Sequence[float]]) -> Interval | None:
    """The mean over all values of all items, and its bootstrap interval over items. None without a value.

    An item may have several values (a question's turns) or none, and then it is left out; the mean is over values, as
    scores count.
    """
    items = [item for item in items if len(item)]
    if not items:
        return None
    sums = np.array([float(np.sum(item)) for item in items])
    counts = np.array([len(item) for item in items], float)
    means = np.concatenate([sums[draw].sum(1) / counts[draw].sum(1) for draw in _draws(len(sums))])
    low, high = _limits(means)
    return Interval(float(sums.sum() / counts.sum()), low, high)


def share(items: Sequence[Sequence[float]], whole: float = 1.0) -> Interval | None:
    """As `interval`, of values from 0 to `whole`; Wilson's where the items hold fewer than five wins or losses."""
    found = interval(items)
    if found is None:
        return None
    count, part = sum(len(item) > 0 for item in items), found.mean / whole
    if not is_few(part, count):
        return found
    low, high = wilson(part, count)
    return replace(found, low=whole * low, high=whole * high)


def is_few(part: float, count: int) -> bool:
    """Whether so many items with this mean, from 0 to 1, are too few wins or losses for a bootstrap."""
    return count * min(part, 1 - part) < _FEW


def wilson(part: float, count: int) -> tuple[float, float]:
    """Wilson's score interval of a share that was seen on so many items.

    >>> [round(limit, 3) for limit in (*wilson(0.0, 2), *wilson(0.5, 10))]
    [0.0, 0.658, 0.237, 0.763]
    """
    part = min(max(part, 0.0), 1.0)
    ratio = _Z**2 / count
    middle = (part + ratio / 2) / (1 + ratio)
    half = (ratio * part * (1 - part) + ratio**2 / 4) ** 0.5 / (1 + ratio)
    # What was seen is inside, and 0 of n begins at 0, to the last digit.
    return max(0.0, min(middle - half, part)), min(1.0, max(middle + half, part))


def compare(first: Sequence[Sequence[float]], second: Sequence[Sequence[float]]) -> Comparison | None:
    """Compare two models whose values are given item by item, in the same order. None where they share no item.

    An item counts where both have a value; its difference is that of its means.
    """
    pairs = [(np.mean(a), np.mean(b)) for a, b in zip(first, second, strict=True) if len(a) and len(b)]
    if not pairs:
        return None
    differences = np.array([a - b for a, b in pairs], float)
    means = np.concatenate([differences[draw].mean(1) for draw in _draws(len(differences))])
    low, high = _limits(means)
    if np.ptp(differences) == 0 and differences[0] != 0:
        # All alike, the bootstrap sees no spread: what is known is how often the sign was that, by Wilson's interval.
        low, high = sorted((float(differences[0]) * (2 * wilson(1.0, len(pairs))[0] - 1), float(differences[0])))
    better, worse = int((differences > 0).sum()), int((differences < 0).sum())
    return Comparison(
        difference=float(differences.mean()),
        low=low,
        high=high,
        p_value=_sign_flips(differences),
        better=better,
        worse=worse,
        mcnemar=mcnemar(better, worse),
        n=len(differences),
    )


def mcnemar(better: int, worse: int) -> float:
    """Exact two-sided p-value of so many discordant items each way: a fair coin's. McNemar 1947."""
    from scipy.stats import binomtest

    return float(binomtest(better, better + worse).pvalue) if better + worse else 1.0


def _sign_flips(differences: np.ndarray) -> float:
    """Two-sided p-value of the mean under random signs; every draw counts, and so does what was seen."""
    random = np.random.default_rng(_SEED)
    seen = abs(differences.sum())
    as_far = 0
    for _ in range(_RESAMPLES // _AT_ONCE):
        signs = random.integers(0, 2, (_AT_ONCE, len(differences))) * 2 - 1
        # Sums of the same numbers in another order may differ in their last digit.
        as_far += int((np.abs(signs @ differences) >= seen * (1 - 1e-12)).sum())
    return (as_far + 1) / (_RESAMPLES + 1)


def _draws(count: int):
    random = np.random.default_rng(_SEED)
    for _ in range(_RESAMPLES // _AT_ONCE):
        yield random.integers(0, count, (_AT_ONCE, count))


def _limits(means: np.ndarray) -> tuple[float, float]:
    tail = 100 * (1 - _LEVEL) / 2
    low, high = np.percentile(means, [tail, 100 - tail])
    return float(low), float(high)
