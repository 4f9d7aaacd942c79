"""What of the data is left out, and why: one screen per section of a recipe.

A screen is a callable: a record → the reason why it is dropped, or None. It is made once per build and sees the records
in the build's order; `duplicates` and `near_duplicates` remember what they saw.
"""

import hashlib
from collections.abc import Callable
from functools import partial

from bactrian.data.records import Record
from bactrian.data.screens import (
    alike_answers,
    contamination,
    duplicates,
    evaluation_sets,
    language,
    length,
    substrings,
    turns,
)
from bactrian.data.screens.settings import (
    AlikeAnswers,
    Contamination,
    Duplicates,
    Kinds,
    Language,
    Length,
    NearDuplicates,
    Substrings,
    Turns,
)

Screen = Callable[[Record], str | None]


def check(settings: Kinds) -> str:
    """What a screen needs beside its section is there; equal for two only if that is equal. Raises `InputError`s."""
    match settings:
        case Language():
            language.check_known(settings)
        case Substrings():
            substrings.wanted(settings)
        case Contamination():
            questions = [question for each in settings.against for question in evaluation_sets.read(each)]
            return hashlib.sha256(repr([(*question[:3],) for question in questions]).encode()).hexdigest()
    return ""


def make(settings: Kinds) -> Screen:
    """The screen that a section asks for. Raises `RecipeError`, and `DataError` for an evaluation set's file."""
    match settings:
        case Turns():
            return turns.check
        case Length():
            return partial(length.check, settings)
        case AlikeAnswers():
            return partial(alike_answers.check, settings)
        case Duplicates():
            return duplicates.Exact(settings)
        case NearDuplicates():
            return duplicates.Near(settings)
        case Language():
            return partial(language.check, settings)
        case Substrings():
            return partial(substrings.check, substrings.wanted(settings))
        case Contamination():
            return contamination.Screen(settings)
