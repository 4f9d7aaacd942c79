"""Where a benchmark's data is: in the user's folder, in the layout its authors publish, or on the Hub."""

import csv
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bactrian.data.sources import reader
from bactrian.errors import DataError, printable
from bactrian.evaluate import published
from bactrian.masking import check_hub_token, mask_line
from bactrian.recipe import Source

Rows = list[dict[str, Any]]


@dataclass(frozen=True)
class Origin:
    """A folder of the user's, or None for the Hub."""

    folder: Path | None

    def file(self, what: str, names: Sequence[str]) -> Path:
        """The first of `names` in the folder or one level down. Raises `DataError`."""
        found = published.beside(self.folder, tuple(names))
        if found is None:
            raise DataError(f"{self.folder}: no {what} in it; it should hold {' or '.join(names)}")
        return found

    def files(self, what: str, pattern: str) -> list[Path]:
        """All files that match in the folder, up to three levels down, sorted. Raises `DataError`."""
        assert self.folder is not None
        if not self.folder.is_dir():
            raise DataError(f"{self.folder}: there is no such folder; give one that holds the published files")
        for depth in ("", "*/", "*/*/"):
            found = sorted(self.folder.glob(f"{depth}{pattern}"))
            if found:
                return found
        raise DataError(f"{self.folder}: no {what} in it; it should hold {pattern}")


def hub(name: str, config: str | None, split: str) -> Rows:
    """Rows of a Hub dataset. Raises `DataError`."""
    check_hub_token()
    import datasets

    try:
        return [dict(row) for row in datasets.load_dataset(name, config, split=split)]
    except Exception as error:  # the library raises whatever its many parts raise
        why = printable(mask_line(str(error)), 160)
        raise DataError(
            f"hf:{name}: cannot be loaded ({why}); go online, or give the published files' folder with --data"
        ) from None


def rows(path: Path) -> Rows:
    """Rows of a JSON, JSONL or Parquet file. Raises `DataError`."""
    return [row for _, row in reader.read(Source(path=str(path), format="messages"))]


def columns(path: Path, row: dict[str, Any], wanted: Sequence[str]) -> dict[str, Any]:
    """The row, which must have these columns. Raises `DataError`."""
    missing = [name for name in wanted if name not in row]
    if missing:
        raise DataError(f"{path}: a row without {', '.join(missing)}; is it the published file?")
    return row


def document(path: Path) -> Any:
    """The whole of a JSON file. Raises `DataError`."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read as JSON: {error}; fetch it again") from None


def table(path: Path) -> list[list[str]]:
    """The rows of a CSV file without a header. Raises `DataError`."""
    try:
        with path.open(newline="", encoding="utf-8") as file:
            return list(csv.reader(file))
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read as CSV: {error}; fetch it again") from None
