"""Columns of a stage's rows that no layout reads: what a row says, and training does not hear."""

from collections.abc import Iterator, Sequence
from typing import Any

from bactrian.data import sources
from bactrian.data.sources import beside, reader
from bactrian.errors import DataError
from bactrian.recipe import Source


class _Watched(dict[str, Any]):
    """A row, or an object in one, that knows which of its keys were asked for."""

    def __init__(self, values: dict[str, Any]):
        super().__init__({key: _watched(value) for key, value in values.items()})
        self.asked: set[str] = set()

    def __getitem__(self, key: str) -> Any:
        self.asked.add(key)
        return super().__getitem__(key)

    def get(self, key: str, default: Any = None) -> Any:
        self.asked.add(key)
        return super().get(key, default)


def _watched(value: Any) -> Any:
    if isinstance(value, dict):
        return _Watched(value)
    return [_watched(each) for each in value] if isinstance(value, list) else value


def unread(data: Sequence[Source]) -> dict[str, int]:
    """In how many rows each column has a value that is not read, the most first; `messages[].name` is a turn's key."""
    counts: dict[str, int] = {}
    for source in data:
        parse = sources.parser(source, None)
        for where, row in (each for chunk in reader.chunks(source) for each in reader.decode(chunk)):
            if isinstance(row, DataError):
                continue
            try:
                watched = _Watched(row)
                list(parse(watched, where))
                columns = set(_unread(watched, ""))
            except (DataError, RecursionError):
                continue  # a bad row, which is counted elsewhere
            for column in columns:
                counts[column] = counts.get(column, 0) + 1
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def _unread(row: _Watched, before: str) -> Iterator[str]:
    for key, value in row.items():
        if key not in row.asked:
            if beside.says_something(value):
                yield f"{before}{key}"
            continue
        for each in value if isinstance(value, list) else [value]:
            if isinstance(each, _Watched):
                yield from _unread(each, f"{before}{key}[]." if isinstance(value, list) else f"{before}{key}.")
