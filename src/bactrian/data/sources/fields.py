"""Fields of a row, checked: what is there, and that it is text."""

import math
from collections.abc import Sequence
from typing import Any

from bactrian.data.records import Conversation, Message
from bactrian.errors import DataError
from bactrian.files import documents
from bactrian.recipe import LAYOUTS


def required(row: dict[str, Any], key: str, layout: str, where: str) -> Any:
    """The value under a key that the layout needs; null counts as absent. Raises `DataError`."""
    value = row.get(key)
    if value is None:
        found = ", ".join(name for name in row if row[name] is not None) or "nothing"
        raise DataError(
            f"{where}: no {key!r}, which the layout {layout!r} needs (found: {shown(found, 100)}); "
            f"repair the row, or set `format` to the file's layout: {', '.join(LAYOUTS)}",
            "missing_key",
        )
    return value


def text(value: Any, name: str, where: str) -> str:
    """The value, if it is text that a tokenizer can take. Raises `DataError`."""
    if not isinstance(value, str):
        raise DataError(f"{where}: {name} is {kind(value)}, not text; repair or remove the row", "wrong_type")
    if not documents.is_text(value):
        raise DataError(
            f"{where}: {name} holds half a surrogate pair, which is no character; repair the row", "half_surrogate"
        )
    return value


def some(value: Any, name: str, where: str, what: str) -> list[Any]:
    """The value, if it is a list that holds something; `what` says of what. Raises `DataError`."""
    if not isinstance(value, list) or not value:
        found = "empty" if value == [] else kind(value)
        raise DataError(f"{where}: {name} is {found}, not a list of {what}; repair or remove the row", "wrong_type")
    return value


def texts(row: dict[str, Any], keys: Sequence[str], layout: str, where: str) -> list[str]:
    """The texts under keys that the layout needs. Raises `DataError`."""
    return [text(required(row, key, layout, where), key, where) for key in keys]


def below(instruction: str, extra: Any, key: str, where: str) -> str:
    """An instruction, and below it what goes with it, where there is something. Raises `DataError`."""
    more = "" if extra is None else text(extra, key, where)
    return f"{instruction}\n\n{more}" if more.strip() else instruction


def exchange(question: str, answer: str, where: str) -> Conversation:
    """A conversation of one round."""
    return Conversation((Message("user", question), Message("assistant", answer)), where)


def said(row: dict[str, Any], layout: str, where: str) -> list[tuple[str, str]]:
    """Who says what, from `conversations`: a list of `from` and `value`. Raises `DataError`."""
    turns = required(row, "conversations", layout, where)
    if not isinstance(turns, list):
        raise DataError(
            f"{where}: conversations is {kind(turns)}, not a list of turns; repair or remove the row", "wrong_type"
        )
    found = []
    for index, turn in enumerate(turns):
        if not isinstance(turn, dict) or "from" not in turn or "value" not in turn:
            raise DataError(
                f"{where}: conversations[{index}] is no object with `from` and `value`; repair or remove the row",
                "missing_key",
            )
        place = f"conversations[{index}]"
        found.append((text(turn["from"], f"{place}.from", where), text(turn["value"], f"{place}.value", where)))
    return found


def name(row: dict[str, Any], where: str, *keys: str) -> str:
    """What a row calls itself under the first of the keys that has text or a number; empty where none has.

    Raises `DataError` where that is no text.
    """
    for key in keys:
        value = row.get(key)
        if isinstance(value, str | int) and not isinstance(value, bool):
            return text(str(value), key, where)
    return ""


def number(value: Any, name: str, where: str) -> float:
    """A number, or text that reads as one. Raises `DataError`."""
    try:
        found = float(value) if isinstance(value, str | int | float) and not isinstance(value, bool) else math.nan
    except (ValueError, OverflowError):
        found = math.nan
    if not math.isfinite(found):
        raise DataError(
            f"{where}: {name} is {shown(repr(value))}, not a number; repair or remove the row", "wrong_type"
        )
    return found


def scores(row: dict[str, Any], keys: Sequence[str], where: str) -> tuple[float, ...]:
    """The scores under some keys; none where the row lacks one. Raises `DataError`."""
    values = [row.get(key) for key in keys]
    if any(value is None for value in values):
        return ()
    return tuple(number(value, key, where) for key, value in zip(keys, values, strict=True))


def kind(value: Any) -> str:
    """What a value is, in JSON's words."""
    names = {dict: "an object", list: "a list", str: "text", bool: "true or false", type(None): "null"}
    if isinstance(value, bytes):
        return "bytes that are no UTF-8 text"
    return names.get(type(value), "a number" if isinstance(value, int | float) else f"a {type(value).__name__}")


def shown(value: str, limit: int = 60) -> str:
    """A user's text, short enough and on one line for a message."""
    line = " ".join(value.split())
    return line if len(line) <= limit else f"{line[:limit]}…"
