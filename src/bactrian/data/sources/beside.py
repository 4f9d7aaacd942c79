"""What a row says beside the keys of its layout, and what changes training: honoured, or refused by the key's name.

Honoured: `weight`, `train`, `training` and `loss` of a turn (its loss mask), a row's `system` (or `system_prompt`), and
its `history`, as LLaMA-Factory's rows have it. Refused, wherever a row or a turn gives one a value: tools and their
calls, reasoning, images and sounds, weights that are no mask. Null and empty values say nothing.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import Any

from bactrian.data.records import Conversation, Message, Messages, Preference, Record, Role
from bactrian.data.sources import fields
from bactrian.errors import DataError

_NOT_CARRIED = (
    *("tools", "functions", "tool_calls", "function_call", "reasoning_content", "reasoning", "thinking"),
    *("chat_template_kwargs", "image", "images", "video", "videos", "audio", "audios", "kto_tag"),
)
_NOT_CARRIED_OF_PROMPTS = ("tools", "functions", "chat_template_kwargs", "image", "images", "video", "audio")
_NOT_CARRIED_OF_TURNS = (
    *_NOT_CARRIED,
    *("reasoning_details", "tool_call_id", "train_detail", "training_detail", "loss_scale", "loss_weight"),
)
_MASKS = ("weight", "train", "training", "loss")
_SYSTEM = ("system", "system_prompt")
_NOTHING = ("", "[]", "{}", "null", "None")  # what a column of text says where a row has no value
TOOL_ROLES = ("tool", "function", "function_call", "tool_call", "observation", "ipython")


def says_something(value: Any) -> bool:
    """Whether a value is more than null, or empty lists, objects and texts."""
    if isinstance(value, str):
        return value.strip() not in _NOTHING
    if isinstance(value, dict | list | tuple):
        return any(says_something(each) for each in (value.values() if isinstance(value, dict) else value))
    return value is not None


def refuse_row(row: dict[str, Any], where: str) -> None:
    """Raise `DataError` where a row has what is not carried into training."""
    for key in _NOT_CARRIED:
        if says_something(row.get(key)):
            raise _not_carried(where, key)
    weight = row.get("weight")
    if says_something(weight) and not _is_one(weight):
        raise DataError(
            f"{where}: weight is {fields.shown(repr(weight))}, and whole rows have no weights; remove the column, or "
            f"say in a data recipe how often a source comes (`epochs`)",
            "not_carried",
        )


def asked(messages: Messages, row: dict[str, Any], where: str) -> Messages:
    """The messages of a row that is to be answered, with its system message before them. Raises `DataError`."""
    for key in _NOT_CARRIED_OF_PROMPTS:
        if says_something(row.get(key)):
            raise DataError(
                f"{where}: {key} is not carried into prompts yet, and the row would be answered as if it were not "
                f"there; remove the key or the row",
                "not_carried",
            )
    return _after(messages, _system(row, (), where), (), where)


def is_trained(turn: dict[str, Any], role: str, name: str, where: str) -> bool:
    """Whether a turn is to be learnt, as it says itself; `name` names the turn. Raises `DataError`."""
    for key in _NOT_CARRIED_OF_TURNS:
        if key in turn and says_something(turn[key]):
            raise _not_carried(where, f"{name}.{key}")
    said = {key: _flag(turn[key], f"{name}.{key}", where) for key in _MASKS if turn.get(key) is not None}
    if len(set(said.values())) > 1:
        shown = " and ".join(f"{key} = {turn[key]}" for key in said)
        raise DataError(f"{where}: {name} has {shown}, which contradict; keep one", "contradiction")
    trained = next(iter(said.values()), True)
    if role != "assistant":
        if said and trained:
            key = next(iter(said))
            raise DataError(
                f"{where}: {name}.{key} is {turn[key]}, and only assistant's turns are trained, not a {role}'s; "
                f"set it to 0, or remove it",
                "not_carried",
            )
        return True  # nothing to mask
    return trained


def content(value: Any, name: str, where: str) -> str:
    """What a turn says: text, or a list with one part that is text, as OpenAI's rows have it. Raises `DataError`."""
    if not isinstance(value, list) or not value or not all(isinstance(part, dict) for part in value):
        return fields.text(value, name, where)
    for index, part in enumerate(value):
        kind = part.get("type", "text" if "text" in part else None)
        if kind != "text":
            shown = fields.shown(str(kind))
            raise DataError(f"{where}: {name}[{index}] is {shown}, and only text is carried; remove it", "not_carried")
    if len(value) > 1:
        raise DataError(f"{where}: {name} has {len(value)} parts of text; join them into one", "wrong_type")
    return fields.text(value[0].get("text"), f"{name}[0].text", where)


def around(
    parse: Callable[[dict[str, Any], str], Iterable[Any]], layout: str
) -> Callable[[dict[str, Any], str], Iterator[Any]]:
    """A layout's parser, with what rows say beside the layout."""
    own = ("system_prompt",) if layout == "open_orca" else ()
    takes_history = layout in ("alpaca", "dolly", "prompt_completion", "preference")

    def parsed(row: dict[str, Any], where: str) -> Iterator[Any]:
        refuse_row(row, where)
        system = _system(row, own, where)
        history = _history(row, layout, where) if says_something(row.get("history")) else ()
        if history and not takes_history:
            raise DataError(
                f"{where}: history stands beside a whole conversation in layout {layout!r}; put its turns into it",
                "not_carried",
            )
        for found in parse(row, where):
            yield _within(found, system, history, where) if isinstance(found, Conversation | Preference) else found

    return parsed


def _within(record: Record, system: str | None, history: Messages, where: str) -> Record:
    """The record with the row's system message before it, and its history."""
    if system is None and not history:
        return record
    if isinstance(record, Conversation):
        return replace(record, messages=_after(record.messages, system, history, where))
    return replace(record, branches=tuple(_after(branch, system, history, where) for branch in record.branches))


def _after(messages: Messages, system: str | None, history: Messages, where: str) -> Messages:
    given = messages[:1] if messages and messages[0].role == "system" else ()
    if given and system is not None and given[0].content != system:
        raise DataError(
            f"{where}: the row's system message is not the one that its conversation begins with; keep one of them",
            "contradiction",
        )
    first = given or (() if system is None else (Message("system", system),))
    return (*first, *history, *messages[len(given) :])


def _system(row: dict[str, Any], own: tuple[str, ...], where: str) -> str | None:
    said = {key: row[key] for key in _SYSTEM if key not in own and says_something(row.get(key))}
    texts = {fields.text(value, key, where) for key, value in said.items()}
    if len(texts) > 1:
        raise DataError(f"{where}: {' and '.join(said)} are two different system messages; keep one", "contradiction")
    return next(iter(texts), None)


def _history(row: dict[str, Any], layout: str, where: str) -> Messages:
    """The rounds before a row's own: a list of pairs, question and answer."""
    rounds = row["history"]
    if not isinstance(rounds, list):
        raise DataError(f"{where}: history is {fields.kind(rounds)}, not a list of rounds; repair the row")
    turns: list[Message] = []
    roles: tuple[Role, Role] = ("user", "assistant")
    for number, pair in enumerate(rounds):
        if not isinstance(pair, list | tuple) or len(pair) != 2:
            raise DataError(f"{where}: history[{number}] is not a list of a question and its answer; repair the row")
        for index, text in enumerate(pair):
            turns.append(Message(roles[index], fields.text(text, f"history[{number}][{index}]", where)))
    return tuple(turns)


def _not_carried(where: str, key: str) -> DataError:
    return DataError(
        f"{where}: {key} is not carried into training yet, and the row would be learnt as if it were not there; "
        f'remove the key, or drop such rows (on_bad_row = "drop")',
        "not_carried",
    )


def _flag(value: Any, name: str, where: str) -> bool:
    if isinstance(value, bool | int | float) and value in (0, 1):
        return bool(value)
    raise DataError(
        f"{where}: {name} is {fields.shown(repr(value))}, and a turn is trained (1, true) or not (0, false); "
        f"set one of them",
        "not_carried",
    )


def _is_one(value: Any) -> bool:
    return isinstance(value, bool | int | float) and value == 1
