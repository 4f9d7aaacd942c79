"""Parquet shards of a data set, each written whole, with the schema of the published ones.

Conversations: `dataset`, `id`, `messages`, as allenai/tulu-v2-sft-mixture; where some assistant's turn is masked,
messages have a `weight` too, 0 or 1 of an assistant's turn and null of others. Pairs: `dataset`, `id`, `prompt`,
`chosen`, `rejected`, the last two whole conversations, `score_chosen` and `score_rejected` (null where nobody scored),
as HuggingFaceH4/ultrafeedback_binarized. Rankings: `ranked`, whole conversations best first, and their `scores`.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from bactrian.data.build import store
from bactrian.data.chat import Chat
from bactrian.data.records import Conversation, Messages, Preference, Record
from bactrian.errors import ChatError, DataError
from bactrian.files import digests, sealed
from bactrian.files.atomic import replacing

_GROUP = 1000  # rows in a row group: what a writer holds in memory


class Task(NamedTuple):
    """One shard: the places of its records in the store, int64 [rows, 4]: source, chunk, offset, length."""

    number: int
    of: int
    places: np.ndarray


class Done(NamedTuple):
    """Rows of a shard, and by source how many tokens they have and how many of them are learnt."""

    number: int
    rows: int
    tokens: dict[int, int]
    learned: dict[int, int]


def name(number: int, of: int) -> str:
    return f"train-{number:05}-of-{of:05}.parquet"


def start(chat: Chat | None, parts: Path, out: Path, kind: str, weights: bool) -> Callable[[Task], Done]:
    """What writes a shard of the records in `parts`, of a kind of `store.KINDS`, into `out`.

    weights: whether messages have a weight, as some of the data set is masked. Raises `DataError` where a chat cannot
    render.
    """

    def write(task: Task) -> Done:
        done = Done(task.number, len(task.places), {}, {})
        with store.Reader(parts) as reader, replacing(out / name(task.number, task.of)) as temporary:
            _write(temporary, _groups(task, reader, chat, done), kind, weights)
        digest = digests.compute(out / name(task.number, task.of))
        counted = json.dumps([digest, done.rows, done.tokens, done.learned])
        sealed.write(_count_path(parts, task.number), counted.encode())
        return done

    return write


def finished(parts: Path, out: Path, number: int, of: int) -> Done | None:
    """The counts of a shard that is there already, and whole."""
    content, shard = sealed.read(_count_path(parts, number)), out / name(number, of)
    if content is None or not shard.exists():
        return None
    digest, rows, tokens, learned = json.loads(content)
    if digests.compute(shard) != digest:
        return None
    return Done(number, rows, *({int(key): value for key, value in each.items()} for each in (tokens, learned)))


def _count_path(parts: Path, number: int) -> Path:
    return parts / f"shard-{number:05}.json"


def _groups(task: Task, reader: store.Reader, chat: Chat | None, done: Done) -> Iterator[list[Record]]:
    for begin in range(0, len(task.places), _GROUP):
        places = task.places[begin : begin + _GROUP].tolist()
        records = [reader.record(*place) for place in places]
        if chat is not None:
            _count(records, [place[0] for place in places], chat, done)
        yield records


def _count(records: Sequence[Record], sources: Sequence[int], chat: Chat, done: Done) -> None:
    for source, example in zip(sources, chat.render_many(records), strict=True):
        if isinstance(example, ChatError):
            raise DataError(f"{example}; or leave [tokenizer] out of the recipe")
        done.tokens[source] = done.tokens.get(source, 0) + len(example.tokens)
        done.learned[source] = done.learned.get(source, 0) + int(example.learn.sum())


def _write(path: Path, groups: Iterator[list[Record]], kind: str, weights: bool) -> None:
    import pyarrow
    from pyarrow import parquet

    weight = [("weight", pyarrow.int64())] if weights else []
    message = pyarrow.struct([("role", pyarrow.string()), ("content", pyarrow.string()), *weight])
    turns = pyarrow.list_(message)
    types = {key: turns for key in ("messages", "chosen", "rejected")}
    types |= {key: pyarrow.float64() for key in ("score_chosen", "score_rejected")}
    types |= {"ranked": pyarrow.list_(turns), "scores": pyarrow.list_(pyarrow.float64())}
    writer = None
    try:
        for records in groups:
            columns = _columns(records, kind)
            schema = pyarrow.schema([(key, types.get(key, pyarrow.string())) for key in columns])
            writer = writer or parquet.ParquetWriter(path, schema, compression="zstd")
            writer.write_table(pyarrow.Table.from_pydict(columns, schema=schema))
    finally:
        if writer is not None:
            writer.close()


def _columns(records: Sequence[Record], kind: str) -> dict[str, list[Any]]:
    columns: dict[str, list[Any]] = {
        "dataset": [record.dataset for record in records],
        "id": [record.id for record in records],
    }
    if kind == "conversations":
        talks = [record.messages for record in records if isinstance(record, Conversation)]
        return {**columns, "messages": [_turns(messages) for messages in talks]}
    preferences = [record for record in records if isinstance(record, Preference)]
    if kind == "rankings":
        ranked = [[_turns(branch) for branch in record.branches] for record in preferences]
        return {**columns, "ranked": ranked, "scores": [list(record.scores) for record in preferences]}
    chosen, rejected = zip(*(record.branches for record in preferences), strict=True)
    best, other = zip(*(record.scores or (None, None) for record in preferences), strict=True)
    return {
        **columns,
        "prompt": [next((turn.content for turn in branch if turn.role == "user"), "") for branch in chosen],
        "chosen": [_turns(branch) for branch in chosen],
        "rejected": [_turns(branch) for branch in rejected],
        "score_chosen": list(best),
        "score_rejected": list(other),
    }


def _turns(messages: Messages) -> list[dict[str, Any]]:
    """The messages as rows; a schema without weights leaves them out, as it is where none is masked."""
    weights = (int(turn.trained) if turn.role == "assistant" else None for turn in messages)
    return [
        {"role": turn.role, "content": turn.content, "weight": weight}
        for turn, weight in zip(messages, weights, strict=True)
    ]
