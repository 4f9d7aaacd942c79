"""A file of JSON lines that is only added to: a line is on disk before what it says is used.

A half-written last line, which a kill leaves, is cut off when the file is opened.
"""

import fcntl
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from bactrian.errors import DataError, RunError
from bactrian.files import documents
from bactrian.files.atomic import writing
from bactrian.masking import masked

Row = dict[str, Any]


class Journal:
    """Such a file, open for one process. `take` is handed every line, those that are there and those that are added."""

    def __init__(self, path: Path, what: str, take: Callable[[Row], None]):
        self.path = path
        self._take = take
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = path.open("a+b")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._file.close()
            raise RunError(f"{path}: another process is working there; wait for it or stop it") from None
        self._read(what)

    def close(self) -> None:
        self._file.close()

    def __del__(self):
        if hasattr(self, "_file"):
            self._file.close()

    def add(self, row: Row) -> None:
        """Write one line, without a secret; it is on disk when this returns."""
        row = masked(row)
        # JSON's escapes keep lone surrogates, which UTF-8 cannot.
        line = documents.dumps(row, ascii_only=True).encode() + b"\n"
        with writing(self.path):
            self._file.write(line)
            self._file.flush()
            os.fsync(self._file.fileno())
        self._take(row)

    def _read(self, what: str) -> None:
        self._file.seek(0)
        whole = 0
        for number, line in enumerate(self._file, start=1):
            if not line.endswith(b"\n"):
                break
            try:
                self._take(json.loads(line.decode("utf-8", "surrogatepass")))
            except (ValueError, RecursionError) as error:
                why = first_fault(error) if isinstance(error, ValidationError) else str(error) or "nested too deep"
                hint = "remove it or choose another folder with --out"
                raise DataError(f"{self.path}:{number}: not a line of {what} ({why}); {hint}") from None
            whole += len(line)
        with writing(self.path):
            self._file.truncate(whole)


def first_fault(error: ValidationError) -> str:
    """The first thing that is wrong with a row, by its column."""
    first = error.errors()[0]
    column = ".".join(map(str, first["loc"]))
    return f"{column}: {first['msg']}" if column else first["msg"]
