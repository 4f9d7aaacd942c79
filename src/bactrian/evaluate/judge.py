"""Judges that are no address: kept judgments of another run, a model at hand, and a function that rewards answers."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bactrian import children, progress
from bactrian.data.records import Messages
from bactrian.errors import DataError, InputError
from bactrian.evaluate import alpaca_eval, calls, published
from bactrian.evaluate.calls import Call, Failure, Judge, Reply, Store, Usable
from bactrian.evaluate.protocol import Prompt, Responder, Settings

_WHICH = "say with --judge-model whose to take"
_AT_ONCE = 16  # a model's judgments are kept so many at a time


class Replay:
    """Answers from kept judgments, by the text of the prompt and the sample; whatever was not judged then fails."""

    def __init__(self, name: str, replies: calls.Kept):
        self.name = name
        self._replies = replies

    def ask(self, calls: list[Call], usable: Usable) -> list[Reply | Failure]:
        missing = Failure("there is no kept judgment of this")
        return [self._replies.get((call.messages[-1].content, call.sample), missing) for call in calls]


def replay(
    path: Path, template: str | None = None, version: alpaca_eval.Version = 1, judge: str | None = None
) -> Replay:
    """Kept judgments: our calls.jsonl, FastChat's judgments or AlpacaEval's annotations; `judge`, of several judges.

    Annotations hold no prompts; they are filled into the judge's template again. Raises `DataError`.
    """
    rows = published.rows(path)
    where, first = rows[0]
    if "request" in first:
        rows = published.of_one(rows, lambda row: row.get("model"), "judges", judge, _WHICH)
        name = str(rows[0][1].get("model", path.stem))
        return Replay(name, calls.kept([row for _, row in rows], [where for where, _ in rows]))
    if "user_prompt" in first or "g1_user_prompt" in first:
        rows = published.of_one(rows, published.judge_of, "judges", judge, _WHICH)
        replies: calls.Kept = {}
        for _, row in rows:
            for game in ("", "g1_", "g2_"):
                prompt, judgment = row.get(f"{game}user_prompt"), row.get(f"{game}judgment")
                if isinstance(prompt, str) and isinstance(judgment, str):
                    finish = row.get("finish_reason")  # ours has one where there was no verdict
                    replies.setdefault((prompt, 0), Reply(judgment, str(finish or "stop")))
        return Replay(str(published.judge_of(rows[0][1]) or path.stem), replies)
    if "preference" in first and template is not None:
        annotations = alpaca_eval.annotations(published.of_one(rows, published.judge_of, "judges", judge, _WHICH))
        name = str(annotations[0].get("annotator", path.stem))
        return Replay(name, alpaca_eval.kept_replies(annotations, template, version))
    raise DataError(f"{where}: not a kept judgment; give a calls.jsonl, judgments of MT-Bench, or annotations")


class Local:
    """A model at hand as a judge, greedily; its judgments are kept as an address's are, under `kept_as`."""

    def __init__(self, name: str, kept_as: str, model: Responder, store: Store):
        self.name = name
        self._kept_as = kept_as
        self._model = model
        self._store = store

    def ask(self, calls: list[Call], usable: Usable) -> list[Reply | Failure]:
        waiting = {key: call for call in calls if self._store.find(key := call.key(self._kept_as), 0) is None}
        # Alike settings together: one program, one batch.
        order = sorted(waiting.items(), key=lambda item: (item[1].choices, item[1].max_tokens, item[1].temperature))
        with progress.bar("judgments", len(order)) as bar:
            for start in range(0, len(order), _AT_ONCE):
                block = order[start : start + _AT_ONCE]
                for (key, call), reply in zip(block, self._answer([call for _, call in block]), strict=True):
                    self._store.add(key, call, reply, usable(reply), model=self.name)
                bar.to(start + len(block), len(order))
        found = [self._store.find(call.key(self._kept_as), 0) for call in calls]
        return [reply or Failure("the model was not asked", was_asked=False) for reply in found]

    def _answer(self, block: Sequence[Call]) -> list[Reply]:
        replies: list[Reply | None] = [None] * len(block)
        groups: dict[tuple[Any, ...], list[int]] = {}
        for place, call in enumerate(block):
            groups.setdefault((call.choices, call.max_tokens, call.temperature, call.stop), []).append(place)
        for (choices, max_tokens, temperature, stop), places in groups.items():
            prompts: list[Prompt] = [block[place].messages for place in places]
            if choices:
                answered = self._choose(prompts, choices)
            else:
                seed = block[places[0]].sample
                settings = Settings(max_tokens=max_tokens, temperature=temperature, stop=stop, seed=seed)
                answered = [Reply(text) for text in self._model.generate(prompts, settings)]
            for place, reply in zip(places, answered, strict=True):
                replies[place] = reply
        return [reply for reply in replies if reply is not None]

    def _choose(self, prompts: list[Prompt], choices: tuple[str, ...]) -> list[Reply]:
        contexts = [prompt for prompt in prompts for _ in choices]
        scores = self._model.score(contexts, list(choices) * len(prompts))
        found = []
        for place in range(0, len(scores), len(choices)):
            logprobs = {choice: score.logprob for choice, score in zip(choices, scores[place:], strict=False)}
            found.append(Reply(max(logprobs, key=lambda choice: logprobs[choice]), logprobs=logprobs))
        return found


@dataclass(frozen=True)
class Reward:
    """A function that rewards whole conversations: the higher, the better the last answer."""

    name: str
    function: Callable[[list[list[dict[str, str]]]], Sequence[float]]

    def compare(self, first: Sequence[Messages], second: Sequence[Messages]) -> list[float]:
        """The probability that the second conversation ends better, by Bradley and Terry: sigmoid of the difference."""
        rewards = [self._rewards(list(side)) for side in (first, second)]
        return [1 / (1 + math.exp(min(a - b, 700.0))) for a, b in zip(*rewards, strict=True)]

    def _rewards(self, conversations: list[Messages]) -> list[float]:
        given = [[{"role": each.role, "content": each.content} for each in messages] for messages in conversations]
        found = [float(reward) for reward in self.function(given)]
        if len(found) != len(given) or not all(map(math.isfinite, found)):
            raise InputError(
                f"{self.name}: {len(found)} rewards for {len(given)} conversations; it should give a number for each"
            )
        return found


def reward(name: str) -> Reward:
    """The function `module:function`, of a module in the working folder or installed. Raises `InputError`."""
    module, _, function = name.partition(":")
    if not module or not function:
        raise InputError(f"{name!r}: give a reward as reward:MODULE:FUNCTION")
    try:
        found = getattr(children.named_by_user(module), function)
    except (ImportError, AttributeError) as error:
        raise InputError(f"reward:{name}: cannot be loaded ({error}); give a module and a function in it") from None
    if not callable(found):
        raise InputError(f"reward:{name}: not a function")
    return Reward(name, found)  # pyright: ignore[reportArgumentType]


AnyJudge = Judge | Reward
