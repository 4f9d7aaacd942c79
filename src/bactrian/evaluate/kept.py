"""A responder whose work is on disk as soon as it is done, so that a job that was killed goes on where it was.

Requests are worked off in pieces of fixed size; a piece is a line of responses.jsonl, keyed by all that is in it. A
half-written last line, which a kill leaves, is cut off when the file is opened.
"""

import fcntl
import hashlib
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from bactrian import progress
from bactrian.data.records import Message
from bactrian.errors import RunError
from bactrian.evaluate.protocol import Prompt, Responder, Score, Settings
from bactrian.run import writing

_SCORED_AT_ONCE = 1024
_ANSWERED_AT_ONCE = 128
_SEEDS = 1_000_003  # between the seeds of two pieces, so that their draws differ


class Kept:
    """The same two methods, each piece answered once. `name` says on the progress bar what is going on."""

    def __init__(self, responder: Responder, path: Path):
        self._responder = responder
        self._path = path
        self.name = "answers"
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = path.open("a+b")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RunError(f"{path.parent}: another process is working there; wait for it or stop it") from None
        self._known = self._read()

    def close(self) -> None:
        self._file.close()

    def generate(self, prompts: Sequence[Prompt], settings: Settings) -> list[str]:
        """See `protocol.Generator`; where tokens are drawn, each piece draws with a seed of its own."""

        def answer(piece: Sequence[Any], number: int) -> list[Any]:
            seed = settings.seed if settings.temperature == 0 else (settings.seed + number * _SEEDS) % 2**32
            return self._responder.generate(piece, replace(settings, seed=seed))

        return self._pieces("generate", list(prompts), asdict(settings), _ANSWERED_AT_ONCE, answer)

    def score(self, contexts: Sequence[Prompt], continuations: Sequence[str]) -> list[Score]:
        """See `protocol.Scorer`."""

        def answer(piece: Sequence[Any], number: int) -> list[Any]:
            return [list(score) for score in self._responder.score(*map(list, zip(*piece, strict=True)))]

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
                    self._keep(key, answer(piece, number))
                found += self._known[key]
                bar.to(len(found), len(requests))
        return found

    def _keep(self, key: str, answers: list[Any]) -> None:
        line = json.dumps({"key": key, "answers": answers}, ensure_ascii=False) + "\n"
        with writing(self._path):
            self._file.write(line.encode("utf-8", "surrogatepass"))
            self._file.flush()
            os.fsync(self._file.fileno())
        self._known[key] = answers

    def _read(self) -> dict[str, list[Any]]:
        self._file.seek(0)
        known, whole = {}, 0
        for line in self._file:
            if not line.endswith(b"\n"):
                break
            try:
                row = json.loads(line.decode("utf-8", "surrogatepass"))
                known[row["key"]] = row["answers"]
            except (ValueError, KeyError, TypeError):
                raise RunError(f"{self._path}: not a file of responses; choose another folder with --out") from None
            whole += len(line)
        with writing(self._path):
            self._file.truncate(whole)
        return known


def _key(kind: str, piece: Sequence[Any], settings: dict[str, Any], number: int) -> str:
    content = json.dumps([kind, piece, settings, number], default=_plain, ensure_ascii=False)
    return hashlib.sha256(content.encode("utf-8", "surrogatepass")).hexdigest()


def _plain(value: Any) -> Any:
    if isinstance(value, Message):
        return [value.role, value.content]
    raise TypeError(f"{type(value).__name__} has no key")
