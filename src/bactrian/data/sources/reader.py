"""The rows of a data file or Hub dataset, one at a time, each with its place (`pairs.jsonl:12`).

A place counts lines in JSON files (a row of an array has the line on which it begins) and rows elsewhere, from 1. What
cannot be read is a `DataError` of one line.
"""

import gzip
import json
import re
import zlib
from collections.abc import Iterable, Iterator
from itertools import chain, islice
from pathlib import Path
from typing import Any

from bactrian.data.sources import fields
from bactrian.errors import DataError
from bactrian.recipe import File

Rows = Iterator[tuple[str, Any]]

_SPACE = re.compile(r"[ \t\r\n]*")


def read(source: File) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each row with its place, the first `source.limit` of them. Raises `DataError`, also where there is no row."""
    rows = _hub_rows(source) if source.path.startswith("hf:") else _file_rows(Path(source.path))
    empty = True
    for where, row in islice(rows, source.limit):
        if not isinstance(row, dict):
            raise DataError(f"{where}: the row is {fields.kind(row)}, not a JSON object; repair or remove it")
        empty = False
        yield where, row
    if empty:
        raise DataError(f"{source.path}: there is no row in it; write one, or take it out of the recipe")


def _file_rows(path: Path) -> Rows:
    suffix = "".join(path.suffixes[-2:] if path.suffix == ".gz" else path.suffixes[-1:])
    if suffix in (".jsonl", ".json", ".jsonl.gz", ".json.gz"):
        return _json_rows(path)
    if suffix == ".parquet":
        return _parquet_rows(path)
    raise DataError(
        f"{path}: the name does not say what the file is; "
        f"it should end in .jsonl, .json (either may be followed by .gz) or .parquet"
    )


def _json_rows(path: Path) -> Rows:
    """Rows of a file with a JSON value per line, or with one array of them."""
    lines = ((number, line) for number, line in _lines(path) if line.strip())
    first = next(lines, None)
    if first and first[1].lstrip().startswith("["):
        yield from _array_rows(path, [first, *lines])
        return
    for number, line in chain([first] if first else [], lines):
        try:
            value = json.loads(line.rstrip())
        except (ValueError, RecursionError) as error:
            raise _not_json(path, number, error) from None
        yield f"{path}:{number}", value


def _array_rows(path: Path, lines: Iterable[tuple[int, str]]) -> Rows:
    """Rows of one array, decoded one by one, so that each knows its line."""
    numbered = dict(lines)
    text = "".join(numbered.get(number, "\n") for number in range(1, max(numbered) + 1))
    decoder = json.JSONDecoder()
    place = _after_space(text, text.index("[") + 1)
    line, counted = 1, 0
    while not text.startswith("]", place):
        line, counted = line + text.count("\n", counted, place), place
        try:
            value, end = decoder.raw_decode(text, place)
        except (ValueError, RecursionError) as error:
            raise _not_json(path, getattr(error, "lineno", line), error) from None
        yield f"{path}:{line}", value
        place = _after_space(text, end)
        if text.startswith(",", place):
            place = _after_space(text, place + 1)
        elif not text.startswith("]", place):
            error = json.JSONDecodeError("no comma or ] after a row", text, place)
            raise _not_json(path, error.lineno, error)
    rest = _after_space(text, place + 1)
    if rest < len(text):
        error = json.JSONDecodeError("something follows the array", text, rest)
        raise _not_json(path, error.lineno, error)


def _after_space(text: str, place: int) -> int:
    found = _SPACE.match(text, place)
    return found.end() if found else place


def _not_json(path: Path, line: int, error: Exception) -> DataError:
    if isinstance(error, json.JSONDecodeError):
        what = f"{error.msg} at column {error.colno}"
    else:
        what = "nested too deep" if isinstance(error, RecursionError) else fields.shown(str(error), 200)
    return DataError(f"{path}:{line}: not JSON: {what}; fix or remove the line")


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Numbered lines of a text file, gzipped or not. A byte order mark is no part of the first."""
    number = 0
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as stream:
            # As bytes, whose lines end at a newline alone: JSON text may hold the other separators of Unicode.
            for number, line in enumerate(stream, 1):
                yield number, line.decode("utf-8-sig" if number == 1 else "utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}:{number}: not UTF-8 text (byte {error.start + 1}); save the file as UTF-8") from None
    except (EOFError, zlib.error, gzip.BadGzipFile):
        raise DataError(f"{path}:{number + 1}: not gzip, or damaged, or cut short; fetch the file again") from None
    except OSError as error:
        raise _unreadable(path, error) from None


def _unreadable(path: Path, error: OSError) -> DataError:
    return DataError(f"{path}: cannot read the data: {error.strerror or error}; check the path in the recipe")


def _parquet_rows(path: Path) -> Rows:
    import pyarrow
    from pyarrow import parquet

    number = 0
    try:
        with parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=256):
                for row in batch.to_pylist():
                    number += 1
                    yield f"{path}:{number}", row
    except OSError as error:
        raise _unreadable(path, error) from None
    except (pyarrow.ArrowException, UnicodeDecodeError) as error:
        what = fields.shown(str(error), 200)
        raise DataError(
            f"{path}:{number + 1}: not readable as parquet: {what}; fetch or write the file again"
        ) from None


def _hub_rows(source: File) -> Rows:
    """Rows of one split of a Hub dataset, from the library's cache once they are there."""
    import datasets
    from datasets.exceptions import DatasetsError

    name, _, revision = source.path.removeprefix("hf:").partition("@")
    try:
        rows = datasets.load_dataset(name, split=source.split, revision=revision or None)
        for number, row in enumerate(rows, 1):
            yield f"{source.path}:{source.split}:{number}", row
    except (DatasetsError, OSError, ValueError, RuntimeError) as error:
        raise DataError(f"{source.path}: {_advice(error, source.split)} ({fields.shown(str(error), 200)})") from None


def _advice(error: Exception, split: str) -> str:
    if "gated" in str(error):
        return "a gated dataset; accept its terms on its page and log in with `hf auth login`"
    if isinstance(error, ConnectionError):
        return "the Hub cannot be reached and the dataset is not in the cache; go online, or give a file instead"
    if isinstance(error, FileNotFoundError):
        return "no such dataset on the Hub, or a private one; check ORG/NAME, or log in with `hf auth login`"
    if isinstance(error, ValueError):
        return f"cannot be loaded; does it have the split {split!r}?"
    return "cannot be loaded"
