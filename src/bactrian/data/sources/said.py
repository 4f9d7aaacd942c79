"""Turns as ShareGPT and its kin spell them: who speaks under one key, what is said under another, roles by many names.

{"from": "human", "value": "Hi"}        ShareGPT, FastChat, LLaMA-Factory
{"role": "user", "content": "Hi"}       lists of messages under another key, as LMSYS-Chat-1M's `conversation`
{"human": "Hi", "assistant": "Hello."}  a round; so is {"input": …, "output": …}, XTuner's, with a `system` or not
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

from bactrian.data.records import Message, Messages, Role
from bactrian.data.sources import beside, fields
from bactrian.errors import DataError

ROLES: dict[str, Role] = {
    **dict.fromkeys(("human", "user"), "user"),
    **dict.fromkeys(("gpt", "assistant", "chatgpt", "model", "bot"), "assistant"),
    "system": "system",
}
_LISTS = ("conversations", "conversation", "messages")
_SPEAKERS, _TEXTS = ("from", "role"), ("value", "content")
_ROUND: dict[str, Role] = {"system": "system", "input": "user", **ROLES, "output": "assistant"}


class Spoken(NamedTuple):
    """One turn: the speaker as the row names them, and their message; its role is None where nobody knows the name."""

    speaker: str
    role: Role | None
    text: str
    trained: bool


def listed(row: dict[str, Any], layout: str, where: str) -> list[Spoken]:
    """The turns of a row, under whichever key they lie. Raises `DataError`."""
    key = next((key for key in _LISTS if row.get(key) is not None), _LISTS[0])
    turns = fields.required(row, key, layout, where)
    if not isinstance(turns, list):
        raise DataError(f"{where}: {key} is {fields.kind(turns)}, not a list of turns; repair the row", "wrong_type")
    return [spoken for index, turn in enumerate(turns) for spoken in _spoken(turn, f"{key}[{index}]", where)]


def turns(value: Any, name: str, where: str) -> Messages:
    """A list of turns as messages. Raises `DataError`, also where nobody knows a speaker."""
    listed = fields.some(value, name, where, "turns")
    return tuple(turn(each, f"{name}[{index}]", where) for index, each in enumerate(listed))


def turn(value: Any, name: str, where: str) -> Message:
    """One turn as a message. Raises `DataError`, also where it is a round or nobody knows the speaker."""
    found = list(_spoken(value, name, where))
    if len(found) != 1 or found[0].role is None:
        known = ", ".join(ROLES)
        raise DataError(f"{where}: {name} is no turn of a speaker known here ({known}); repair the row", "unknown_role")
    return Message(found[0].role, found[0].text, found[0].trained)


def _spoken(turn: Any, name: str, where: str) -> Iterator[Spoken]:
    given = turn if isinstance(turn, dict) else {}
    who = next((key for key in _SPEAKERS if given.get(key) is not None), None)
    what = next((key for key in _TEXTS if key in given), None)
    if who and what:
        speaker = fields.text(given[who], f"{name}.{who}", where)
        role = ROLES.get(speaker.lower())
        trained = beside.is_trained(given, role or speaker, name, where)
        if speaker.lower() in beside.TOOL_ROLES:
            raise DataError(
                f"{where}: {name}.{who} is {speaker!r}, and tools are not carried into training yet; remove the row",
                "not_carried",
            )
        yield Spoken(speaker, role, beside.content(given[what], f"{name}.{what}", where), trained)
        return
    inside: list[tuple[str, Role]] = [(key, role) for key, role in _ROUND.items() if given.get(key) is not None]
    inside = [(key, role) for key, role in inside if key != "system" or beside.says_something(given[key])]
    if [role for _, role in inside if role != "system"] != ["user", "assistant"]:
        raise DataError(
            f"{where}: {name} is no object with `from` and `value`, nor a round of human and assistant; "
            f"repair or remove the row",
            "missing_key",
        )
    trained = beside.is_trained(given, "assistant", name, where)
    for key, role in inside:
        yield Spoken(key, role, fields.text(given[key], f"{name}.{key}", where), trained or role != "assistant")
