"""What every benchmark has: a name, settings, data to read, and graded items that make a score."""

import string
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from bactrian.data.records import Message
from bactrian.evaluate import statistics
from bactrian.evaluate.protocol import Prompt, Responder
from bactrian.evaluate.statistics import Interval

SEED = 42  # of every draw of items in open-instruct
_RESAMPLES, _AT_ONCE = 10_000, 500


@dataclass(frozen=True)
class Graded:
    """One item: what was asked and said, and what that is worth, from 0 to 1. Items of a group are averaged first."""

    id: str
    group: str
    asked: str
    said: str
    taken: str
    wanted: str
    value: float

    def as_row(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Benchmark:
    """How a benchmark is asked and scored.

    read: (where from) → data. run: (responder, clip, data) → graded items; `clip` cuts a text after so many tokens.
    macro: whether the score is the mean of the groups' means, or of all items.
    """

    name: str
    title: str
    metric: str
    settings: dict[str, Any]
    read: Callable[..., Any]
    run: Callable[..., list[Graded]]
    macro: bool = False
    needs_code: bool = field(default=False)


Clip = Callable[[str, int], str]


def asked(question: str, begun: str = "") -> Prompt:
    """A user's question, and how the answer to it begins."""
    turns = (Message("user", question),)
    return (*turns, Message("assistant", begun)) if begun else turns


def shown(prompt: Prompt) -> str:
    """A prompt as a person reads it."""
    if isinstance(prompt, str):
        return prompt
    return "\n".join(f"[{message.role}] {message.content}" for message in prompt)


def plain(text: str) -> str:
    """Without case and punctuation, as `exact_match` of the `evaluate` library compares when both are ignored."""
    return text.lower().translate(str.maketrans("", "", string.punctuation))


def score(items: Sequence[Graded], macro: bool) -> tuple[Interval, dict[str, float]]:
    """The score in percent with its bootstrap interval over items (within groups if `macro`), and the groups' means.

    Where a group's items are all alike, or there are few wins or losses in all, the bootstrap sees less than there is:
    then the interval is Wilson's, of groups as Zou and Donner 2008 combine them.
    """
    groups: dict[str, list[float]] = {}
    for item in items:
        groups.setdefault(item.group, []).append(100 * item.value)
    means = {name: float(np.mean(values)) for name, values in groups.items()}
    kept = [np.array(values) for values in groups.values()]
    kept = kept if macro else [np.concatenate(kept)]
    random = np.random.default_rng(0)
    drawn = np.zeros(_RESAMPLES)
    for values in kept:
        for start in range(0, _RESAMPLES, _AT_ONCE):
            picks = random.integers(0, len(values), (_AT_ONCE, len(values)))
            drawn[start : start + _AT_ONCE] += values[picks].mean(1) / len(kept)
    low, high = np.percentile(drawn, [2.5, 97.5])
    mean = float(np.mean([values.mean() for values in kept]))
    if statistics.is_few(mean / 100, len(items)) or any(np.ptp(values) == 0 for values in kept):
        low, high = _wilson(kept, mean)
    return Interval(mean, float(low), float(high)), means


def _wilson(groups: Sequence[np.ndarray], mean: float) -> tuple[float, float]:
    """The limits of a mean of groups' means: the squares of the distances to each one's own limits add up."""
    shares = [float(values.mean()) / 100 for values in groups]
    limits = [statistics.wilson(share, len(values)) for share, values in zip(shares, groups, strict=True)]
    below, above = (
        100 / len(groups) * sum((share - limit[side]) ** 2 for share, limit in zip(shares, limits, strict=True)) ** 0.5
        for side in (0, 1)
    )
    return max(0.0, mean - below), min(100.0, mean + above)


def answers(responder: Responder, prompts: Sequence[Prompt], settings: Any) -> list[str]:
    """The responder's answers; none is asked for where there is no prompt."""
    return responder.generate(prompts, settings) if prompts else []
