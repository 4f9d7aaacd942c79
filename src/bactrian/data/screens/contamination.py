"""Screen `contamination`: what shares a run of words with an evaluation set's question, counted by set.

A run is 13 words, case and punctuation aside (Brown et al. 2020, appendix C), and any run of a question will do. Words
are compared in two forms, `don't` as `don t` and as `dont`, so that punctuation may be changed, dropped or added.

Short questions have rules of their own:
- of fewer words than a run: a turn that is the question, and no more, is contaminated; a turn that holds it is too if
  the question has at least 8 words.
- of fewer words than a run, with choices: the choices follow the question, with and without letters before them, and
  a run begins in the question.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from bactrian.data.screens import evaluation_sets, words
from bactrian.data.screens.evaluation_sets import Question
from bactrian.data.screens.settings import Contamination
from bactrian.data.screens.words import Record

_FORMS = (words.split, words.joined)
_TOLD_APART = 8  # words: a shorter text stands in many a turn by chance
_SHOWN = 200  # matches kept to be shown


class Match(NamedTuple):
    """What was found: where in the data, of which question, and the words that both hold."""

    where: str
    set: str
    question: str
    span: str


@dataclass
class Index:
    """Runs of words by length, each as the hash of its words, and the question that it is of."""

    runs: dict[int, dict[int, int]] = field(default_factory=dict)
    whole: dict[int, int] = field(default_factory=dict)
    questions: list[Question] = field(default_factory=list)

    def add(self, question: Question, length: int) -> None:
        number = len(self.questions)
        self.questions.append(question)
        for form in _FORMS:
            asked = form(question.text)
            if len(asked) >= length:
                self._add_runs(_hashes(asked, length), length, number)
                continue
            if not question.choices:
                self._add_short(asked, length, number)
            for variant in _with_choices(question, form) if question.choices else ():
                if len(variant) < length:
                    self._add_short(variant, length, number)
                else:
                    self._add_runs(_hashes(variant, length)[: len(asked)], length, number)

    def _add_short(self, asked: list[str], length: int, number: int) -> None:
        if asked:
            self.whole.setdefault(hash(tuple(asked)), number)
        if _TOLD_APART <= len(asked) < length:
            self._add_runs([hash(tuple(asked))], len(asked), number)

    def _add_runs(self, hashes: Iterable[int], length: int, number: int) -> None:
        runs = self.runs.setdefault(length, {})
        for value in hashes:
            runs.setdefault(value, number)


class Screen:
    """Drops as `contaminated_gsm8k` and the like; `matches` keeps the first of what was found, to be looked at."""

    def __init__(self, settings: Contamination):
        self._index = Index()
        for evaluation in settings.against:
            for question in evaluation_sets.read(evaluation):
                self._index.add(question, settings.words)
        self.matches: list[Match] = []

    def __call__(self, record: Record) -> str | None:
        match = self.find(record)
        if match is None:
            return None
        if len(self.matches) < _SHOWN:
            self.matches.append(match)
        return f"contaminated_{match.set}"

    def find(self, record: Record) -> Match | None:
        """The first overlap of a record with a question."""
        for content in words.contents(record):
            for form in _FORMS:
                found = self._find(form(content))
                if found:
                    question = self._index.questions[found[0]]
                    return Match(record.where, question.set, question.where, " ".join(found[1]))
        return None

    def _find(self, said: list[str]) -> tuple[int, list[str]] | None:
        number = self._index.whole.get(hash(tuple(said))) if said else None
        if number is not None:
            return number, said
        for length, runs in self._index.runs.items():
            hashes = _hashes(said, length)
            if runs.keys().isdisjoint(hashes):
                continue
            at = next(place for place, value in enumerate(hashes) if value in runs)
            number = runs[hashes[at]]
            # As long as it goes on: the next runs are in the same question.
            end = at
            while end < len(hashes) and runs.get(hashes[end]) == number:
                end += 1
            return number, said[at : end - 1 + length]
        return None


def _hashes(said: Sequence[str], length: int) -> list[int]:
    """A hash for each run of `length` words, in order."""
    return list(map(hash, zip(*(said[at:] for at in range(length)), strict=False)))


def _with_choices(question: Question, form) -> list[list[str]]:
    asked, choices = form(question.text), [form(choice) for choice in question.choices]
    plain = [word for choice in choices for word in choice]
    lettered = [word for letter, choice in zip("abcdefghij", choices, strict=False) for word in (letter, *choice)]
    return [asked + plain, asked + lettered]
