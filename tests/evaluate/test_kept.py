"""Laws: nothing is asked twice, also after a kill; what is kept belongs to what was asked."""

import json
from collections.abc import Sequence
from dataclasses import replace

import pytest

from bactrian.data.records import Message
from bactrian.errors import DataError, RunError
from bactrian.evaluate import kept
from bactrian.evaluate.kept import Kept
from bactrian.evaluate.protocol import Prompt, Score, Settings


class Counting:
    """Answers with what it was asked, and counts; stops after so many calls if told to."""

    def __init__(self, stop_after: int | None = None):
        self.calls: list[tuple] = []
        self.stop_after = stop_after

    def _count(self, *call) -> None:
        if self.stop_after is not None and len(self.calls) == self.stop_after:
            raise KeyboardInterrupt
        self.calls.append(call)

    def generate(self, prompts: Sequence[Prompt], settings: Settings) -> list[str]:
        self._count(tuple(prompts), settings.seed)
        return [f"{prompt} {settings.seed}" for prompt in prompts]

    def score(self, contexts: Sequence[Prompt], continuations: Sequence[str]) -> list[Score]:
        self._count(tuple(contexts))
        pairs = zip(contexts, continuations, strict=True)
        return [Score(-float(len(str(context)) + len(each)), False) for context, each in pairs]


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch):
    monkeypatch.setattr(kept, "_ANSWERED_AT_ONCE", 2)
    monkeypatch.setattr(kept, "_SCORED_AT_ONCE", 3)


PROMPTS = ["a", "b", (Message("user", "c"),), "d \ud800", "e"]
DRAWN = Settings(temperature=1.0, seed=7)


def ask(responder: Counting, path, settings: Settings = DRAWN):
    wrapped = Kept(responder, path)
    try:
        return wrapped.generate(PROMPTS, settings), wrapped.score(PROMPTS, list("vwxyz"))
    finally:
        wrapped.close()


def test_nothing_is_asked_twice(tmp_path):
    first, again = Counting(), Counting()
    assert ask(first, tmp_path / "r.jsonl") == ask(again, tmp_path / "r.jsonl")
    assert len(first.calls) == 3 + 2 and again.calls == []


@pytest.mark.parametrize("calls", range(5))
def test_a_killed_job_goes_on_to_the_same_result(tmp_path, calls):
    expected = ask(Counting(), tmp_path / "whole.jsonl")
    path = tmp_path / "cut.jsonl"
    with pytest.raises(KeyboardInterrupt):
        ask(Counting(stop_after=calls), path)
    with path.open("ab") as file:
        file.write(b'{"key": "half')
    rest = Counting()
    assert ask(rest, path) == expected
    assert len(rest.calls) == 5 - calls
    assert path.read_bytes() == (tmp_path / "whole.jsonl").read_bytes()


def test_other_settings_are_other_answers(tmp_path):
    ask(Counting(), tmp_path / "r.jsonl")
    other = Counting()
    ask(other, tmp_path / "r.jsonl", replace(DRAWN, seed=8))
    assert len(other.calls) == 3


def test_pieces_that_are_drawn_have_seeds_of_their_own(tmp_path):
    drawn, greedy = Counting(), Counting()
    ask(drawn, tmp_path / "r.jsonl")
    assert len({call[1] for call in drawn.calls[:3]}) == 3
    ask(greedy, tmp_path / "r.jsonl", Settings(seed=7))
    assert {call[1] for call in greedy.calls if len(call) == 2} == {7}


def test_two_processes_do_not_share_a_folder(tmp_path):
    first = Kept(Counting(), tmp_path / "r.jsonl")
    with pytest.raises(RunError, match="another process is working there"):
        Kept(Counting(), tmp_path / "r.jsonl")
    first.close()


def test_another_file_is_refused(tmp_path):
    (tmp_path / "r.jsonl").write_text('{"question": "what is this?"}\n')
    with pytest.raises(DataError, match=r"r.jsonl:1: not a line of responses"):
        Kept(Counting(), tmp_path / "r.jsonl")


@pytest.mark.parametrize(
    "line",
    ["5", '{"key": "k", "answers": 5}', '{"key": "k", "answers": [5]}', '{"key": 5, "answers": []}', "[" * 100_000],
)
def test_odd_lines_are_refused(tmp_path, line):
    (tmp_path / "r.jsonl").write_text(line + "\n")
    with pytest.raises(DataError, match=r"r.jsonl:1: not a line of responses"):
        Kept(Counting(), tmp_path / "r.jsonl")


def test_a_line_with_too_few_answers_is_refused(tmp_path):
    ask(Counting(), tmp_path / "r.jsonl")
    lines = [json.loads(line) for line in (tmp_path / "r.jsonl").read_text().splitlines()]
    lines[0]["answers"] = lines[0]["answers"][:1]
    (tmp_path / "r.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(DataError, match="fewer or more answers"):
        ask(Counting(), tmp_path / "r.jsonl")


def test_a_score_that_is_not_finite_is_kept_as_what_it_is(tmp_path):
    class Impossible(Counting):
        def score(self, contexts, continuations):
            return [Score(float("-inf"), False) for _ in contexts]

    for responder in (Impossible(), Counting()):
        assert ask(responder, tmp_path / "r.jsonl")[1] == [Score(float("-inf"), False)] * 5
    assert "Infinity" not in (tmp_path / "r.jsonl").read_text()
