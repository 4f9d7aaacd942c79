"""The container is read as the `gguf` package reads it."""

from pathlib import Path

import gguf

from bactrian import gguf_file


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
