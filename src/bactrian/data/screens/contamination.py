"""Screen `contamination`: what shares a run of words with an evaluation set's question, counted by set.

A run is 13 words, case and punctuation aside (Brown et al. 2020, appendix C), and any run of a question will do. Words
are compared in two forms, `don't` as `don t` and as `dont`, so that punctuation may be changed, dropped or added.

Questions of fewer words than a run have rules of their own:
- a turn that is the question, and no more, is contaminated if the question has at least 5 words; a turn that holds it
  among others is if the question has at least 8;
- where there are choices they are read with the question, with and without letters before them, and a run begins in
  the question.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from bactrian.data.records import Record
from bactrian.data.screens import evaluation_sets, words
from bactrian.data.screens.evaluation_sets import Question
from bactrian.data.screens.settings import Contamination

_HEAD = 8  # words: a text that is shorter stands in many a turn by chance
_SHORTEST = 5  # words: a whole turn that is shorter is said by many
_FORMS: tuple[Callable[[str], list[str]], ...] = (words.split, words.joined)


class Match(NamedTuple):
    """What was found: the evaluation set, the row of its question, and the words that both hold."""

    set: str
    question: str
    span: str


@dataclass
class _Index:
    """Runs of words, each as the hash of its words, with the number of the question that it is of.

    heads: the first words of every run; what holds none of them holds no run. runs: by length. whole: short questions.
    """

    questions: list[Question] = field(default_factory=list)
    heads: set[int] = field(default_factory=set)
    runs: dict[int, dict[int, int]] = field(default_factory=dict)
    whole: dict[int, int] = field(default_factory=dict)

    def add(self, question: Question, length: int) -> None:
        self.questions.append(question)
        for form in _FORMS:
            asked = form(question.text)
            if len(asked) >= length:
                self._add_runs(asked, length, len(asked))
            elif question.choices:
                for variant in _with_choices(asked, [form(choice) for choice in question.choices]):
                    self._add_runs(variant, min(length, len(variant)), len(asked))
            else:
                self._add_runs(asked, len(asked), 1)

    def _add_runs(self, text: list[str], length: int, begins: int) -> None:
        """The runs of a text, those that begin in its first `begins` words."""
        number = len(self.questions) - 1
        if len(text) == length and length >= _SHORTEST:
            self.whole.setdefault(hash(tuple(text)), number)
        if length < _HEAD:
            return
        runs = self.runs.setdefault(length, {})
        for place, value in enumerate(_hashes(text, length)[:begins]):
            runs.setdefault(value, number)
            self.heads.add(hash(tuple(text[place : place + _HEAD])))


class Screen:
    """Drops a record as `contaminated_gsm8k` and the like; `find` says what was found."""

    def __init__(self, settings: Contamination):
        self._index = _Index()
        for evaluation in settings.against:
            for question in evaluation_sets.read(evaluation):
                self._index.add(question, settings.words)

    def __call__(self, record: Record) -> str | None:
        match = self.find(record)
        return None if match is None else f"contaminated_{match.set}"

    def find(self, record: Record) -> Match | None:
        """The first overlap of a record with a question."""
        for content in words.contents(record):
            for said in _forms(content):
                found = self._find(said)
                if found:
                    question = self._index.questions[found[0]]
                    return Match(question.set, question.where, " ".join(found[1]))
        return None

    def _find(self, said: list[str]) -> tuple[int, list[str]] | None:
        number = self._index.whole.get(hash(tuple(said)))
        if number is not None:
            return number, said
        heads = _hashes(said, _HEAD)
        if self._index.heads.isdisjoint(heads):
            return None
        for place in (place for place, value in enumerate(heads) if value in self._index.heads):
            for length, runs in self._index.runs.items():
                number = runs.get(hash(tuple(said[place : place + length])))
                if number is not None:
                    return number, said[place : self._end(said, place, length, number)]
        return None

    def _end(self, said: list[str], place: int, length: int, number: int) -> int:
        """Where the overlap ends: it goes on as long as the next run is one of the same question."""
        runs = self._index.runs[length]
        while place + length < len(said) and runs.get(hash(tuple(said[place + 1 : place + 1 + length]))) == number:
            place += 1
        return place + length


def _forms(content: str) -> Iterable[list[str]]:
    first, second = (form(content) for form in _FORMS)
    return (first,) if first == second else (first, second)


def _hashes(said: Sequence[str], length: int) -> list[int]:
    """A hash for each run of `length` words, in order."""
    return list(map(hash, zip(*(said[at:] for at in range(length)), strict=False)))


def _with_choices(asked: list[str], choices: list[list[str]]) -> list[list[str]]:
    plain = [word for choice in choices for word in choice]
    lettered = [word for letter, choice in zip("abcdefghij", choices, strict=False) for word in (letter, *choice)]
    return [asked + plain, asked + lettered]
