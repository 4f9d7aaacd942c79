"""The one door for JSON and TOML. What is read is bounded and its faults are one line; what is written is JSON to all.

Read: at most `LARGEST` bytes, UTF-8 with or without a byte-order mark, nested at most `DEEPEST` levels, no NaN or
Infinity, no whole number of more than `WIDEST` bits, no half of a surrogate pair. Written: valid JSON (RFC 8259), so a
number that is not finite becomes null.
"""

import codecs
import json
import math
import tomllib
from pathlib import Path
from typing import Any, NoReturn

from bactrian.errors import DataError, InputError

LARGEST = 256 * 2**20  # bytes; what is read through this door is settings, indices and ledgers, never a data set
DEEPEST = 100  # levels
WIDEST = 256  # bits of a whole number; TOML asks for 64, and nothing that is read here needs more


def read_bytes(
    path: Path, kind: type[InputError] = DataError, cannot: str = "cannot be read", advice: str = ""
) -> bytes:
    """The bytes of a file, at most `LARGEST`. Raises `kind`, which says that it `cannot`, why, and the `advice`."""
    try:
        if path.stat().st_size <= LARGEST:
            return path.read_bytes()
        why = f"it is larger than {LARGEST // 2**20} MiB"
    except (OSError, ValueError) as error:  # a NUL in the path
        why = getattr(error, "strerror", None) or str(error)
    raise kind("; ".join(filter(None, (f"{path}: {cannot}: {why}", advice))))


def read_json(path: Path, kind: type[InputError] = DataError, advice: str = "restore the file") -> Any:
    """The value in a JSON file. Raises `kind`: what is wrong, where, and the `advice`."""
    return parse_json(read_bytes(path, kind, advice=advice), str(path), kind, advice)


def parse_json(
    text: str | bytes, where: str, kind: type[InputError] = DataError, advice: str = "correct it", nan: bool = False
) -> Any:
    """The value of a JSON text; `where` names it. Not-finite numbers are refused unless `nan`. Raises `kind`."""
    try:
        decoded = text if isinstance(text, str) else _decoded(text)
        value = json.loads(decoded) if nan else json.loads(decoded, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise kind(f"{where}: not JSON: {_reason(error)}; {advice}") from None
    fault = fault_of(value)
    if fault is not None:
        raise kind(f"{where}: not JSON that can be used: {fault}; {advice}")
    return value


def read_toml(path: Path, kind: type[InputError] = DataError, what: str = "the file") -> dict[str, Any]:
    """The tree of a TOML file; `what` says what the file is. Raises `kind`."""
    return parse_toml(read_bytes(path, kind, f"cannot read {what}"), str(path), kind)


def parse_toml(
    text: str | bytes, where: str, kind: type[InputError] = DataError, what: str = "a TOML file"
) -> dict[str, Any]:
    """The tree of a TOML text; `where` names it, `what` says what it is. Raises `kind`."""
    try:
        tree = tomllib.loads(text if isinstance(text, str) else text.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise kind(f"{where}: not {what}: {_reason(error)}") from None
    fault = fault_of(tree)
    if fault is not None:
        raise kind(f"{where}: not {what} that can be used: {fault}")
    return tree


def dumps(value: Any, indent: int | None = None, ascii_only: bool = False) -> str:
    """JSON that every reader takes. Numbers that are not finite become null, halves of a surrogate pair are escaped."""
    value = _finite(value)
    text = json.dumps(value, indent=indent, ensure_ascii=ascii_only, allow_nan=False)
    try:
        text.encode()
    except UnicodeEncodeError:
        return json.dumps(value, indent=indent, allow_nan=False)
    return text


def encoding_of(head: bytes) -> str | None:
    """The encoding that a file's first bytes show, where it is not UTF-8: what editors call Unicode is UTF-16."""
    if head.startswith((codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE)):
        return "UTF-32"
    wide = len(head) > 1 and (head[0] == 0) != (head[1] == 0)  # no text begins with NUL
    return "UTF-16" if wide or head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) else None


def read_text(path: Path, what: str, kind: type[InputError] = DataError) -> str:
    """The text in a file, UTF-8 with or without a byte-order mark, its line ends as they are. Raises `kind`.

    what: what the file holds, as `the prompts`.
    """
    try:
        data = path.read_bytes() if path.stat().st_size <= LARGEST else None
    except (OSError, ValueError) as error:
        raise kind(f"{path}: cannot read {what}: {getattr(error, 'strerror', None) or error}; check the path") from None
    if data is None:
        raise kind(f"{path}: cannot read {what}: it is larger than {LARGEST // 2**20} MiB")
    if (encoding := encoding_of(data[:4])) is not None:
        raise kind(f"{path}: {encoding} text; save the file as UTF-8")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise kind(f"{path}:{line}: not UTF-8 text; save the file as UTF-8") from None


def fault_of(value: Any, depth: int = 0) -> str | None:
    """What keeps a value read from a document from being used: nested too deep, or text or numbers beyond all use."""
    if isinstance(value, int):
        return f"a whole number of more than {WIDEST} bits" if value.bit_length() > WIDEST else None
    if depth > DEEPEST:
        return f"nested more than {DEEPEST} levels deep"
    if isinstance(value, str):
        return None if is_text(value) else "half of a surrogate pair in a string, which is no character"
    if isinstance(value, dict):
        value = [*value.keys(), *value.values()]
    if isinstance(value, list):
        return next((fault for each in value if (fault := fault_of(each, depth + 1))), None)
    return None


def is_text(value: str) -> bool:
    """Whether a string is Unicode text: one with half of a surrogate pair cannot be encoded."""
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a number of JSON")


def _decoded(text: bytes) -> str:
    if (encoding := encoding_of(text[:4])) is not None:
        raise ValueError(f"{encoding} text, where UTF-8 is read")
    return text.decode("utf-8-sig")


def _reason(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return "nested too deep"
    if isinstance(error, UnicodeDecodeError):
        return f"not UTF-8 at byte {error.start}"
    if "integer string conversion" in str(error):
        return "a number of thousands of digits"
    return str(error)


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(each) for each in value]
    return value
