"""Fields of a row, checked: what is there, and that it is text."""

from typing import Any, get_args

from bactrian.errors import DataError
from bactrian.recipe import Layout


def required(row: dict[str, Any], key: str, layout: Layout, where: str) -> Any:
    """The value under a key that the layout needs; null counts as absent. Raises `DataError`."""
    value = row.get(key)
    if value is None:
        found = ", ".join(name for name in row if row[name] is not None) or "nothing"
        raise DataError(
            f"{where}: no {key!r}, which the layout {layout!r} needs (found: {shown(found, 200)}); "
            f"repair the row, or set `format` to the file's layout: {', '.join(get_args(Layout))}"
        )
    return value


def text(value: Any, name: str, where: str) -> str:
    """The value, if it is text that a tokenizer can take. Raises `DataError`."""
    if not isinstance(value, str):
        raise DataError(f"{where}: {name} is {kind(value)}, not text; repair or remove the row")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise DataError(f"{where}: {name} holds half a surrogate pair, which is no character; repair the row") from None
    return value


def kind(value: Any) -> str:
    """What a value is, in JSON's words."""
    names = {dict: "an object", list: "a list", str: "text", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number" if isinstance(value, int | float) else f"a {type(value).__name__}")


def shown(value: str, limit: int = 60) -> str:
    """A user's text, short enough and on one line for a message."""
    line = " ".join(value.split())
    return line if len(line) <= limit else f"{line[:limit]}…"
