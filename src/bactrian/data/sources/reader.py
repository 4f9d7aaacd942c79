"""The rows of a data file or Hub dataset, one at a time, each with its place (`pairs.jsonl:12`).

A place counts lines in JSON files and rows elsewhere, from 1; a row of an array that does not begin a line is named by
its index, from 0 (`pairs.json[11]`). Numbers and dates of other kinds than JSON's are made such. What cannot be read is
a `DataError` of one line. `chunks` cuts a source so that many processes can share the work; the cuts
are a function of the source alone.
"""

import datetime
import hashlib
import re
import zipfile
from collections.abc import Iterator
from decimal import Decimal
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from bactrian import masking
from bactrian.data.sources import fields, folder, json_file
from bactrian.errors import DataError
from bactrian.recipe import File

_CHUNK_BYTES = 4 << 20  # of lines
_CHUNK_ROWS = 1000  # of anything else
_ODD = re.compile(r"decimal|halffloat|binary|date|time|duration")  # types of columns that JSON does not have

Row = tuple[str, dict[str, Any]]


class Chunk(NamedTuple):
    """Neighbouring rows of a source, as they lie in its file.

    rows: lines as bytes, or values, each with its place, or an Arrow table whose first row has the number `first`.
    share: how much of the source has been read with this chunk, from 0 to 1.
    """

    where: str
    rows: Any
    first: int
    share: float


def read(source: File) -> Iterator[Row]:
    """Each row with its place, the first `source.limit` of them. Raises `DataError`, also where there is no row."""
    for chunk in chunks(source):
        for where, row in decode(chunk):
            if isinstance(row, DataError):
                raise row
            yield where, row


def chunks(source: File) -> Iterator[Chunk]:
    """The source, cut. Raises `DataError` where it cannot be read on, after what comes before; and if it is empty."""
    empty, left = True, source.limit
    for chunk in _hub_chunks(source) if source.path.startswith("hf:") else _local_chunks(source):
        rows = len(chunk.rows)
        if left is not None and rows > left:
            kept = chunk.rows[:left] if isinstance(chunk.rows, list) else chunk.rows.slice(0, left)
            chunk = chunk._replace(rows=kept)
        empty = False
        yield chunk
        left = None if left is None else left - rows
        if left is not None and left <= 0:
            break
    if empty:
        raise DataError(f"{source.path}: there is no row in it; write one, or take it out of the recipe")


def size(source: File) -> int:
    """How large a source is beside others, in megabytes, at least 1; a Hub dataset counts as 100."""
    if source.path.startswith("hf:"):
        return 100
    return max(1, sum(file.stat().st_size for file in files(source) if file.exists()) // 1_000_000)


def files(source: File) -> list[Path]:
    """The files of a source that lies here, in their order. Raises `DataError` where its split is not all there."""
    path = Path(source.path)
    if path.is_dir() and not path.name.endswith(folder.SUFFIXES):
        return folder.files(path, source.split)
    if source.split != "train":
        shown = fields.shown(repr(source.split))
        raise DataError(f"{path}: split is {shown}, and one file has no splits; leave split out, or name a folder")
    return [path]


def fingerprint(source: File) -> str:
    """Equal for two sources only if they have the same rows: of the bytes of their files. Raises `DataError`."""
    if source.path.startswith("hf:"):
        return f"{source.path} {source.split} {_hub_rows(source)._fingerprint}"
    path = Path(source.path)
    digest = hashlib.sha256()
    try:
        for file in files(source):
            digest.update(f"{file.name} {file.stat().st_size}\n".encode())
            with file.open("rb") as stream:
                while piece := stream.read(1 << 20):
                    digest.update(piece)
    except OSError as error:
        raise json_file.unreadable(path, error) from None
    return digest.hexdigest()


def decode(chunk: Chunk) -> Iterator[tuple[str, dict[str, Any] | DataError]]:
    """The rows of a chunk, each with its place; what is no row is the error that says so."""
    for number, row in chunk.rows if isinstance(chunk.rows, list) else _table_rows(chunk):
        where = f"{chunk.where}{number}"
        try:
            value = json_file.decode(where, row) if isinstance(row, bytes) else row
        except DataError as error:
            yield where, error
            continue
        if isinstance(value, dict):
            yield where, value
        else:
            what = f"{where}: the row is {fields.kind(value)}, not a JSON object; repair or remove it"
            yield where, DataError(what, "wrong_type")


def plain(value: Any) -> Any:
    """A value as JSON has it: numbers are numbers, days and times their ISO text, bytes the text that they are.

    Bytes that are no text stay what they are, for whoever reads them to refuse by the column's name.
    """
    if isinstance(value, dict):
        return {key: plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [plain(each) for each in value]
    if isinstance(value, Decimal):
        return int(value) if value.is_finite() and value == value.to_integral_value() else float(value)
    if isinstance(value, datetime.date | datetime.time):
        return value.isoformat()
    if isinstance(value, datetime.timedelta):
        return value.total_seconds()
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError:
            return value
    if type(value).__module__ == "numpy":  # a float16
        return value.item()
    return value


def index_of(where: str) -> int:
    """The number of a row in its file, from 0: of its place `a.jsonl:12`, which counts from 1, or `a.json[11]`."""
    at = re.search(r"\[(\d+)\]$|:(\d+)$", where)
    assert at is not None, where
    return int(at[1]) if at[1] else int(at[2]) - 1


def _table_rows(chunk: Chunk) -> Iterator[tuple[str, Any]]:
    try:
        rows = chunk.rows.to_pylist()
        if _ODD.search(str(chunk.rows.schema)):
            rows = [plain(row) for row in rows]
        yield from ((f":{number}", row) for number, row in enumerate(rows, chunk.first))
    except UnicodeDecodeError as error:
        raise _not_parquet(chunk.where, chunk.first, error) from None


def _local_chunks(source: File) -> Iterator[Chunk]:
    """The files of a source, one after the other: the shards of a data set."""
    listed = files(source)
    for index, file in enumerate(listed):
        for chunk in _file_chunks(file, source.limit):
            yield chunk._replace(share=(index + chunk.share) / len(listed))


def _file_chunks(path: Path, limit: int | None) -> Iterator[Chunk]:
    suffix = "".join(path.suffixes[-2:] if path.suffix == ".gz" else path.suffixes[-1:])
    if suffix in (".jsonl", ".json", ".jsonl.gz", ".json.gz"):
        return _listed_chunks(path, islice(json_file.read(path), limit))
    if suffix == ".parquet":
        return _parquet_chunks(path)
    if suffix == ".xlsx":
        return _listed_chunks(path, islice(_sheet_rows(path), limit))
    raise DataError(
        f"{path}: the name does not say what the file is; it should end in .jsonl, .json (either may be followed by "
        f".gz), .parquet or .xlsx, or be the folder of a data set"
    )


def _listed_chunks(path: Path, rows: Iterator[tuple[str, Any, float]]) -> Iterator[Chunk]:
    listed: list[tuple[str, Any]] = []
    size, share, broken = 0, 0.0, None
    while broken is None:
        try:
            place, row, share = next(rows)
        except StopIteration:
            break
        except DataError as error:
            broken = error  # after the rows before it, one of which may be broken too
            break
        listed.append((place, row))
        size += len(row) if isinstance(row, bytes) else _CHUNK_BYTES // _CHUNK_ROWS
        if size >= _CHUNK_BYTES:
            yield Chunk(str(path), listed, 1, share)
            listed, size = [], 0
    if listed:
        yield Chunk(str(path), listed, 1, share)
    if broken is not None:
        raise broken


def _sheet_rows(path: Path) -> Iterator[tuple[str, Any, float]]:
    """The rows of a workbook's first sheet, whose first row names the columns."""
    import openpyxl
    from openpyxl.utils.exceptions import InvalidFileException

    try:
        book = openpyxl.load_workbook(path, read_only=True, data_only=True)
        rows = list(book.worksheets[0].iter_rows(values_only=True))
        book.close()
    except OSError as error:
        raise json_file.unreadable(path, error) from None
    except (InvalidFileException, zipfile.BadZipFile, KeyError, ValueError) as error:
        raise DataError(
            f"{path}: not a readable workbook ({fields.shown(str(error))}); save it as .xlsx again"
        ) from None
    columns = [str(name) for name in rows[0]] if rows else []
    for number, row in enumerate(rows[1:], 2):
        if any(value is not None for value in row):
            yield f":{number}", plain(dict(zip(columns, row, strict=False))), number / len(rows)


def _parquet_chunks(path: Path) -> Iterator[Chunk]:
    import pyarrow
    from pyarrow import parquet

    number = 1
    try:
        with parquet.ParquetFile(path) as file:
            total = max(file.metadata.num_rows, 1)
            for batch in file.iter_batches(batch_size=_CHUNK_ROWS):
                yield Chunk(str(path), batch, number, (number + len(batch) - 1) / total)
                number += len(batch)
    except OSError as error:
        raise json_file.unreadable(path, error) from None
    except (pyarrow.ArrowException, UnicodeDecodeError) as error:
        raise _not_parquet(str(path), number, error) from None


def _not_parquet(where: str, number: int, error: Exception) -> DataError:
    what = fields.shown(str(error), 200)
    return DataError(f"{where}:{number}: not readable as parquet: {what}; fetch or write the file again")


def _hub_chunks(source: File) -> Iterator[Chunk]:
    """Rows of one split of a Hub dataset, from the library's cache once they are there."""
    rows = _hub_rows(source)
    number = 1
    for table in rows.with_format("arrow").iter(batch_size=_CHUNK_ROWS):
        yield Chunk(f"{source.path}:{source.split}", table, number, (number + len(table) - 1) / len(rows))
        number += len(table)


def _hub_rows(source: File) -> Any:
    masking.check_hub_token()
    import datasets
    from datasets.exceptions import DatasetsError

    name, _, revision = source.path.removeprefix("hf:").partition("@")
    try:
        return datasets.load_dataset(name, split=source.split, revision=revision or None)
    except (DatasetsError, OSError, ValueError, RuntimeError) as error:
        why = fields.shown(masking.mask_line(str(error)), 200)
        raise DataError(f"{source.path}: {_advice(error, source.split)} ({why})") from None


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
