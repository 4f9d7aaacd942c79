"""A responder whose work is on disk as soon as it is done, so that a job that was killed goes on where it was.

Requests are worked off in pieces of fixed size; a piece is a line of responses.jsonl, keyed by all that is in it.
"""

import hashlib
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from bactrian import progress
from bactrian.data.records import Message
from bactrian.errors import DataError
from bactrian.evaluate.journal import Journal, Row
from bactrian.evaluate.protocol import Prompt, Responder, Score, Settings

_SCORED_AT_ONCE = 1024
_ANSWERED_AT_ONCE = 128
_ODD = "a line has fewer or more answers than were asked for; remove it or choose another folder with --out"
_SEEDS = 1_000_003  # between the seeds of two pieces, so that their draws differ


class Kept:
    """The same two methods, each piece answered once. `name` says on the progress bar what is going on."""

    def __init__(self, responder: Responder, path: Path):
        self._responder = responder
        self._known: dict[str, list[Any]] = {}
        self._journal = Journal(path, "responses", self._take)
        self.name = "answers"

    def close(self) -> None:
        self._journal.close()

    def generate(self, prompts: Sequence[Prompt], settings: Settings) -> list[str]:
        """See `protocol.Generator`; where tokens are drawn, each piece draws with a seed of its own."""

        def answer(piece: Sequence[Any], number: int) -> list[Any]:
            seed = settings.seed if settings.temperature == 0 else (settings.seed + number * _SEEDS) % 2**32
            return self._responder.generate(piece, replace(settings, seed=seed))

        return self._pieces("generate", list(prompts), asdict(settings), _ANSWERED_AT_ONCE, answer)

    def score(self, contexts: Sequence[Prompt], continuations: Sequence[str]) -> list[Score]:
        """See `protocol.Scorer`."""

        def answer(piece: Sequence[Any], number: int) -> list[Any]:
            return [_score_row(score) for score in self._responder.score(*map(list, zip(*piece, strict=True)))]

        pairs = list(zip(contexts, continuations, strict=True))
        return [Score(*found) for found in self._pieces("score", pairs, {}, _SCORED_AT_ONCE, answer)]

    def _pieces(
        self, kind: str, requests: list[Any], settings: dict[str, Any], size: int, answer: Callable[..., list[Any]]
    ) -> list[Any]:
        found: list[Any] = []
        with progress.bar(self.name, len(requests)) as bar:
            for number, start in enumerate(range(0, len(requests), size)):
                piece = requests[start : start + size]
                key = _key(kind, piece, settings, number)
                if key not in self._known:
                    self._journal.add({"key": key, "answers": answer(piece, number)})
                if len(self._known[key]) != len(piece):
                    raise DataError(f"{self._journal.path}: {_ODD}")
                found += self._known[key]
                bar.to(len(found), len(requests))
        return found

    def _take(self, row: Row) -> None:
        line = _Line.model_validate(row)
        self._known[line.key] = line.answers


class _Line(BaseModel):
    """A line of responses.jsonl: answers, or log-probabilities with whether each is the likeliest's."""

    key: str
    answers: list[str] | list[tuple[float, bool]]


def _score_row(score: Score) -> list[Any]:
    # JSON has no number for what is not finite; as text it is read again as what it was.
    return [score.logprob if math.isfinite(score.logprob) else str(score.logprob), score.is_greedy]


def _key(kind: str, piece: Sequence[Any], settings: dict[str, Any], number: int) -> str:
    content = json.dumps([kind, piece, settings, number], default=_plain, ensure_ascii=False)
    return hashlib.sha256(content.encode("utf-8", "surrogatepass")).hexdigest()


def _plain(value: Any) -> Any:
    if isinstance(value, Message):
        return [value.role, value.content]
    raise TypeError(f"{type(value).__name__} has no key")
