"""The safetensors container: eight bytes of length, a JSON header, then the tensors' bytes.

Read and written here, not through the library, so that a file is streamed in both directions: the library reads whole
tensors, and wants every one of them at once when it writes.
"""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from bactrian.errors import ModelError

_LENGTH_BYTES = 8
_LARGEST_HEADER = 100_000_000  # the format's own limit
_DTYPES = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}


class Stored(NamedTuple):
    """One tensor in a file: `dtype` by its name in the format, `start` and `stop` in bytes from the file's start."""

    path: Path
    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int


def entries(path: Path) -> dict[str, Stored]:
    """The tensors of a file by name, none of them read. Raises `ModelError` where the file is cut or not the format."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            length = int.from_bytes(file.read(_LENGTH_BYTES), "little")
            if size < _LENGTH_BYTES or not 0 < length <= min(_LARGEST_HEADER, size - _LENGTH_BYTES):
                raise ModelError(f"{path}: not a safetensors file, or cut in its header; download or export it again")
            header = json.loads(file.read(length))
    except OSError as error:
        raise ModelError(f"{path}: cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise ModelError(f"{path}: not a safetensors file: its header is not JSON") from error
    found = {}
    for name, entry in header.items():
        if name != "__metadata__":
            found[name] = _entry(path, name, entry, _LENGTH_BYTES + length)
            if found[name].stop > size:
                raise ModelError(
                    f"{path}: the file is cut: tensor {name} ends at byte {found[name].stop:,} of {size:,}; "
                    f"download or export it again"
                )
    return found


def _entry(path: Path, name: str, entry: Any, data_start: int) -> Stored:
    try:
        start, stop = (data_start + int(offset) for offset in entry["data_offsets"])
        stored = Stored(path, name, str(entry["dtype"]), tuple(int(size) for size in entry["shape"]), start, stop)
    except (KeyError, TypeError, ValueError) as error:
        raise ModelError(f"{path}: tensor {name}: its entry in the header is not valid") from error
    dtype = _DTYPES.get(stored.dtype)
    if stop < start or start < data_start or (dtype and stop - start != math.prod(stored.shape) * dtype.itemsize):
        raise ModelError(f"{path}: tensor {name}: {stop - start} bytes do not hold {stored.dtype} {stored.shape}")
    return stored


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
