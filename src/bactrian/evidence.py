"""What a run measures of the base model and of each stage: held-out scores, answers, and the rules that count them."""

import hashlib
import json
import re
from dataclasses import dataclass
from typing import Any

import numpy as np

from bactrian import progress
from bactrian.data import continuation
from bactrian.data.chat import Chat
from bactrian.data.records import Message, Messages
from bactrian.data.sources import beside, fields, reader
from bactrian.errors import DataError
from bactrian.files import documents
from bactrian.inference.engine import Engine, Settings
from bactrian.prepare import Prepared
from bactrian.recipe import Evaluation, Rule, Source
from bactrian.run import Run

_ANSWERS_AT_ONCE = 32


@dataclass(frozen=True)
class Prompt:
    """One row of the held-out prompts; `row` is all of it, for rules that read a column."""

    text: str
    row: dict[str, Any]

    @property
    def messages(self) -> Messages:
        """The conversation that is answered: the prompt, after the row's system message where it has one."""
        return beside.asked((Message("user", self.text),), self.row, "a held-out prompt")


def read_prompts(settings: Evaluation, chat: Chat, max_positions: int) -> list[Prompt]:
    """The held-out prompts of a recipe, each with room for its answer. Raises `DataError`."""
    if settings.prompts is None:
        return []
    prompts = []
    for where, row in reader.read(Source(path=settings.prompts, format="messages")):
        if not isinstance(row.get("prompt"), str):
            raise DataError(f"{where}: a held-out prompt needs a `prompt` that is text")
        fields.text(row["prompt"], "prompt", where)
        if (fault := documents.fault_of(row)) is not None:  # the row is kept beside the answer
            raise DataError(f"{where}: {fault}; repair or remove the row")
        for key, value in row.items():
            if isinstance(value, bytes):
                raise DataError(f"{where}: {key} is {fields.kind(value)}, and is kept beside the answer; remove it")
        for rule in settings.rules:
            patterns = row.get(rule.column) if rule.column else []
            if not isinstance(patterns, list) or not all(isinstance(pattern, str) for pattern in patterns):
                raise DataError(f"{where}: rule {rule.name} needs a list of patterns in `{rule.column}`")
            _check_patterns(patterns, f"{where}: {rule.column}")
        messages = beside.asked((Message("user", row["prompt"]),), row, where)
        length = len(chat.prompt(messages)) + settings.max_tokens
        if length > max_positions:
            raise DataError(
                f"{where}: the prompt and an answer of evaluation.max_tokens = {settings.max_tokens} take {length} "
                f"tokens, and the model has {max_positions} positions; shorten one of them"
            )
        prompts.append(Prompt(row["prompt"], row))
    return prompts


def fingerprint(prompts: list[Prompt]) -> str:
    """Equal for equal prompts."""
    return hashlib.sha256(json.dumps([prompt.row for prompt in prompts], default=str).encode()).hexdigest()


def _check_patterns(patterns: list[str], where: str) -> None:
    for pattern in patterns:
        try:
            re.compile(pattern)
        except re.error as error:
            raise DataError(f"{where}: {pattern!r} is not a regular expression: {error}; correct it") from None


def holds(rule: Rule, prompt: Prompt, answer: str) -> bool:
    """Whether an answer counts under a rule."""

    def occurs(pattern: str) -> bool:
        return re.search(pattern, answer, re.IGNORECASE) is not None

    wanted = prompt.row[rule.column] if rule.column else rule.any_of
    return sum(map(occurs, wanted)) >= rule.at_least and not any(map(occurs, rule.none_of))


def answer(engine: Engine, chat: Chat, prompts: list[Prompt], max_tokens: int, seed: int) -> list[str]:
    """Greedy answers to the prompts, each a conversation of its own."""
    settings = Settings(max_tokens=max_tokens, stop_ids=chat.stop_ids, seed=seed)
    ids = [chat.prompt(prompt.messages) for prompt in prompts]
    answers: list[str] = []
    with progress.bar("answers", len(ids)) as bar:
        for start in range(0, len(ids), _ANSWERS_AT_ONCE):
            asked = ids[start : start + _ANSWERS_AT_ONCE]
            generated = zip(asked, engine.generate(asked, settings), strict=True)
            answers += [continuation.after(chat.tokenizer, prompt, one.tokens).strip() for prompt, one in generated]
            bar.to(len(answers), len(ids))
    return answers


def record_answers(
    run: Run, label: str, evaluation: Evaluation, prompts: list[Prompt], answers: list[str]
) -> dict[str, float]:
    """Keep the answers in `samples.jsonl`; returns the share of them that each rule counts."""
    rows = run.samples() or [{**prompt.row, "answers": {}, "rules": {}} for prompt in prompts]
    for row, prompt, text in zip(rows, prompts, answers, strict=True):
        row["answers"][label] = text
        row["rules"][label] = {rule.name: holds(rule, prompt, text) for rule in evaluation.rules}
    run.write_samples(rows)
    return {rule.name: float(np.mean([row["rules"][label][rule.name] for row in rows])) for rule in evaluation.rules}


def sft_loss(prepared: Prepared, logprobs_NK: np.ndarray) -> float:
    """Mean negative log-likelihood of the learnt tokens of the held-out conversations, in nats."""
    assert prepared.heldout is not None
    return float(-logprobs_NK.sum() / prepared.heldout.learned.sum())


def preference(logprobs_NK: np.ndarray, base_NK: np.ndarray | None) -> dict[str, float]:
    """Accuracy and mean margin, in nats, of the held-out pairs' log-probabilities over the base model's.

    For the base model itself (`base_NK` absent) the plain log-probabilities are compared.
    """
    gained = logprobs_NK if base_NK is None else logprobs_NK - base_NK
    margins = gained[:, 0] - gained[:, 1]
    return {"preference_accuracy": float(np.mean(margins > 0)), "preference_margin": float(np.mean(margins))}


def record_scores(run: Run, label: str, scores: dict[str, float], counts: dict[str, int]) -> None:
    """Keep scores under `label` in `evaluation.json`, and what they are the mean of under `counts`."""

    def update(evaluation: dict[str, Any]) -> None:
        for name, value in scores.items():
            evaluation.setdefault(name, {})[label] = value
        evaluation.setdefault("counts", {}).update(counts)

    run.record("evaluation", update)


def line(label: str, scores: dict[str, float]) -> str:
    """What a person is told of a model's scores."""
    return f"{label}: " + ", ".join(f"{name} {value:.3f}" for name, value in scores.items())


def is_recorded(run: Run, label: str) -> bool:
    """Whether the scores of `label` are on disk."""
    evaluation = run.evidence("evaluation")
    # A recipe that asks for no scores has its empty counts on disk.
    return bool(evaluation) and all(label in by_label for name, by_label in evaluation.items() if name != "counts")
