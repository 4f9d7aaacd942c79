"""Laws: who is compared with whom follows from the scores and the policy; chance follows from the key alone."""

import itertools
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bactrian.data import binarize
from bactrian.data.binarize import Policy


def chosen(scores: list[float], policy: Policy, margin: float = 0.0, key: str = "k") -> list:
    return list(binarize.choose(scores, policy, margin, key))


def test_the_best_with_the_worst():
    assert chosen([3, 9, 1, 5], "best_worst") == [(1, 2)]
    assert chosen([3, 9, 9, 3], "best_worst") == [(1, 3)]
    assert chosen([3, 5], "best_worst", 2) == [(1, 0)]
    assert chosen([3, 5], "best_worst", 2.5) == ["small_margin"]
    assert chosen([5, 5, 5], "best_worst") == ["tie"]


def test_all_pairs():
    assert sorted(map(str, chosen([3, 9, 3, 5], "all_pairs", 3))) == sorted(
        map(str, [(1, 0), (1, 2), (1, 3), "small_margin", "small_margin", "tie"])
    )


def test_a_ranking_is_strict():
    assert chosen([3, 9, 3, 5], "ranking") == [(1, 3, 0)]
    assert chosen([3, 9, 3, 5], "ranking", 4) == [(1, 3)]
    assert chosen([3, 3], "ranking") == ["tie"]
    assert chosen([3, 4], "ranking", 2) == ["small_margin"]


def test_chance_is_even_and_a_function_of_the_key():
    drawn = [chosen([5, 9, 9, 1], "best_random", key=f"0\nquestion {n}")[0] for n in range(3000)]
    assert drawn == [chosen([5, 9, 9, 1], "best_random", key=f"0\nquestion {n}")[0] for n in range(3000)]
    counts = Counter(drawn)
    assert set(counts) == {(1, 0), (1, 2), (1, 3)}  # an answer as good as the best is one of the others
    assert all(900 < count < 1100 for count in counts.values())
    lower = Counter(chosen([5, 9, 9, 1], "best_lower", key=f"0\nquestion {n}")[0] for n in range(1000))
    assert set(lower) == {(1, 0), (1, 3)}


@pytest.mark.parametrize("policy", binarize.POLICIES)
def test_one_answer_is_compared_with_nothing(policy: Policy):
    assert chosen([7], policy) == chosen([], policy) == ["too_few_answers"]


@given(
    scores=st.lists(st.integers(1, 5).map(float), min_size=2, max_size=6),
    policy=st.sampled_from(binarize.POLICIES),
    margin=st.integers(0, 3).map(float),
)
def test_whatever_the_scores(scores: list[float], policy: Policy, margin: float):
    found = chosen(scores, policy, margin)
    assert len(found) == (len(scores) * (len(scores) - 1) // 2 if policy == "all_pairs" else 1)
    for record in found:
        if isinstance(record, str):
            assert record in ("tie", "small_margin")
            continue
        assert len(set(record)) == len(record) >= 2
        assert policy == "ranking" or len(record) == 2
        if policy != "all_pairs":
            assert scores[record[0]] == max(scores)
        for better, worse in itertools.pairwise(record):
            assert scores[better] - scores[worse] >= margin
            assert scores[better] > scores[worse] or (policy == "best_random" and margin == 0)
