"""The container is read as the `gguf` package reads it."""

import struct
from pathlib import Path

import gguf
import pytest

from bactrian import gguf_file
from bactrian.errors import ModelError


def test_header_is_what_the_reference_reader_reads(smollm2: Path):
    reader = gguf.GGUFReader(str(smollm2))
    metadata, tensors = gguf_file.read(smollm2, with_texts=True)
    assert metadata == {name: field.contents() for name, field in reader.fields.items() if not name.startswith("GGUF.")}
    theirs = {tensor.name: (tensor.data_offset, tensor.tensor_type) for tensor in reader.tensors}
    assert {name: (stored.start, stored.type) for name, stored in tensors.items()} == theirs


def test_texts_are_passed_over_unless_asked_for(smollm2: Path):
    metadata, _ = gguf_file.read(smollm2, with_texts=False)
    assert metadata["tokenizer.ggml.tokens"] is None
    assert metadata["tokenizer.chat_template"]


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value)) + value.encode()


def pair(key: str, kind: int, value: bytes) -> bytes:
    return text(key) + struct.pack("<I", kind) + value


def tensor(name: str, sizes: tuple[int, ...], start: int, kind: int = 0, dimensions: int | None = None) -> bytes:
    count = len(sizes) if dimensions is None else dimensions
    return text(name) + struct.pack(f"<I{len(sizes)}QIQ", count, *sizes, kind, start)


def file(keys: list[bytes], tensors: list[bytes], after: bytes = bytes(4096), count: int | None = None) -> bytes:
    sizes = struct.pack("<IQQ", 3, len(tensors) if count is None else count, len(keys))
    return b"".join((b"GGUF", sizes, *keys, *tensors, after))


U32, TEXT, LIST, U64 = 4, 8, 9, 10
MOST = struct.pack("<Q", 2**63 + 5)
HEADERS = {
    "alignment 0": (file([pair("general.alignment", U32, bytes(4))], []), "general.alignment is 0"),
    "alignment 3": (file([pair("general.alignment", U32, b"\3\0\0\0")], []), "has to be a power of 2"),
    "alignment text": (file([pair("general.alignment", TEXT, text("x"))], []), "general.alignment is 'x'"),
    "enormous key": (file([MOST + b"key"], []), "not a GGUF file, or cut"),
    "enormous text": (file([pair("key", TEXT, MOST)], []), "not a GGUF file, or cut"),
    "enormous list": (file([pair("key", LIST, struct.pack("<I", U32) + MOST)], []), "a list of 9,223"),
    "enormous texts": (
        file([pair("key", LIST, struct.pack("<IQ", TEXT, 2) + MOST)], []),
        "not a GGUF file, or cut",
    ),
    "a list of lists": (file([pair("key", LIST, struct.pack("<IQ", LIST, 1))], []), "a list of lists"),
    "a kind of none": (file([pair("key", 99, bytes(8))], []), "not a GGUF file, or cut"),
    "enormous count": (file([], [], count=2**63), "has 0 dimensions"),
    "no dimensions": (file([], [tensor("a", (), 0)]), "tensor a has 0 dimensions"),
    "many dimensions": (file([], [tensor("a", (1,), 0, dimensions=2**32 - 1)]), "has 4294967295 dimensions"),
    "enormous size": (file([], [tensor("a", (2**63, 2**63), 0)]), "the file is cut: tensor a ends at byte"),
    "enormous start": (file([], [tensor("a", (32,), 2**63)]), "the file is cut: tensor a ends at byte"),
    "nothing in it": (file([], [tensor("a", (0, 32), 0)]), r"rows of \[0\] do not fit"),
    "overlap": (file([], [tensor("a", (64,), 0), tensor("b", (64,), 128)]), "tensor b lies where another tensor does"),
    "not aligned": (file([], [tensor("a", (32,), 4)]), "tensor a does not lie where tensors are aligned"),
    "a tensor twice": (file([], [tensor("a", (32,), 0), tensor("a", (32,), 128)]), "tensor a is there twice"),
    "a key twice": (file([pair("key", U32, bytes(4))] * 2, []), "the key 'key' is there twice"),
    "not UTF-8": (file([pair("key", TEXT, struct.pack("<Q", 2) + b"\xff\xfe")], []), "not a GGUF file, or cut"),
    "a part": (file([pair("split.count", U32, b"\4\0\0\0")], []), "part 1 of 4 of a model"),
}


@pytest.mark.parametrize("what", HEADERS)
@pytest.mark.parametrize("with_texts", [True, False])
def test_a_header_that_cannot_be_is_refused_in_one_line(what: str, with_texts: bool, tmp_path: Path):
    content, said = HEADERS[what]
    (tmp_path / "model.gguf").write_bytes(content)
    with pytest.raises(ModelError, match=rf"model\.gguf: .*{said}") as caught:
        gguf_file.read(tmp_path / "model.gguf", with_texts)
    assert "\n" not in str(caught.value)
