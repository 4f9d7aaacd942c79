"""The safetensors container: eight bytes of length, a JSON header, then the tensors' bytes.

Read and written here, not through the library, so that a file is streamed in both directions: the library reads whole
tensors, and wants every one of them at once when it writes.
"""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import ml_dtypes
import numpy as np
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from bactrian.errors import ModelError
from bactrian.files import documents, schemas

_LENGTH_BYTES = 8
_LARGEST_HEADER = 100_000_000  # the format's own limit
_DTYPES = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}


_Size = Annotated[int, Field(ge=0, lt=2**63)]


class _Entry(BaseModel):
    """A tensor in the header."""

    model_config = ConfigDict(strict=True)

    dtype: str
    shape: list[_Size]
    data_offsets: Annotated[list[_Size], Field(min_length=2, max_length=2)]


_HEADER = TypeAdapter(dict[str, _Entry])


class Stored(NamedTuple):
    """One tensor in a file: `dtype` by its name in the format, `start` and `stop` in bytes from the file's start."""

    path: Path
    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int


def entries(path: Path) -> dict[str, Stored]:
    """The tensors of a file by name, none of them read. Raises `ModelError` where the file is cut or not the format.

    As the library has it, they lie one after the other without holes and end where the file does.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            length = int.from_bytes(file.read(_LENGTH_BYTES), "little")
            if size < _LENGTH_BYTES or not 0 < length <= min(_LARGEST_HEADER, size - _LENGTH_BYTES):
                raise ModelError(f"{path}: not a safetensors file, or cut in its header; download or export it again")
            text = file.read(length)
    except OSError as error:
        raise ModelError(f"{path}: cannot be read: {error.strerror}") from error
    where = f"{path}: not a safetensors file: its header"
    header = documents.parse_json(text, where, ModelError, "download or export it again")
    if isinstance(header, dict):
        header.pop("__metadata__", None)
    found = {}
    at = start = _LENGTH_BYTES + length
    placed = schemas.validate(_HEADER, header, where, ModelError)
    for name, entry in sorted(placed.items(), key=lambda item: item[1].data_offsets):
        stored = _stored(path, name, entry, start)
        if stored.stop > size:
            raise ModelError(
                f"{path}: the file is cut: tensor {name} ends at byte {stored.stop:,} of {size:,}; "
                f"download or export it again"
            )
        if stored.start != at:
            raise ModelError(
                f"{path}: tensor {name} begins at byte {stored.start:,}, and what is before it ends at {at:,}; "
                f"download or export it again"
            )
        found[name], at = stored, stored.stop
    if at != size:
        raise ModelError(f"{path}: {size - at:,} bytes come after the last tensor; download or export it again")
    return {name: found[name] for name in placed}


def _stored(path: Path, name: str, entry: _Entry, data_start: int) -> Stored:
    start, stop = (data_start + offset for offset in entry.data_offsets)
    dtype = _DTYPES.get(entry.dtype)
    if stop < start or (dtype and stop - start != math.prod(entry.shape) * dtype.itemsize):
        raise ModelError(f"{path}: tensor {name}: {stop - start} bytes do not hold {entry.dtype} {entry.shape}")
    return Stored(path, name, entry.dtype, tuple(entry.shape), start, stop)


def rows(stored: Stored, wanted: slice) -> np.ndarray:
    """Rows of one tensor in the dtype it is stored in, mapped: read where they are looked at.

    Raises `ModelError` where that dtype is not a floating-point one.
    """
    dtype = _DTYPES.get(stored.dtype)
    if dtype is None:
        raise ModelError(
            f"{stored.path}: tensor {stored.name}: {stored.dtype} is not a dtype that can be read "
            f"({', '.join(_DTYPES)}); take the model that was not quantized"
        )
    return np.memmap(stored.path, dtype, "r", stored.start, stored.shape)[wanted]


def write(
    path: Path, shapes: dict[str, tuple[int, ...]], dtype: np.dtype, tensor_of: Callable[[str], np.ndarray]
) -> None:
    """Write the tensors of `shapes` as `dtype`, each asked for when the one before is done with. Raises `OSError`."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    start = 0
    for name, shape in shapes.items():
        stop = start + math.prod(shape) * dtype.itemsize
        header[name] = {"dtype": _NAMES[dtype], "shape": list(shape), "data_offsets": [start, stop]}
        start = stop
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _LENGTH_BYTES)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(_LENGTH_BYTES, "little") + text)
        for name, shape in shapes.items():
            tensor = tensor_of(name)
            if tensor.shape != shape:
                raise ValueError(f"{name}: {tensor.shape} where {shape} was announced")
            file.write(np.ascontiguousarray(tensor, dtype).reshape(-1).view(np.uint8).data)
            del tensor  # before the next is made
