"""Laws: groups hold every sequence once; what a group shares is common to it, and never all of a sequence."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from bactrian.data import sharing
from bactrian.data.sharing import Group


def sequences_of(*texts: str) -> list[np.ndarray]:
    return [np.array([ord(letter) for letter in text], np.int32) for text in texts]


def cost(groups: list[Group], sequences: list[np.ndarray], overhead: int) -> int:
    read = sum(group.shared + sum(len(sequences[m]) - group.shared for m in group.members) for group in groups)
    return read + overhead * sum(group.shared > 0 for group in groups)


def test_a_long_beginning_is_read_once():
    beginning = "x" * 100
    sequences = sequences_of(f"{beginning}a", "other", f"{beginning}bc", f"{beginning}a")
    assert sharing.groups(sequences, 50) == [Group(100, [0, 2, 3]), Group(0, [1])]


def test_what_saves_less_than_a_group_costs_is_not_shared():
    sequences = sequences_of(*("x" * 30 + letter for letter in "abc"))
    assert sharing.groups(sequences, 59) == [Group(30, [0, 1, 2])]
    assert sharing.groups(sequences, 60) == [Group(0, [0, 1, 2])]


def test_a_beginning_within_a_beginning_gets_its_own_group_where_that_pays():
    outer, inner = "x" * 40, "y" * 40
    few = [outer + letter for letter in "abcdef"]
    many = [outer + inner + letter for letter in "abcdef"]
    groups = sharing.groups(sequences_of(*few, *many), 10)
    assert sorted(groups) == [Group(40, list(range(6))), Group(80, list(range(6, 12)))]
    assert sharing.groups(sequences_of(*few, *many), 10_000) == [Group(0, list(range(12)))]


def test_equal_sequences_keep_their_last_token():
    groups = sharing.groups(sequences_of(*["x" * 50] * 4), 5)
    assert groups == [Group(49, [0, 1, 2, 3])]


def test_nothing_and_one():
    assert sharing.groups([], 10) == []
    assert sharing.groups(sequences_of("abc"), 10) == [Group(0, [0])]


@settings(deadline=None, max_examples=80)
@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2), st.text("ab", min_size=1, max_size=6)), max_size=24))
def test_every_sequence_is_in_one_group_and_sharing_never_costs_more(parts):
    sequences = sequences_of(*("x" * 20 * a + "y" * 20 * b + rest for a, b, rest in parts))
    for overhead in (0, 30):
        groups = sharing.groups(sequences, overhead)
        assert sorted(member for group in groups for member in group.members) == list(range(len(sequences)))
        for shared, members in groups:
            first = sequences[members[0]][:shared]
            assert all(np.array_equal(sequences[m][:shared], first) and len(sequences[m]) > shared for m in members)
        assert cost(groups, sequences, overhead) <= sum(map(len, sequences))
