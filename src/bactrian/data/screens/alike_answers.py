"""Screen `alike_answers`: preferences whose answers cannot be told apart, so that neither is the better one.

identical_answers:   two answers are the same but for case, spaces and punctuation
near_identical_answers:  two answers have nearly all runs of three words in common (Jaccard similarity)
"""

import itertools

from bactrian.data.records import Conversation, Record
from bactrian.data.screens import words
from bactrian.data.screens.settings import AlikeAnswers

_RUN = 3


def check(settings: AlikeAnswers, record: Record) -> str | None:
    """Whether any two answers of a preference say the same; a conversation has one answer and passes."""
    if isinstance(record, Conversation):
        return None
    answers = [words.split(branch[-1].content) for branch in record.branches]
    pairs = list(itertools.combinations(range(len(answers)), 2))
    # Answers without a letter or digit (`+` and `-`, say) are compared as they stand.
    if any(answers[i] == answers[j] and (answers[i] or _raw(record, i) == _raw(record, j)) for i, j in pairs):
        return "identical_answers"
    runs = [words.shingles(answer, _RUN) for answer in answers]
    return (
        "near_identical_answers" if any(_jaccard(runs[i], runs[j]) >= settings.similarity for i, j in pairs) else None
    )


def _raw(record: Record, branch: int) -> str:
    return words.conversations(record)[branch][-1].content.strip()


def _jaccard(one: set[str], other: set[str]) -> float:
    together = len(one | other)
    return len(one & other) / together if together else 0.0
