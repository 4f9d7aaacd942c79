"""JSON files, gzipped or not, read as they stream by: a value per line, one array of values, or values over many lines.

Lines come out as bytes, to be decoded elsewhere; other values must be decoded to know where they end. A row is named by
the line on which it begins; those that begin on the line of another, or of the bracket, by their index in the array.
"""

import codecs
import gzip
import json
import re
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, cast

from bactrian.data.sources import fields
from bactrian.errors import DataError
from bactrian.files import documents

_PIECE = 1 << 20  # bytes read at once
_FIRST_LINE = 16 << 20  # bytes looked at to tell how the values lie
_FIRST_VALUE = 16 << 20  # and where the first goes on over lines
_SPACE = re.compile(r"[ \t\r\n]*")


def read(path: Path) -> Iterator[tuple[str, Any, float]]:
    """Rows in order: its place (`:12`, a line, or `[11]`, an index), bytes (of a line) or value, and the share read.

    Raises `DataError` where the file cannot be read on.
    """
    with _open(path) as (stream, raw):
        size = max(path.stat().st_size, 1)
        text = _Pieces(path, stream)
        begin = b""
        while len(begin) < _FIRST_LINE and (piece := text.read()):
            begin += piece
            first = begin.removeprefix(codecs.BOM_UTF8).lstrip()
            if b"\n" in first or first.startswith(b"["):
                break
        if (encoding := documents.encoding_of(begin[:4])) is not None:
            raise DataError(f"{path}: {encoding} text; save the file as UTF-8")
        text.give_back(begin)
        first = begin.removeprefix(codecs.BOM_UTF8).lstrip()
        if first.startswith(b"["):
            rows: Iterator[tuple[str, Any]] = _array(path, text)
        elif _is_unfinished(first.partition(b"\n")[0]) and _begins_with_a_value(text):
            rows = _values(path, text)
        else:
            rows = ((f":{number}", line) for number, line in _lines(text))
        for place, row in rows:
            yield place, row, raw.tell() / size


def _is_unfinished(line: bytes) -> bool:
    """Whether a line begins an object that may go on below it, as in a file printed for people."""
    try:
        json.loads(line)
    except json.JSONDecodeError as error:
        return line.startswith(b"{") and not error.doc[error.pos :].strip()
    except (ValueError, RecursionError):
        return False
    return False


def _begins_with_a_value(text: "_Pieces") -> bool:
    """Whether a text's first value is whole, over however many lines; otherwise its first line is a broken row."""
    begin = b""
    while len(begin) < _FIRST_VALUE and (piece := text.read()):
        begin += piece
    text.give_back(begin)
    try:
        json.JSONDecoder().raw_decode(begin.decode("utf-8-sig", errors="replace").lstrip())
    except (ValueError, RecursionError):
        return False
    return True


def decode(where: str, line: bytes) -> Any:
    """The value in a line. Raises `DataError`; `where` ends in the line's number."""
    try:
        return json.loads(line.decode("utf-8-sig").rstrip())
    except UnicodeDecodeError as error:
        raise _not_utf8(where, error.start + 1) from None
    except (ValueError, RecursionError) as error:
        raise not_json(where, error) from None


def not_json(where: str, error: Exception, column: int = 0) -> DataError:
    """What is wrong with a text that should be JSON; `column`: how many of its line's characters come before it."""
    if isinstance(error, json.JSONDecodeError):
        what = f"{error.msg} at column {error.colno + column}"
    else:
        what = "nested too deep" if isinstance(error, RecursionError) else fields.shown(str(error), 200)
    return DataError(f"{where}: not JSON: {what}; fix or remove the line", "not_json")


def unreadable(path: Path, error: OSError) -> DataError:
    return DataError(f"{path}: cannot read the data: {error.strerror or error}; check the path in the recipe")


def _not_utf8(where: str, byte: int) -> DataError:
    return DataError(f"{where}: not UTF-8 text (byte {byte}); save the file as UTF-8", "not_utf8")


@contextmanager
def _open(path: Path) -> Iterator[tuple[BinaryIO, BinaryIO]]:
    """The file's content, and the file itself, whose place says how far it has been read."""
    try:
        with path.open("rb") as raw:
            yield (cast(BinaryIO, gzip.GzipFile(fileobj=raw)) if path.suffix == ".gz" else raw), raw
    except OSError as error:
        raise unreadable(path, error) from None


class _Pieces:
    """The bytes of a stream, piece by piece. `line` counts the lines that have been read, for errors, from 1."""

    def __init__(self, path: Path, stream: BinaryIO):
        self.path, self.line = path, 1
        self._stream = stream
        self._given_back = b""

    def read(self) -> bytes:
        """The next piece, empty at the end. Raises `DataError` where the gzip format breaks."""
        if self._given_back:
            piece, self._given_back = self._given_back, b""
        else:
            try:
                piece = self._stream.read1(_PIECE)  # pyright: ignore[reportAttributeAccessIssue]
            except (EOFError, zlib.error, gzip.BadGzipFile):
                raise DataError(
                    f"{self.path}:{self.line}: not gzip, or damaged, or cut short; fetch the file again"
                ) from None
        self.line += piece.count(b"\n")
        return piece

    def give_back(self, piece: bytes) -> None:
        self._given_back = piece
        self.line -= piece.count(b"\n")


def _lines(pieces: _Pieces) -> Iterator[tuple[int, bytes]]:
    # As bytes, whose lines end at a newline alone: JSON text may hold the other separators of Unicode.
    number = 1
    begun: list[bytes] = []
    while piece := pieces.read():
        first, *more = piece.split(b"\n")
        begun.append(first)
        for after in more:
            line = b"".join(begun)
            if line.removeprefix(codecs.BOM_UTF8).strip():
                yield number, line
            number += 1
            begun = [after]
    line = b"".join(begun)
    if line.removeprefix(codecs.BOM_UTF8).strip():
        yield number, line


class _Window:
    """The part of a text that is being read, and where it begins: line and column, counted from 1 and 0."""

    def __init__(self, path: Path, pieces: _Pieces):
        self.path, self.text, self.line, self.column = path, "", 1, 0
        self._seen, self._seen_line = 0, 1  # a place, and the line it is on
        self._pieces = pieces
        self._decoder = codecs.getincrementaldecoder("utf-8-sig")()
        self._bytes = 0  # of the line that the next piece goes on with

    def more(self) -> bool:
        """Read on; false at the end of the text."""
        line = self._pieces.line
        piece = self._pieces.read()
        try:
            self.text += self._decoder.decode(piece, final=not piece)
        except UnicodeDecodeError as error:
            before = error.object[: error.start]
            lines = before.count(b"\n")
            byte = len(before) - before.rfind(b"\n") if lines else self._bytes + error.start + 1
            raise _not_utf8(f"{self.path}:{line + lines}", byte) from None
        held = len(self._decoder.getstate()[0])
        last = piece.rfind(b"\n")
        self._bytes = (len(piece) - last - 1 if last >= 0 else self._bytes + len(piece)) - held
        return bool(piece)

    def after_space(self, place: int) -> int:
        """The first place from here that is not blank; the text's end if there is none."""
        while True:
            found = _SPACE.match(self.text, place)
            place = found.end() if found else place
            if place < len(self.text) or not self.more():
                return place

    def line_at(self, place: int) -> int:
        """The line that a place is on; places never go back."""
        self._seen_line += self.text.count("\n", self._seen, place)
        self._seen = place
        return self._seen_line

    def forget(self, place: int) -> int:
        """Give up what lies before a place; returns where the place is now."""
        self.line_at(place)
        self._seen = 0
        lines = self.text.count("\n", 0, place)
        self.line += lines
        self.column = place - self.text.rfind("\n", 0, place) - 1 if lines else self.column + place
        self.text = self.text[place:]
        return 0

    def refusal(self, error: json.JSONDecodeError) -> DataError:
        place = f"{self.path}:{self.line + error.lineno - 1}"
        return not_json(place, error, self.column if error.lineno == 1 else 0)


def _values(path: Path, pieces: _Pieces) -> Iterator[tuple[str, Any]]:
    """Values one after the other, each over as many lines as it likes."""
    window = _Window(path, pieces)
    place = window.after_space(0)
    while place < len(window.text):
        if place > _PIECE // 2:
            place = window.forget(place)
        line = window.line_at(place)
        value, end = _value(window, place)
        yield f":{line}", value
        place = window.after_space(end)


def _array(path: Path, pieces: _Pieces) -> Iterator[tuple[str, Any]]:
    window = _Window(path, pieces)
    bracket = window.after_space(0)
    before, index = window.line_at(bracket), 0
    place = window.after_space(bracket + 1)
    while not window.text.startswith("]", place):
        if place > _PIECE // 2:  # not for every row: what stays is copied
            place = window.forget(place)
        line = window.line_at(place)
        value, end = _value(window, place)
        yield f":{line}" if line > before else f"[{index}]", value
        before, index = line, index + 1
        place = window.after_space(end)
        if window.text.startswith(",", place):
            place = window.after_space(place + 1)
        elif not window.text.startswith("]", place):
            raise window.refusal(json.JSONDecodeError("no comma or ] after a row", window.text, place))
    rest = window.after_space(place + 1)
    if rest < len(window.text):
        raise window.refusal(json.JSONDecodeError("something follows the array", window.text, rest))


def _value(window: _Window, place: int) -> tuple[Any, int]:
    """The value at a place of the window, and where it ends. Raises `DataError`."""
    decoder = json.JSONDecoder()
    wanted = 0
    while True:
        try:
            value, end = decoder.raw_decode(window.text, place)
            if end < len(window.text) or not window.more():
                return value, end
            continue  # a number may go on in the next piece
        except json.JSONDecodeError as error:
            # What is broken in the middle stays broken; a string without an end, or an end, may lack the next piece.
            middle = error.pos < len(window.text) - 16 and not error.msg.startswith("Unterminated string")
            refusal = window.refusal(error)
            if middle or not window.more():
                raise refusal from None
        except (ValueError, RecursionError) as error:
            raise not_json(f"{window.path}:{window.line_at(place)}", error) from None
        wanted = max(2 * len(window.text), wanted)  # twice as much each time: a long row is not decoded for every piece
        while len(window.text) < wanted and window.more():
            pass
