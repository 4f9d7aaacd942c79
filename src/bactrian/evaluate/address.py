"""Where and how to ask: an address that speaks OpenAI's protocol, what it takes, and what its refusals mean.

Addresses differ: reasoning models want `max_completion_tokens` and no temperature, Azure its version in the query and
its key in a header of another name, some chat formats have no system message. `Wire` says which, and `advice` names the
option of the command that answers a refusal.
"""

import json
import re
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

from bactrian import masking
from bactrian.data.records import Message
from bactrian.errors import InputError
from bactrian.evaluate.calls import Call

_ALTERNATIVES = 5  # of the first token, where choices are compared; AlpacaEval asks for as many
_OURS = ("model", "messages", "stream", "n")  # what the body says by other options, or must not say
_TOKEN = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")  # a header's name, RFC 9110

_NOT_TAKEN = re.compile(
    r"unsupported|not support|n't support|deprecated|unknown|unrecogni|not allowed|not permitted|not enabled|"
    r"unexpected|invalid|only the default|not available|must alternate|extra inputs|no longer",
    re.IGNORECASE,
)
_SYSTEM_ROLE = re.compile(
    r"system[ _](role|message|prompt|instruction)|role[s]?\W+.{0,30}\bsystem\b|developer (instruction|message)|"
    r"roles must alternate",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Wire:
    """How the requests to one address differ from the protocol's plain ones.

    max_completion_tokens: sent in place of max_tokens, and in place of its number: it counts a model's reasoning too.
    extra_body: more fields of the body; one that is None is left out of it. extra_headers: more headers. key_header:
    the header that takes the key, as it is, in place of `Authorization: Bearer`. has_system: else a system message is
    put before the first message of the user.
    """

    max_completion_tokens: int | None = None
    has_temperature: bool = True
    reasoning_effort: str | None = None
    extra_body: dict[str, Any] = field(default_factory=dict)
    extra_headers: dict[str, str] = field(default_factory=dict)
    key_header: str | None = None
    has_system: bool = True

    def fit(self, call: Call) -> Call:
        """The call with the number of tokens that will be asked for."""
        return call if self.max_completion_tokens is None else replace(call, max_tokens=self.max_completion_tokens)

    def body(self, call: Call, model: str) -> dict[str, Any]:
        """The body of a request."""
        messages = call.messages if self.has_system else _folded(call.messages)
        body: dict[str, Any] = {
            "model": model,
            "messages": [{"role": message.role, "content": message.content} for message in messages],
            "max_tokens" if self.max_completion_tokens is None else "max_completion_tokens": self.fit(call).max_tokens,
        }
        if self.has_temperature:
            body["temperature"] = call.temperature
            if call.top_p != 1:
                body["top_p"] = call.top_p
        if call.stop:
            body["stop"] = list(call.stop)
        if call.seed is not None:
            body["seed"] = call.seed
        if call.choices:
            body |= {"logprobs": True, "top_logprobs": _ALTERNATIVES}
        if self.reasoning_effort is not None:
            body["reasoning_effort"] = self.reasoning_effort
        return {name: value for name, value in (body | self.extra_body).items() if value is not None}

    def as_row(self) -> dict[str, Any]:
        """What differs from plain requests, for records and keys; headers that hold secrets by their names alone."""
        plain = asdict(Wire())
        row = {name: value for name, value in asdict(self).items() if value != plain[name]}
        row.pop("key_header", None)  # it says who asks, not what
        if self.extra_headers:
            row["extra_headers"] = {
                name: masking.MASK if masking.is_secret_name(name) else value
                for name, value in self.extra_headers.items()
            }
        return row


def _folded(messages: tuple[Message, ...]) -> tuple[Message, ...]:
    """The messages with those of the system put before the first of the user, an empty line between."""
    system = "\n\n".join(message.content for message in messages if message.role == "system")
    rest = [message for message in messages if message.role != "system"]
    if not system:
        return messages
    if not rest or rest[0].role != "user":
        return (Message("user", system), *rest)
    return (Message("user", f"{system}\n\n{rest[0].content}"), *rest[1:])


@dataclass(frozen=True)
class Address:
    """Where, as whom and how to ask. The key is never written anywhere. `option` begins the names of its options."""

    url: str
    model: str
    key: str | None = field(default=None, repr=False)
    key_name: str = "OPENAI_API_KEY"
    wire: Wire = field(default_factory=Wire)
    option: str = "--judge"

    @property
    def base(self) -> str:
        """The address up to where the protocol's paths begin."""
        parts = urlsplit(self.url)
        path = parts.path.rstrip("/").removesuffix("/chat/completions") or "/v1"
        return urlunsplit((parts.scheme, parts.netloc, path, "", ""))

    @property
    def query(self) -> str:
        """What the address says after its `?`, sent with every request."""
        return urlsplit(self.url).query

    @cached_property
    def shown(self) -> str:
        """The address without whatever secret it may hold."""
        parts = urlsplit(self.base)
        pairs = [
            (name, masking.MASK if masking.is_secret_name(name) else value)
            for name, value in parse_qsl(self.query, keep_blank_values=True)
        ]
        query = urlencode(pairs, safe=masking.MASK + "/:")
        return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, query, ""))

    @property
    def kept_as(self) -> str:
        """What replies are kept under: the model's name, and how requests to it differ from plain ones."""
        row = self.wire.as_row()
        return f"{self.model} {json.dumps(row, sort_keys=True)}" if row else self.model

    def checked(self) -> "Address":
        """This address, where requests can be sent to it; its secrets are masked from now on. Raises `InputError`."""
        try:
            parts = urlsplit(self.url)
            is_whole = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
        except ValueError:
            is_whole = False
        if not is_whole or any(not " " < character < "\x7f" for character in self.url):
            shown = masking.mask_line(self.url)
            raise InputError(f"{shown}: not an address; give one that begins with http:// or https://")
        masking.know_address(self.url)
        if self.key:
            masking.know(self.key)
            masking.checked(self.key, self.key_name)
        if self.wire.max_completion_tokens is not None and self.wire.max_completion_tokens < 1:
            raise InputError(f"{self.option}-max-completion is {self.wire.max_completion_tokens}: give 1 or more")
        _check_headers(self.wire, self.option)
        taken = [name for name in _OURS if name in self.wire.extra_body]
        if taken:
            raise InputError(f"{self.option}-extra-body: {taken[0]} cannot be set there; leave it out")
        return self

    def advice(self, status: int, said: str, parameter: str | None = None) -> str | None:
        """The option that answers what the other side said with an error's status; None where none is known to."""
        text = f"{parameter or ''} {said}"
        option, wire = self.option, self.wire
        if status in (401, 403) and wire.key_header is None:
            return f"where it takes its key in another header, name that with {option}-key-header"
        if status == 404 and not self.query and (".azure." in self.base or "/deployments/" in self.base):
            return f"give {option} with its query, as …/chat/completions?api-version=VERSION"
        if status not in (400, 404, 405, 415, 422, 500, 501) or not _NOT_TAKEN.search(text):
            return None
        if wire.has_system and _SYSTEM_ROLE.search(text):
            return f"give {option}-no-system, which puts the system message before the user's"
        named = self._named(text, parameter)
        if named == "max_tokens" and wire.max_completion_tokens is None:
            return f"give {option}-max-completion N, which is sent in its place"
        if named in ("temperature", "top_p") and wire.has_temperature:
            return f"give {option}-no-temperature, which leaves temperature and top_p out"
        if named == "reasoning_effort":
            return f"see which {option}-reasoning it takes"
        return named and f"leave it out with {option}-extra-body '{{\"{named}\": null}}', or give another value there"

    def _named(self, text: str, parameter: str | None) -> str | None:
        """The field of our requests that a message is about."""
        sent = ["max_completion_tokens", "max_tokens", "temperature", "top_p", "reasoning_effort"]
        sent += ["top_logprobs", "logprobs", "stop", "seed", *self.wire.extra_body]
        if self.wire.max_completion_tokens is None:
            sent.remove("max_completion_tokens")
        if parameter in sent:
            return parameter
        found = [
            (match.start(), name) for name in sent if (match := re.search(rf"(?<!\w){re.escape(name)}(?!\w)", text))
        ]
        return min(found)[1] if found else None


def _check_headers(wire: Wire, option: str) -> None:
    """Raise `InputError` for headers that cannot be sent, without their values, which may be secrets."""
    for name, value in wire.extra_headers.items():
        if masking.is_secret_name(name):
            masking.know(value, value.rpartition(" ")[2])
        if not _TOKEN.fullmatch(name):
            raise InputError(f"{option}-extra-header: not the name of a header; write NAME=VALUE or NAME: VALUE")
        if any(not " " <= character <= "~" for character in value):
            raise InputError(f"{option}-extra-header {name}: its value has characters that cannot be sent in a header")
    if wire.key_header is not None and not _TOKEN.fullmatch(wire.key_header):
        raise InputError(f"{option}-key-header: not the name of a header; write one as api-key")
