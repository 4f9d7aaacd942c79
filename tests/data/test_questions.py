"""Laws: each token of each continuation is asked about once, at the place that predicts it."""

import numpy as np
import pytest

from bactrian.data import questions
from bactrian.data.questions import Request


def request(context: list[int], *continuations: list[int]) -> Request:
    return Request(np.array(context, np.int32), tuple(np.array(each, np.int32) for each in continuations))


def test_the_layout_of_a_small_request():
    [(beginning, [rows])] = questions.batches([request([1, 2, 3], [4, 5], [6])], 1024)
    assert not len(beginning)
    assert rows.tokens[0, :5].tolist() == [1, 2, 3, 4, 0]
    assert rows.positions[0, :4].tolist() == [0, 1, 2, 3]
    assert rows.branches[0, :4].tolist() == [0, 0, 0, 1]
    assert rows.segments[0, :5].tolist() == [1, 1, 1, 1, 0]
    assert rows.count == 2
    assert rows.places[:2].tolist() == [2, 3]
    assert rows.targets[:2].tolist() == [[4, 6], [5, 0]]
    assert rows.asked == [(0, 0, 0, 0), (0, 0, 1, 0), (0, 1, 0, 1)]


def test_continuations_that_begin_alike_ask_once_for_their_first_token():
    [(_, [rows])] = questions.batches([request([1, 2], [4, 5], [4, 6, 7])], 1024)
    assert rows.targets[0].tolist() == [4]
    assert [asked[2:] for asked in rows.asked if asked.question == 0] == [(0, 0), (0, 0)]


def many(random: np.random.Generator, count: int) -> list[Request]:
    beginning = random.integers(0, 50, 300).tolist()
    made = []
    for index in range(count):
        context = [*(beginning if index % 2 else []), *random.integers(0, 50, random.integers(1, 90)).tolist()]
        own = {tuple(random.integers(0, 50, random.integers(1, 9)).tolist()) for _ in range(random.integers(1, 6))}
        made.append(request(context, *map(list, sorted(own))))
    return made


@pytest.mark.parametrize("at_once", [512, 10**6])
def test_every_token_is_asked_about_where_its_path_predicts_it(at_once):
    requests = many(np.random.default_rng(0), 40)
    counted: dict[tuple[int, int], int] = {}
    groups = questions.batches(requests, at_once)
    assert any(len(group.beginning) for group in groups) == (at_once == 512)
    for beginning, batch in groups:
        for rows in batch:
            tokens, branches = rows.tokens.ravel(), rows.branches.ravel()
            positions, segments = rows.positions.ravel(), rows.segments.ravel()
            for asked in rows.asked:
                wanted = requests[asked.request]
                path = np.concatenate([wanted.context, wanted.continuations[asked.continuation]])
                place = rows.places[asked.question]
                at = positions[place] + len(beginning)
                assert rows.targets[asked.question, asked.column] == path[at + 1]
                row = slice(place // rows.tokens.shape[1] * rows.tokens.shape[1], place + 1)
                seen = (segments[row] == segments[place]) & ((branches[row] == 0) | (branches[row] == branches[place]))
                assert [*beginning, *tokens[row][seen]] == path[: at + 1].tolist()
                key = (asked.request, asked.continuation)
                counted[key] = counted.get(key, 0) + 1
    lengths = {(i, k): len(own) for i, each in enumerate(requests) for k, own in enumerate(each.continuations)}
    assert counted == lengths


def test_a_request_with_very_many_continuations_takes_several_segments():
    long = [[n % 50, *[1] * 99, n // 50] for n in range(120)]
    found = [rows for _, batch in questions.batches([request([1, 2, 3], *long)], 1024) for rows in batch]
    asked = {(each.request, each.continuation) for rows in found for each in rows.asked}
    assert asked == {(0, number) for number in range(120)}
    assert max(rows.tokens.size for rows in found) <= 2048
