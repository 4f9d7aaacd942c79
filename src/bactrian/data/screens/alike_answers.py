"""Screen `alike_answers`: preferences whose answers cannot be told apart, so that neither is the better one.

identical_answers:       two answers are the same but for case, spaces and punctuation
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
    # An answer without letters and digits (`+`, say) is compared as it stands.
    said = [branch[-1].content for branch in record.branches]
    answers = [words.split(answer) or [answer.strip()] for answer in said]
    pairs = list(itertools.combinations(range(len(answers)), 2))
    if any(answers[i] == answers[j] for i, j in pairs):
        return "identical_answers"
    runs = [words.shingles(answer, _RUN) for answer in answers]
    return (
        "near_identical_answers" if any(_jaccard(runs[i], runs[j]) >= settings.similarity for i, j in pairs) else None
    )


def _jaccard(one: set[str], other: set[str]) -> float:
    return len(one & other) / len(one | other)
