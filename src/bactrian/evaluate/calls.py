"""Requests to a judge and what became of them: a file that is only added to, so that nothing is asked twice.

calls.jsonl holds a line for every request that left: its content, the key of that content, and the reply or the error.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Protocol

from pydantic import BaseModel, Field, StrictBool, ValidationError

from bactrian.data.records import Message, Messages
from bactrian.data.sources import fields
from bactrian.errors import DataError
from bactrian.evaluate.journal import Journal, Row, first_fault

_TOKENS_AROUND_A_MESSAGE = 8  # role and delimiters, more than any chat format known to us takes
_MOST_TOKENS = 10**9  # that a reply can have cost


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
    """What came back. `logprobs` are those of the first token, of its likeliest alternatives, in nats.

    `fault` says why a reply that came whole is no answer to be read: its content is no text, say.
    """

    text: str
    finish: str = "stop"
    refusal: str | None = None
    logprobs: dict[str, float] = field(default_factory=dict)
    input_tokens: int | None = None
    output_tokens: int | None = None
    fault: str | None = None


def reply(
    content: Any,
    finish: Any = None,
    refusal: Any = None,
    logprobs: Any = None,
    tokens: tuple[Any, Any] = (None, None),
    fault: Any = None,
) -> Reply:
    """A reply from values of any type, as a server or a line of calls.jsonl has them; what is odd is its `fault`."""
    text, own = _text(content)
    counts = [_count(each) for each in tokens]
    if own is None and any(each is not None and count is None for each, count in zip(tokens, counts, strict=True)):
        own = "its usage is no count of tokens"
    listed = logprobs.items() if isinstance(logprobs, dict) else ()
    return Reply(
        text,
        "stop" if finish is None else str(finish),
        None if refusal in (None, "") else str(refusal),
        {str(token): float(each) for token, each in listed if _is_logprob(each)},
        counts[0],
        counts[1],
        own if fault is None else str(fault),
    )


def _text(content: Any) -> tuple[str, str | None]:
    """The text of a message's content, and what is wrong with it. Some servers give a message in parts."""
    if isinstance(content, str):
        return content, None
    if not isinstance(content, list):
        return "", f"its content is {fields.kind(content)}, not text"
    parts = [each.get("text", "") if isinstance(each, dict) else each for each in content]
    odd = [each for each in parts if not isinstance(each, str)]
    if odd:
        return "", f"a part of its content is {fields.kind(odd[0])}, not text"
    return "".join(parts), None


def _count(value: Any) -> int | None:
    """A count of tokens, or None for what is none."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return int(value) if is_number and 0 <= value <= _MOST_TOKENS and value == int(value) else None


def _is_logprob(value: Any) -> bool:
    # Compared before it is made a float, which an integer of 400 digits cannot become.
    return isinstance(value, int | float) and not isinstance(value, bool) and -1e300 < value <= 1


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

    def find(self, key: str, reasks: int, usable: Usable | None = None) -> Reply | None:
        """The reply to keep: a usable one, or the last where it was asked for often enough.

        With `usable` one that counted as usable when it came must still be.
        """
        replies = self._replies.get(key, [])
        for reply, was_usable in replies:
            if was_usable and (usable is None or usable(reply)):
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
        line = _Line.model_validate(row)
        billed = line.billed
        if line.reply is not None:
            found = line.reply.read()
            self._replies.setdefault(line.key, []).append((found, line.usable))
            billed = billed or (found.input_tokens or 0, found.output_tokens or 0)
        self.sent += 1
        for place, tokens in enumerate(billed or (0, 0)):
            self.cost_tokens[place] += tokens


class _KeptReply(BaseModel):
    """A reply in a line. Its values may be as odd as they came: earlier versions kept them as they were."""

    text: Any
    finish: Any = None
    refusal: Any = None
    logprobs: Any = None
    input_tokens: Any = None
    output_tokens: Any = None
    fault: Any = None

    def read(self) -> Reply:
        tokens = (self.input_tokens, self.output_tokens)
        return reply(self.text, self.finish, self.refusal, self.logprobs, tokens, self.fault)


class _KeptMessage(BaseModel):
    content: str


class _KeptRequest(BaseModel):
    messages: Annotated[list[_KeptMessage], Field(min_length=1)]
    sample: int = 0


class _Line(BaseModel):
    """A line of calls.jsonl, as far as it is read again."""

    key: str
    reply: _KeptReply | None = None
    usable: StrictBool = False
    billed: tuple[Annotated[int, Field(ge=0)], Annotated[int, Field(ge=0)]] | None = None


class _Replayed(BaseModel):
    """A line of calls.jsonl whose reply answers the same request again."""

    request: _KeptRequest
    reply: _KeptReply | None = None
    usable: StrictBool = False


Kept = dict[tuple[str, int], Reply]  # by the text of the request's last message, and which sample it is


def kept(rows: Iterable[dict[str, Any]], places: Sequence[str] = ()) -> Kept:
    """The replies of a calls.jsonl's rows; of each request a usable one, if there is one.

    Raises `DataError` for a row that is no request with its reply; `places` name the rows.
    """
    found: dict[tuple[str, int], tuple[Reply, bool]] = {}
    for number, row in enumerate(rows):
        try:
            line = _Replayed.model_validate(row)
        except ValidationError as error:
            where = places[number] if places else f"row {number + 1}"
            raise DataError(f"{where}: not a line of calls ({first_fault(error)}); remove it") from None
        if line.reply is not None:
            key = line.request.messages[-1].content, line.request.sample
            if key not in found or not found[key][1]:
                found[key] = (line.reply.read(), line.usable)
    return {key: reply for key, (reply, _) in found.items()}


def chat(system: str | None, user: str) -> Messages:
    """The messages of one question, with a system message if there is one."""
    asked = Message("user", user)
    return (asked,) if system is None else (Message("system", system), asked)
