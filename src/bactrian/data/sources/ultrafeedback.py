r"""Layout `ultrafeedback`: openbmb/UltraFeedback's raw rows, each a prompt with scored answers, most often four.

    {"source": "flan", "instruction": "Add 2 and 3.", "completions": [
        {"response": "5", "overall_score": 9.0, "annotations": {"honesty": {"Rating": "5", …}, …}, …}, …]}

Four aspects are rated from 1 to 5 (or `N/A`): instruction_following, honesty, truthfulness, helpfulness; the overall
score, from 1 to 10, is that of a critique. The layout is that of the README of OpenBMB/UltraFeedback (at fbad89c); the
overall score and its type, text or number, that of src/data_annotation/annotate_critique.py.

A known fault (OpenBMB/UltraFeedback#8): an overall score of 1 was written as 10. The owners' repair of December 2023
(src/data_annotation/fix_overall_score_issue.py at 9e5b078) takes a 10 for a 1 where the aspects' mean is 2 or less,
leaves it where the mean is over 4, and asked GPT-4 again about those between. `tens = "repaired"` does the same, but
leaves the answers between out, since nobody is there to be asked. The ledger counts them either way.

The system prompts under which the answers were written are no part of the record, as in all published binarizations.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

from bactrian.data import binarize
from bactrian.data.binarize import Policy
from bactrian.data.records import Dropped, Message, Noted, Preference
from bactrian.data.sources import fields
from bactrian.data.sources.kinds import UltraFeedback
from bactrian.errors import DataError

ASPECTS = ("instruction_following", "honesty", "truthfulness", "helpfulness")
_POLICIES: dict[str, Policy] = {"huggingfaceh4": "best_random", "cleaned": "best_lower"}
_LAYOUT = "ultrafeedback"


class _Answer(NamedTuple):
    text: str
    score: float


def parse(settings: UltraFeedback, row: dict[str, Any], where: str) -> Iterator[Preference | Dropped | Noted]:
    """The preferences in one row, by the section's policy, and what was left out of it. Raises `DataError`."""
    origin = fields.text(row.get("source") or "", "source", where)
    if origin in settings.left_out:
        yield Dropped("left_out", where)
        return
    instruction = fields.text(fields.required(row, "instruction", _LAYOUT, where), "instruction", where)
    answers = []
    for found in _answers(settings, row, where):
        if isinstance(found, Noted):
            yield found
        else:
            answers.append(found)
    scores = [answer.score for answer in answers]
    policy = _POLICIES.get(settings.policy) or _named(settings.policy)
    for chosen in binarize.choose(scores, policy, settings.min_margin, f"{settings.seed}\n{instruction}"):
        if isinstance(chosen, str):
            yield Dropped(chosen, where)
            continue
        branches = tuple((Message("user", instruction), Message("assistant", answers[index].text)) for index in chosen)
        dataset = f"{settings.name}.{origin}" if origin else settings.name
        yield Preference(branches, where, dataset=dataset, scores=tuple(scores[index] for index in chosen))


def _named(policy: str) -> Policy:
    return next(known for known in binarize.POLICIES if known == policy)


def _answers(settings: UltraFeedback, row: dict[str, Any], where: str) -> Iterator[_Answer | Noted]:
    completions = fields.required(row, "completions", _LAYOUT, where)
    if not isinstance(completions, list):
        raise DataError(f"{where}: completions is {fields.kind(completions)}, not a list; repair or remove the row")
    for number, completion in enumerate(completions):
        name = f"completions[{number}]"
        if not isinstance(completion, dict):
            raise DataError(f"{where}: {name} is {fields.kind(completion)}, not an object; repair or remove the row")
        text = fields.text(completion.get("response"), f"{name}.response", where)
        mean = _mean_of_aspects(completion, name, where)
        score = mean if settings.scores == "mean_of_aspects" else _overall(completion, name, where)
        if score == 10 and settings.scores == "overall":
            doubt = _doubt(mean)
            if doubt != "none":
                yield Noted(f"ten_{doubt}_{settings.tens}", where)
            if settings.tens == "repaired" and doubt != "none":
                score = 1.0 if doubt == "wrong" else None
        if score is None:
            yield Noted("answer_without_score", where)
        else:
            yield _Answer(text, score)


def _doubt(mean: float | None) -> str:
    """What to think of an overall score of 10 beside the mean of the aspects: `none`, `doubtful` or `wrong`."""
    if mean is None or mean > 4:
        return "none"
    return "wrong" if mean <= 2 else "doubtful"


def _overall(completion: dict[str, Any], name: str, where: str) -> float | None:
    value = completion.get("overall_score")
    return None if value is None or value == "N/A" else fields.number(value, f"{name}.overall_score", where)


def _mean_of_aspects(completion: dict[str, Any], name: str, where: str) -> float | None:
    annotations = completion.get("annotations") or {}
    if not isinstance(annotations, dict):
        raise DataError(f"{where}: {name}.annotations is {fields.kind(annotations)}, not an object; repair the row")
    ratings = []
    for aspect in ASPECTS:
        rated = annotations.get(aspect)
        rating = rated.get("Rating") if isinstance(rated, dict) else None
        if rating is not None and rating != "N/A":
            ratings.append(fields.number(rating, f"{name}.annotations.{aspect}.Rating", where))
    return sum(ratings) / len(ratings) if ratings else None
