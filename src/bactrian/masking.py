"""Secrets: checked where they are read, and masked in whatever is kept or shown.

A secret of this process is a key that was read by `key`, what `know` and `know_address` were told, and what the
environment holds under a name like HF_TOKEN or as a password in an address. Servers and libraries repeat such texts in
bodies, headers and messages, as they are, escaped or encoded. Law: none is in any text that has been through `mask`.
"""

import base64
import binascii
import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

from bactrian.errors import InputError

MASK = "…"
_SHORTEST = 6  # characters: what is shorter protects nothing, and is part of other words
# What people set where a server wants any key at all; masked, they would be gaps in names and answers.
_NO_SECRETS = {
    "ollama",
    "lm-studio",
    "not-needed",
    "not-required",
    "no-key-required",
    "sk-no-key-required",
    "dummy-key",
}
_SECRET_NAME = re.compile(
    r"(^|[_-])(api)?(keys?|tokens?|secrets?|passwords?|passwd|pwd|auth|authorization|credentials?|signature|sig|cookie)$",
    re.IGNORECASE,
)
_IN_ADDRESS = re.compile(r"(\b[a-z][a-z0-9+.-]*://)[^\s/?#\"'<>]*@", re.IGNORECASE)
_IN_QUERY = re.compile(
    r"([?&;](?:[\w.%-]*[_-])?(?:api)?(?:key|token|secret|password|passwd|pwd|auth|credential|signature|sig)=)[^&;#\s\"'<>]+",
    re.IGNORECASE,
)
_IN_HEADER = re.compile(r"(\b(?:bearer|basic)\s+)[\w.~+/=-]{6,}", re.IGNORECASE)

_ESCAPES = "\\%&"
_URL_SAFE = str.maketrans("+/", "-_")

_known: set[str] = set()  # of the process, as its environment is: a text is masked wherever it goes


def key(name: str) -> str | None:
    """The key in an environment variable, without spaces and line ends around it; None where there is none.

    Raises `InputError`, which never shows the key, where it cannot be sent in a header.
    """
    value = (os.environ.get(name) or "").strip().strip("\ufeff\u200b")
    if not value:
        return None
    know(value)
    return checked(value, name)


def check_hub_token() -> None:
    """Raise `InputError` where the token for the Hugging Face Hub, in the environment or its file, cannot be sent."""
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        key(name)
    path = _hub_token_file(os.environ)
    with suppress(OSError):  # where nobody is logged in
        value = path.read_bytes().decode("ascii", "replace").strip()
        if value:
            checked(value, str(path))


def checked(value: str, where: str) -> str:
    """A text that can be sent in a header as a key. Raises `InputError`, which never shows it."""
    if value[0] in "\"'" and value[-1] == value[0]:
        raise InputError(f"{where}: the key there stands in quotation marks; set it without them")
    for number, character in enumerate(value, 1):
        if not "!" <= character <= "~":
            what = "a space" if character == " " else "a line end" if character in "\r\n" else "a control character"
            what = what if ord(character) < 128 else "a character that is not ASCII"
            raise InputError(
                f"{where}: the key there cannot be sent: {what} is at position {number} of {len(value)}; set the key "
                f"alone, as it was issued"
            )
    return value


def is_secret_name(name: str) -> bool:
    """Whether a header, parameter or variable of this name holds a secret."""
    return _SECRET_NAME.search(name) is not None


def know(*secrets: str) -> None:
    """Mask these from now on; what is too short to be a secret is not one."""
    _known.update(secret for secret in map(str.strip, secrets) if _is_secret(secret))


def know_address(url: str) -> None:
    """Mask the password in an address, and the parameters of its query that are secrets."""
    know(*_of_address(url))


def mask(text: str) -> str:
    """The text with each known secret in it replaced, also where it is escaped (JSON, HTML), percent-encoded or in
    base64."""
    return _masker().mask(text)


def mask_line(text: str) -> str:
    """A message with each known secret replaced, and whatever stands where secrets do: before the @ of an address, in a
    query's `key=`, after Bearer. Not for answers and questions, which may hold such text of their own."""
    text = mask(text)
    if "@" in text:
        text = _IN_ADDRESS.sub(rf"\1{MASK}@", text)
    return _IN_HEADER.sub(rf"\1{MASK}", _IN_QUERY.sub(rf"\1{MASK}", text))


def masked(value: Any) -> Any:
    """A value of JSON with `mask` over all its strings."""
    masker = _masker()
    return _masked(value, masker) if masker.written else value


@dataclass(frozen=True)
class _Masker:
    """written: secrets as they stand in texts without an escape, the longest first."""

    written: tuple[str, ...]

    @cached_property
    def pattern(self) -> re.Pattern[str]:
        """Each secret, with each way to escape it."""
        return re.compile("|".join("".join(map(_spelled, each)) for each in self.written))

    def mask(self, text: str) -> str:
        # The pattern is slow to make and to look for, and most texts hold nothing.
        may_hold = any(sign in text for sign in _ESCAPES) or any(each in text for each in self.written)
        return self.pattern.sub(MASK, text) if self.written and may_hold else text


def _masked(value: Any, masker: _Masker) -> Any:
    if isinstance(value, str):
        return masker.mask(value)
    if isinstance(value, dict):
        return {_masked(name, masker): _masked(each, masker) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_masked(each, masker) for each in value]
    return value


def _is_secret(text: str) -> bool:
    return len(text) >= _SHORTEST and text.lower() not in _NO_SECRETS


def _of_address(url: str) -> Iterator[str]:
    try:
        parts = urlsplit(url)
        user, password = parts.username, parts.password
    except ValueError:  # no address at all; whoever uses it says so
        return
    if user and not password:  # a token in the user's place
        yield from {user, unquote(user)}
    if password:
        yield from {password, unquote(password)}
        both = f"{unquote(user or '')}:{unquote(password)}"
        yield base64.b64encode(both.encode("utf-8", "surrogatepass")).decode()
    for name, value in parse_qsl(parts.query):
        if is_secret_name(name):
            yield value


@lru_cache(maxsize=4)
def _of_environment(variables: tuple[tuple[str, str], ...]) -> frozenset[str]:
    found: set[str] = set()
    for name, value in variables:
        value = value.strip()
        if "://" in value:
            found.update(_of_address(value))
        elif _SECRET_NAME.search(name) and not value.startswith(("/", "~", ".")):  # or it is the file that holds it
            found.add(value)
    with suppress(OSError, ValueError):
        found.add(_hub_token_file(dict(variables)).read_text(encoding="utf-8").strip())
    return frozenset(filter(_is_secret, found))


def _hub_token_file(environment: Mapping[str, str]) -> Path:
    home = environment.get("HF_HOME") or Path(environment.get("HOME") or "/", ".cache", "huggingface")
    return Path(environment.get("HF_TOKEN_PATH") or Path(home, "token"))


def _masker() -> _Masker:
    return _made(frozenset(_known) | _of_environment(tuple(os.environ.items())))


@lru_cache(maxsize=16)
def _made(secrets: frozenset[str]) -> _Masker:
    written: set[str] = set()
    for secret in secrets:
        written |= {secret, *_in_base64(secret)}
    return _Masker(tuple(sorted(written, key=lambda each: (-len(each), each))))


def _in_base64(secret: str) -> Iterator[str]:
    """The part of the base64 of any text with the secret that depends on it alone, for each of three places in it."""
    data = secret.encode("utf-8", "surrogatepass")
    for before in range(3):
        encoded = binascii.b2a_base64(bytes(before) + data, newline=False).decode()
        core = encoded[(before * 8 + 5) // 6 : (before + len(data)) * 8 // 6]
        if len(core) >= _SHORTEST:
            yield from {core, core.translate(_URL_SAFE)}


def _spelled(character: str) -> str:
    """A pattern of the ways in which a character is written: itself, `\\u0041`, `\\x41`, `%41`, `&#65;`, `&#x41;`."""
    code = ord(character)
    ways = [re.escape(character) if character.isalnum() else rf"\\*{re.escape(character)}"]
    encoded = "".join(f"%{byte:02x}" for byte in character.encode("utf-8", "surrogatepass"))
    escaped = [
        rf"\\+{re.escape(each[1:])}" for each in {json.dumps(character)[1:-1], f"\\u{code:04x}"} if len(each) > 2
    ]
    ways += [f"(?i:{each})" for each in (*escaped, rf"\\+x{code:02x}", encoded, f"&#0*{code};", f"&#x0*{code:x};")]
    names = {'"': "quot", "&": "amp", "<": "lt", ">": "gt", "'": "apos"}
    ways += [f"&{names[character]};"] if character in names else []
    return f"(?:{'|'.join(ways)})"
