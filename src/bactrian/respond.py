"""Our engine behind the two methods that evaluations are handed: text and conversations in, answers and scores out.

The template contract holds: a conversation becomes the ids that training sees and serving sends. A conversation that
ends in an assistant's turn is not answered but continued there.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np

from bactrian import progress
from bactrian.assistant import Assistant, ChatFormat
from bactrian.data import continuation as texts
from bactrian.data.chat import Chat
from bactrian.data.questions import Request
from bactrian.data.tokenizer import Tokenizer
from bactrian.errors import InputError
from bactrian.evaluate.protocol import Prompt, Score, Settings
from bactrian.inference import engine as engines
from bactrian.inference.engine import Engine
from bactrian.model.llama import Dtype
from bactrian.scorer import Scorer


class _Opened(NamedTuple):
    """A prompt whose last text is still open: that text, and the ids of the prompt with another one in its place."""

    end: str
    encode: Callable[[str], np.ndarray]


class _Path(NamedTuple):
    """Tokens to read and tokens to score after them, int32 each, and whether the context lost its beginning."""

    context: np.ndarray
    continuation: np.ndarray
    is_cut: bool


@dataclass(frozen=True)
class Respondent:
    """A model that answers and scores; its weights are read when they are first needed.

    Prompts are text, continued as it stands after what the tokenizer itself puts in front, or conversations.
    """

    assistant: Assistant
    format: ChatFormat
    dtype: Dtype = "float32"

    def generate(self, prompts: Sequence[Prompt], settings: Settings) -> list[str]:
        """See `protocol.Generator`. A prompt that leaves no room for its answer loses its beginning, and is told of."""
        room = self.assistant.config.max_positions - settings.max_tokens
        if room < 1:
            raise InputError(
                f"max_tokens is {settings.max_tokens}, and the model has {self.assistant.config.max_positions} "
                f"positions; lower max_tokens"
            )
        ids = [self.ids(prompt) for prompt in prompts]
        self._tell_of_cuts(sum(len(each) > room for each in ids), f"{room} tokens beside its answer")
        sampling = engines.Settings(
            max_tokens=settings.max_tokens,
            temperature=settings.temperature,
            top_k=settings.top_k,
            top_p=settings.top_p,
            stop_ids=self.stop_ids,
            seed=settings.seed,
        )
        asked = [each[-room:] for each in ids]
        ended = _Stops(self.assistant.tokenizer, asked, settings.stop) if settings.stop else None
        answers = zip(asked, self._engine.generate(asked, sampling, ended), strict=True)
        said = [texts.after(self.assistant.tokenizer, prompt, answer.tokens) for prompt, answer in answers]
        return [_until(text, settings.stop) for text in said]

    def score(self, contexts: Sequence[Prompt], continuations: Sequence[str]) -> list[Score]:
        """See `protocol.Scorer`.

        A continuation is cut into tokens together with its context, whose trailing spaces count as its own, as lm-eval
        does. After an empty text comes the token that begins a document; a continuation of it that is longer than
        the model's positions is scored in windows, each token once. Any other context too long loses its beginning.
        """
        opened: dict[Prompt, tuple[_Opened, np.ndarray]] = {}
        paths: list[list[_Path]] = []
        for context, continuation in zip(contexts, continuations, strict=True):
            if context not in opened:
                before = self._open(context)
                opened[context] = before, before.encode(before.end.rstrip())
            paths.append(self._paths(context, *opened[context], continuation))
        positions = self.assistant.config.max_positions
        cut = sum(path.is_cut for each in paths for path in each)
        self._tell_of_cuts(cut, f"{positions} tokens with its continuation")
        requests, where = _gather(paths)
        found = self._scorer.score(requests)
        scores = []
        for places in where:
            each = [found[request][number] for request, number in places]
            scores.append(Score(sum(one.logprob for one in each), all(one.is_greedy for one in each)))
        return scores

    def ids(self, prompt: Prompt) -> np.ndarray:
        """The token ids that a prompt stands for, int32 [N]."""
        opened = self._open(prompt)
        return opened.encode(opened.end)

    def text(self, prompt: Prompt) -> str:
        """How a prompt reads with its special tokens written out."""
        return self.assistant.tokenizer.decode(self.ids(prompt), skip_special=False)

    def clip(self, text: str, tokens: int) -> str:
        """As much of a text as its first tokens hold."""
        tokenizer = self.assistant.tokenizer
        ids = tokenizer.encode_text(text, add_bos=False)
        return text if len(ids) <= tokens else tokenizer.decode(ids[:tokens])

    @cached_property
    def stop_ids(self) -> tuple[int, ...]:
        """Tokens that end an answer, also where a text is continued."""
        try:
            return self._chat.stop_ids
        except InputError:  # no chat template: a base model
            return self.assistant.tokenizer.stop_ids

    @cached_property
    def _chat(self) -> Chat:
        return self.assistant.chat(self.format)

    @cached_property
    def _engine(self) -> Engine:
        return self.assistant.engine(self.dtype)

    @cached_property
    def _scorer(self) -> Scorer:
        return Scorer(self.assistant.config, self.assistant.parameters(self.dtype), dtype=self.dtype)

    def _open(self, prompt: Prompt) -> _Opened:
        tokenizer = self.assistant.tokenizer
        if isinstance(prompt, str):
            return _Opened(prompt, lambda end: tokenizer.encode_text(end, add_bos=True))
        is_begun = bool(prompt) and prompt[-1].role == "assistant"
        pieces = self._chat.prompt_pieces(prompt[:-1] if is_begun else prompt)
        last = pieces.pop() if isinstance(pieces[-1], str) else ""
        end = f"{last}{prompt[-1].content if is_begun else ''}"
        return _Opened(end, lambda end: self._chat.encode([*pieces, end] if end else pieces))

    def _paths(self, context: Prompt, opened: _Opened, ids: np.ndarray, continuation: str) -> list[_Path]:
        """What is to be read to score a continuation: one path, or windows over a whole document."""
        positions = self.assistant.config.max_positions
        if context == "":
            own = self.assistant.tokenizer.encode_text(continuation, add_bos=False)
            return _windows(self._begins_document, own, positions)
        own = opened.encode(opened.end + continuation)[len(ids) :]
        if len(own) > positions:
            raise InputError(
                f"a continuation of {len(own)} tokens cannot be scored: the model has {positions} positions; shorten it"
            )
        ids = ids if len(ids) else self._begins_document
        room = positions + 1 - len(own)
        return [_Path(ids[-room:], own, len(ids) > room)] if len(own) else []

    @cached_property
    def _begins_document(self) -> np.ndarray:
        tokenizer = self.assistant.tokenizer
        return np.array([tokenizer.eos_id if tokenizer.bos_id is None else tokenizer.bos_id], np.int32)

    def _tell_of_cuts(self, count: int, room: str) -> None:
        if count:
            progress.say(f"warning: {count} prompts lost their beginning: the model has room for {room}")


class _Stops:
    """Whether an answer holds one of the stops, asked again as it grows; what was looked at is not decoded again."""

    def __init__(self, tokenizer: Tokenizer, prompts: Sequence[np.ndarray], stop: tuple[str, ...]):
        self._texts = [texts.Continuation(tokenizer, prompt) for prompt in prompts]
        self._seen = [0] * len(prompts)  # tokens
        self._ends = [""] * len(prompts)  # of the texts: a stop may begin there
        self._stop = stop

    def __call__(self, index: int, tokens: np.ndarray) -> bool:
        growing = self._texts[index]
        text = self._ends[index] + "".join(map(growing.add, tokens[self._seen[index] :].tolist()))
        self._seen[index] = len(tokens)
        self._ends[index] = text[max(0, len(text) - max(map(len, self._stop)) + 1) :]
        text += growing.held()
        return any(each in text for each in self._stop)


def _until(text: str, stop: tuple[str, ...]) -> str:
    """The text before the first of the stops."""
    return text[: min((at for at in map(text.find, stop) if at >= 0), default=len(text))]


def _windows(first: np.ndarray, tokens: np.ndarray, positions: int) -> list[_Path]:
    """Paths that predict each token once, with as much before it as fits (lm-eval's rolling windows)."""
    found = [_Path(first, tokens[:positions], False)] if len(tokens) else []
    for start in range(positions, len(tokens), positions):
        end = min(start + positions, len(tokens))
        found.append(_Path(tokens[end - positions - 1 : start], tokens[start:end], False))
    return found


def _gather(paths: list[list[_Path]]) -> tuple[list[Request], list[list[tuple[int, int]]]]:
    """Requests in which nothing stands twice, and where each path is found in them: (request, continuation)."""
    contexts: dict[bytes, int] = {}
    requests: list[tuple[np.ndarray, dict[bytes, tuple[int, np.ndarray]]]] = []
    where: list[list[tuple[int, int]]] = []
    for each in paths:
        places = []
        for path in each:
            request = contexts.setdefault(path.context.tobytes(), len(requests))
            if request == len(requests):
                requests.append((path.context, {}))
            known = requests[request][1]
            number, _ = known.setdefault(path.continuation.tobytes(), (len(known), path.continuation))
            places.append((request, number))
        where.append(places)
    return [Request(context, tuple(own for _, own in known.values())) for context, known in requests], where
