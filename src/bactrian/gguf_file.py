"""The container of a GGUF file: its metadata and where its tensors lie. Little-endian, versions 2 and 3.

Read by a few lines of our own: `gguf.GGUFReader` makes an array object for every string of the vocabulary, which takes
seconds where this takes a tenth of one, and maps the whole file.
"""

import math
import mmap
import struct
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from gguf import GGML_QUANT_SIZES, GGUF_DEFAULT_ALIGNMENT, GGMLQuantizationType, GGUFValueType

from bactrian.errors import ModelError

_SCALARS = {
    GGUFValueType.UINT8: "<u1",
    GGUFValueType.INT8: "<i1",
    GGUFValueType.UINT16: "<u2",
    GGUFValueType.INT16: "<i2",
    GGUFValueType.UINT32: "<u4",
    GGUFValueType.INT32: "<i4",
    GGUFValueType.FLOAT32: "<f4",
    GGUFValueType.BOOL: "?",
    GGUFValueType.UINT64: "<u8",
    GGUFValueType.INT64: "<i8",
    GGUFValueType.FLOAT64: "<f8",
}


class Stored(NamedTuple):
    """One tensor in the file: its name there, its shape as Hugging Face has it, its type and its first byte."""

    name: str
    shape: tuple[int, ...]
    type: GGMLQuantizationType
    start: int

    @property
    def row_bytes(self) -> int:
        block, size = GGML_QUANT_SIZES[self.type]
        return self.shape[-1] // block * size


def read(path: Path, with_texts: bool) -> tuple[dict[str, Any], dict[str, Stored]]:
    """The metadata and the tensors by name. Lists of text, which only the vocabulary has, are None unless asked for.

    Raises `ModelError` where this is no such file, or its end is missing.
    """
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return _Scanner(path, data, with_texts).header()
    except OSError as error:
        raise ModelError(f"{path}: cannot be read: {error.strerror}") from error
    except (struct.error, ValueError, IndexError) as error:
        raise ModelError(f"{path}: not a GGUF file, or cut in its header; download it again") from error


class _Scanner:
    """Walks through the bytes of a header."""

    def __init__(self, path: Path, data: mmap.mmap, with_texts: bool):
        self._path = path
        self._data = data
        self._with_texts = with_texts
        self._at = 0

    def header(self) -> tuple[dict[str, Any], dict[str, Stored]]:
        magic, version = self._data[:4], struct.unpack_from("<I", self._data, 4)[0]
        if magic != b"GGUF" or version not in (2, 3):
            raise ModelError(f"{self._path}: not a little-endian GGUF file of version 2 or 3")
        self._at = 8
        tensors, keys = self._scalar("<u8"), self._scalar("<u8")
        metadata = {self._string(): self._typed_value() for _ in range(keys)}
        found = [self._tensor() for _ in range(tensors)]
        alignment = metadata.get("general.alignment", GGUF_DEFAULT_ALIGNMENT)
        data_start = -(-self._at // alignment) * alignment
        placed = {stored.name: stored._replace(start=data_start + stored.start) for stored in found}
        for stored in placed.values():
            stop = stored.start + math.prod(stored.shape[:-1]) * stored.row_bytes
            if stop > len(self._data):
                raise ModelError(
                    f"{self._path}: the file is cut: tensor {stored.name} ends at byte {stop:,} "
                    f"of {len(self._data):,}; download it again"
                )
        return metadata, placed

    def _scalar(self, dtype: str) -> Any:
        return self._numbers(dtype, 1)[0].item()

    def _numbers(self, dtype: str, count: int) -> np.ndarray:
        size = np.dtype(dtype).itemsize * count
        raw = self._data[self._at : self._at + size]
        self._at += size
        return np.frombuffer(raw, dtype, count)

    def _string(self) -> str:
        length = self._scalar("<u8")
        raw = self._data[self._at : self._at + length]
        self._at += length
        return raw.decode("utf-8")

    def _typed_value(self) -> Any:
        kind = GGUFValueType(self._scalar("<u4"))
        if kind == GGUFValueType.STRING:
            return self._string()
        if kind != GGUFValueType.ARRAY:
            return self._scalar(_SCALARS[kind])
        inner, count = GGUFValueType(self._scalar("<u4")), self._scalar("<u8")
        if inner in _SCALARS:
            return self._numbers(_SCALARS[inner], count).tolist()
        if inner != GGUFValueType.STRING:
            raise ModelError(f"{self._path}: a list of lists in the metadata is not supported")
        if self._with_texts:
            return [self._string() for _ in range(count)]
        for _ in range(count):
            self._at += 8 + struct.unpack_from("<Q", self._data, self._at)[0]
        return None

    def _tensor(self) -> Stored:
        name = self._string()
        sizes = self._numbers("<u8", self._scalar("<u4")).tolist()
        kind, start = self._scalar("<u4"), self._scalar("<u8")
        if kind not in set(GGMLQuantizationType):
            raise ModelError(f"{self._path}: tensor {name}: type {kind} is not known; update the gguf package")
        stored = Stored(name, tuple(reversed(sizes)), GGMLQuantizationType(kind), start)
        if not sizes or sizes[0] % GGML_QUANT_SIZES[stored.type][0]:
            raise ModelError(f"{self._path}: tensor {name}: rows of {sizes[:1]} do not fit the type {stored.type.name}")
        return stored
