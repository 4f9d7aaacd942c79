"""Requests to a judge and what became of them: a file that is only added to, so that nothing is asked twice.

calls.jsonl holds a line for every request that left: its content, the key of that content, and the reply or the error.
"""

import hashlib
import json
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

from bactrian.data.records import Message, Messages
from bactrian.evaluate.journal import Journal, Row

_TOKENS_AROUND_A_MESSAGE = 8  # role and delimiters, more than any chat format known to us takes


@dataclass(frozen=True)
class Call:
    """One request. `choices` are texts of one token whose log-probabilities are wanted in place of an answer.

    `sample` tells apart requests that are otherwise equal and are to be answered independently.
    """

    messages: Messages
    max_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0
    stop: tuple[str, ...] = ()
    choices: tuple[str, ...] = ()
    seed: int | None = None
    sample: int = 0

    def key(self, model: str) -> str:
        """Equal for equal content: everything that the answer depends on, and nothing of where it is asked."""
        text = json.dumps({"model": model, **asdict(self)}, sort_keys=True, ensure_ascii=False)
        return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()

    @property
    def tokens_about(self) -> int:
        """Tokens of the request, by the rule of thumb of four bytes to one."""
        return sum(len(message.content.encode()) // 4 + _TOKENS_AROUND_A_MESSAGE for message in self.messages)

    @property
    def tokens_at_most(self) -> int:
        """Tokens of the request: no tokenizer over bytes makes more of them than there are bytes."""
        return sum(len(message.content.encode()) + _TOKENS_AROUND_A_MESSAGE for message in self.messages)


@dataclass(frozen=True)
class Reply:
    """What came back. `logprobs` are those of the first token, of its likeliest alternatives, in nats."""

    text: str
    finish: str = "stop"
    refusal: str | None = None
    logprobs: dict[str, float] = field(default_factory=dict)
    input_tokens: int | None = None
    output_tokens: int | None = None


@dataclass(frozen=True)
class Failure:
    """A request that got no reply, and why; or one that the budget left unasked."""

    reason: str
    was_asked: bool = True


Usable = Callable[[Reply], bool]


class Judge(Protocol):
    """What answers a judge's prompts: an address, a model of ours, or what was kept of another run."""

    @property
    def name(self) -> str: ...

    def ask(self, calls: list[Call], usable: Usable) -> list[Reply | Failure]:
        """A reply to each call, in order. One that is not `usable` is asked for again, a few times at most."""
        ...


class Store:
    """calls.jsonl of one folder, open for one process."""

    def __init__(self, path: Path):
        self.path = path
        self.sent = 0  # requests that ever left
        self.cost_tokens = [0, 0]  # tokens in and out that they were billed for
        self._replies: dict[str, list[tuple[Reply, bool]]] = {}
        self._journal = Journal(path, "calls", self._take)

    def close(self) -> None:
        self._journal.close()

    def find(self, key: str, reasks: int) -> Reply | None:
        """The reply to keep: a usable one, or the last where it was asked for often enough."""
        replies = self._replies.get(key, [])
        for reply, is_usable in replies:
            if is_usable:
                return reply
        return replies[-1][0] if len(replies) > reasks else None

    def replies(self, key: str) -> int:
        """How many replies there are to a key, usable or not."""
        return len(self._replies.get(key, []))

    def add(self, key: str, call: Call, outcome: Reply | Failure, is_usable: bool, **about: Any) -> None:
        """Write one line; it is on disk when this returns."""
        row: dict[str, Any] = {"key": key, "at": datetime.now(UTC).isoformat(timespec="seconds"), **about}
        row["request"] = {name: value for name, value in asdict(call).items() if value not in (None, (), {})}
        if isinstance(outcome, Reply):
            row |= {"reply": asdict(outcome), "usable": is_usable}
        else:
            row["error"] = outcome.reason
        self._journal.add(row)

    def _take(self, row: Row) -> None:
        self.sent += 1
        if "reply" in row:
            reply = _reply(row["reply"])
            self._replies.setdefault(row["key"], []).append((reply, bool(row["usable"])))
            row = {"billed": (reply.input_tokens or 0, reply.output_tokens or 0), **row}
        for place, tokens in enumerate(row.get("billed", (0, 0))):
            self.cost_tokens[place] += tokens


def _reply(row: dict[str, Any]) -> Reply:
    return Reply(**{each.name: row[each.name] for each in fields(Reply) if each.name in row})


Kept = dict[tuple[str, int], Reply]  # by the text of the request's last message, and which sample it is


def kept(rows: Iterable[dict[str, Any]]) -> Kept:
    """The replies of a calls.jsonl's rows; of each request a usable one, if there is one."""
    found: dict[tuple[str, int], tuple[Reply, bool]] = {}
    for row in rows:
        if "reply" in row:
            key = row["request"]["messages"][-1]["content"], row["request"].get("sample", 0)
            if key not in found or not found[key][1]:
                found[key] = (_reply(row["reply"]), bool(row["usable"]))
    return {key: reply for key, (reply, _) in found.items()}


def chat(system: str | None, user: str) -> Messages:
    """The messages of one question, with a system message if there is one."""
    asked = Message("user", user)
    return (asked,) if system is None else (Message("system", system), asked)
