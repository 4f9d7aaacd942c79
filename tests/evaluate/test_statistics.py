"""Intervals cover, comparisons see what is there and only that, McNemar is the coin's."""

import numpy as np
import pytest
from scipy.stats import binomtest, sem, ttest_rel

from bactrian.evaluate import statistics


def test_an_interval_is_that_of_the_standard_error():
    values = np.random.default_rng(1).normal(5, 2, 400)
    found = statistics.interval([[value] for value in values])
    assert found is not None and found.mean == pytest.approx(values.mean(), abs=1e-12)
    assert (found.high - found.low) / 2 == pytest.approx(1.96 * sem(values), rel=0.05)


def test_turns_of_a_question_go_together():
    # Two equal turns say no more than one.
    values = np.random.default_rng(2).integers(1, 11, 80).astype(float)
    once = statistics.interval([[value] for value in values])
    twice = statistics.interval([[value, value] for value in values])
    assert once == twice


def test_an_interval_covers_as_often_as_it_says():
    random = np.random.default_rng(3)
    covered = 0
    for _ in range(60):
        found = statistics.interval([[value] for value in random.random(60) < 0.7])
        covered += found is not None and found.low <= 0.7 <= found.high
    assert covered >= 51, "95 % of 60 is 57; below 51 would be chance once in ten thousand times"


def test_a_comparison_is_paired():
    random = np.random.default_rng(4)
    base = random.normal(0, 5, 80)
    better = base + 0.5 + random.normal(0, 0.5, 80)
    found = statistics.compare([[value] for value in better], [[value] for value in base])
    assert found is not None and not found.is_noise
    assert found.p_value < 0.001 and found.difference == pytest.approx(0.5, abs=0.2)
    shuffled = statistics.compare([[value] for value in better], [[value] for value in random.permutation(base)])
    assert shuffled is not None and shuffled.is_noise


def test_its_p_value_is_near_that_of_the_paired_t_test():
    random = np.random.default_rng(5)
    first, second = random.normal(0, 1, 100), random.normal(0.25, 1, 100)
    found = statistics.compare([[value] for value in first], [[value] for value in second])
    assert found is not None and found.p_value == pytest.approx(ttest_rel(first, second).pvalue, abs=0.02)


def test_an_item_counts_where_both_have_a_value():
    found = statistics.compare([[1.0], [], [2.0], [3.0, 5.0]], [[0.0], [9.0], [], [1.0]])
    assert found is not None and (found.n, found.difference) == (2, 2.0)
    assert statistics.compare([[], [1.0]], [[1.0], []]) is None
    assert statistics.interval([[], []]) is None


def test_mcnemar_is_a_fair_coin():
    assert statistics.mcnemar(0, 0) == 1.0
    assert statistics.mcnemar(5, 0) == pytest.approx(2 / 32)
    assert statistics.mcnemar(7, 3) == statistics.mcnemar(3, 7) == pytest.approx(0.34375)


def test_a_share_of_few_has_wilsons_interval():
    found = statistics.share([[0.0], [0.0]])
    assert found is not None and (found.mean, found.low) == (0.0, 0.0) and found.high == pytest.approx(0.6576, abs=1e-4)
    found = statistics.share([[100.0]] * 3, 100)
    assert found is not None and (found.low, found.high) == (pytest.approx(43.85, abs=0.01), 100.0)
    for wins, count in ((1, 8), (4, 805), (801, 805)):
        found = statistics.share([[1.0]] * wins + [[0.0]] * (count - wins))
        theirs = binomtest(wins, count).proportion_ci(method="wilson")
        assert found is not None and (found.low, found.high) == (pytest.approx(theirs.low), pytest.approx(theirs.high))
    assert statistics.share([[], []]) is None


def test_a_share_of_many_has_the_bootstraps():
    items = [[float(n % 3 == 0)] for n in range(60)]
    assert statistics.share(items) == statistics.interval(items)


def test_a_difference_that_is_always_the_same_says_more_with_more_items():
    few = statistics.compare([[1.0]] * 2, [[0.0]] * 2)
    assert few is not None and (few.difference, few.high) == (1.0, 1.0) and few.is_noise
    many = statistics.compare([[0.0]] * 20, [[1.0]] * 20)
    assert many is not None and (many.difference, many.low) == (-1.0, -1.0) and -0.7 < many.high < -0.6
    same = statistics.compare([[1.0], [0.0]], [[1.0], [0.0]])
    assert same is not None and (same.difference, same.low, same.high) == (0, 0, 0)
