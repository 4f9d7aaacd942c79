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

_LONGEST_LIST = 1 << 24
_MOST_DIMENSIONS = 4  # of the format


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

    Raises `ModelError` where this is no such file, its end is missing, or it is one of several that are one model.
    """
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            metadata, tensors = _Scanner(path, data, with_texts).header()
    except OSError as error:
        raise ModelError(f"{path}: cannot be read: {error.strerror}") from error
    except (struct.error, ValueError) as error:
        raise ModelError(f"{path}: not a GGUF file, or cut in its header; download it again") from error
    parts = metadata.get("split.count", 0)
    if parts not in (0, 1):
        number = metadata.get("split.no", 0)
        said = f"part {number + 1} of {parts}" if isinstance(number, int) else f"one of {parts} parts"
        raise ModelError(
            f"{path}: {said} of a model; join them with `llama-gguf-split --merge` and give the whole file"
        )
    return metadata, tensors


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
        metadata: dict[str, Any] = {}
        for _ in range(keys):
            key = self._string()
            if key in metadata:
                raise ModelError(f"{self._path}: the key {key!r} is there twice; convert the model to GGUF again")
            metadata[key] = self._typed_value()
        found = [self._tensor() for _ in range(tensors)]
        alignment = metadata.get("general.alignment", GGUF_DEFAULT_ALIGNMENT)
        if type(alignment) is not int or alignment < 1 or alignment & (alignment - 1):
            raise ModelError(f"{self._path}: general.alignment is {alignment!r}; it has to be a power of 2")
        data_start = -(-self._at // alignment) * alignment
        return metadata, self._placed([stored._replace(start=data_start + stored.start) for stored in found], alignment)

    def _placed(self, found: list[Stored], alignment: int) -> dict[str, Stored]:
        """Tensors by name, which lie in the file one after the other."""
        placed: dict[str, Stored] = {}
        free = 0
        for stored in sorted(found, key=lambda stored: stored.start):
            stop = stored.start + math.prod(stored.shape[:-1]) * stored.row_bytes
            if stop > len(self._data):
                raise ModelError(
                    f"{self._path}: the file is cut: tensor {stored.name} ends at byte {stop:,} "
                    f"of {len(self._data):,}; download it again"
                )
            if stored.name in placed or stored.start < free or stored.start % alignment:
                twice = "is there twice" if stored.name in placed else "lies where another tensor does"
                said = (
                    twice if stored.name in placed or stored.start < free else "does not lie where tensors are aligned"
                )
                raise ModelError(f"{self._path}: tensor {stored.name} {said}; convert the model to GGUF again")
            placed[stored.name], free = stored, stop
        return {stored.name: placed[stored.name] for stored in found}

    def _skip(self, size: int) -> None:
        if size > len(self._data) - self._at:
            raise ValueError(f"{size} bytes asked for where fewer are left")
        self._at += size

    def _taken(self, size: int) -> bytes:
        self._skip(size)
        return self._data[self._at - size : self._at]

    def _scalar(self, dtype: str) -> Any:
        return self._numbers(dtype, 1)[0].item()

    def _numbers(self, dtype: str, count: int) -> np.ndarray:
        return np.frombuffer(self._taken(np.dtype(dtype).itemsize * count), dtype)

    def _string(self) -> str:
        return self._taken(self._scalar("<u8")).decode("utf-8")

    def _typed_value(self) -> Any:
        kind = GGUFValueType(self._scalar("<u4"))
        if kind == GGUFValueType.STRING:
            return self._string()
        if kind != GGUFValueType.ARRAY:
            return self._scalar(_SCALARS[kind])
        inner, count = GGUFValueType(self._scalar("<u4")), self._scalar("<u8")
        if count > _LONGEST_LIST:
            raise ModelError(f"{self._path}: a list of {count:,} values in the metadata; no vocabulary is as long")
        if inner in _SCALARS:
            return self._numbers(_SCALARS[inner], count).tolist()
        if inner != GGUFValueType.STRING:
            raise ModelError(f"{self._path}: a list of lists in the metadata is not supported")
        if self._with_texts:
            return [self._string() for _ in range(count)]
        for _ in range(count):
            (length,) = struct.unpack_from("<Q", self._data, self._at)
            self._skip(8 + length)
        return None

    def _tensor(self) -> Stored:
        name = self._string()
        dimensions = self._scalar("<u4")
        if not 1 <= dimensions <= _MOST_DIMENSIONS:
            raise ModelError(f"{self._path}: tensor {name} has {dimensions} dimensions, not 1 to {_MOST_DIMENSIONS}")
        sizes = self._numbers("<u8", dimensions).tolist()
        kind, start = self._scalar("<u4"), self._scalar("<u8")
        if kind not in set(GGMLQuantizationType):
            raise ModelError(f"{self._path}: tensor {name}: type {kind} is not known; update the gguf package")
        stored = Stored(name, tuple(reversed(sizes)), GGMLQuantizationType(kind), start)
        if 0 in sizes or sizes[0] % GGML_QUANT_SIZES[stored.type][0]:
            raise ModelError(f"{self._path}: tensor {name}: rows of {sizes[:1]} do not fit the type {stored.type.name}")
        return stored
