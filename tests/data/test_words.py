"""Laws: the fast path gives the ids and places that the engine gives, text by text."""

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers as engines
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import decoders, models, pre_tokenizers, trainers

from bactrian.data import tokenizer as tokenizers
from bactrian.data import words
from bactrian.data.tokenizer import Tokenizer

CORPUS = ["the  cat sat on the mat", "a theory of  everything\n\tis nothing", "▁▁ odd ▁mark", "naïve café déjà vu"] * 3
NORMALIZERS = {
    "prepend": {"type": "Prepend", "prepend": "▁"},
    "replace": {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
}


def sentencepiece_like(normalizer: Any, pre_tokenizer: Any, extra: list[Any] | None = None) -> Tokenizer:
    """A byte-pair vocabulary that writes spaces as `▁`, with all bytes to fall back on, as Llama 2's."""
    engine = engines.Tokenizer(models.BPE())
    engine.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
    trainer = trainers.BpeTrainer(vocab_size=90, special_tokens=["<unk>", "<s>", "</s>"], show_progress=False)
    engine.train_from_iterator([text.replace(" ", "▁") for text in CORPUS], trainer)
    content = json.loads(engine.to_str())
    model = content["model"]
    for run in ("▁▁", "▁▁▁▁"):
        half = run[: len(run) // 2]
        if run not in model["vocab"]:
            model["vocab"][run] = len(model["vocab"])
            model["merges"].append([half, half])
    for byte in range(256):
        model["vocab"][f"<0x{byte:02X}>"] = len(model["vocab"])
    model.update(byte_fallback=True, fuse_unk=True, unk_token="<unk>")
    content.update(normalizer=normalizer, pre_tokenizer=pre_tokenizer)
    content["added_tokens"] += extra or []
    return Tokenizer(json.dumps(content), eos_id=2, bos_id=1)


def metaspace(scheme: str) -> dict[str, Any]:
    return {"type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme, "split": False}


def byte_level(add_space: bool, normalizer: Any = None, digits: bool = False) -> Tokenizer:
    engine = engines.Tokenizer(models.BPE())
    pattern = pre_tokenizers.ByteLevel(add_prefix_space=add_space)
    engine.pre_tokenizer = (
        pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), pattern]) if digits else pattern
    )
    engine.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=330, special_tokens=["</s>"], initial_alphabet=alphabet, show_progress=False
    )
    engine.train_from_iterator(CORPUS, trainer)
    content = json.loads(engine.to_str())
    content["normalizer"] = normalizer
    return Tokenizer(json.dumps(content), eos_id=0)


BOTH = {"type": "Sequence", "normalizers": list(NORMALIZERS.values())}
WORD = {"id": 500, "content": "cat", "single_word": False, "lstrip": True, "rstrip": False, "normalized": False}
TOKENIZERS = {
    "llama2": sentencepiece_like(BOTH, None),
    "no prefix": sentencepiece_like(NORMALIZERS["replace"], None),
    "first": sentencepiece_like(None, metaspace("first")),
    "always": sentencepiece_like(None, metaspace("always")),
    "never": sentencepiece_like(None, metaspace("never")),
    "added word": sentencepiece_like(BOTH, None, [{**WORD, "special": False}]),
    "bytes": byte_level(False),
    "bytes, digits apart": byte_level(False, digits=True),
    "bytes with a space": byte_level(True),
    "composed bytes": byte_level(False, {"type": "NFC"}),
    "lowercase": byte_level(False, {"type": "Lowercase"}),
}
CUT_INTO_WORDS = {"llama2", "no prefix", "first", "always", "never", "bytes", "bytes, digits apart"}
TEXT = st.text(st.sampled_from("the catomsn  \n\t▁</s><é😀e\u0301ÅA\u030a\x000x"), max_size=40)


def assert_as_the_engine(tokenizer: Tokenizer, pieces: list[str | int]) -> None:
    ids, spans = tokenizer.encode_pieces(pieces)
    (cut,) = tokenizer.encode_many([pieces])
    assert cut.ids.tolist() == ids.tolist()
    written = "".join(piece if isinstance(piece, str) else tokenizer.written(piece) for piece in pieces)
    # A token's bytes lie within its characters, and reach into the first and the last of them. A space that was put in
    # front has none; the engine may say that it is the first character.
    places = [len(written[:index].encode()) for index in range(len(written) + 1)]
    for (begin, end), first, last in zip(spans.tolist(), cut.begins.tolist(), cut.ends.tolist(), strict=True):
        if first == last:
            assert first == places[begin]
        else:
            assert places[begin] <= first < places[begin + 1] and places[end - 1] < last <= places[end]


@pytest.mark.parametrize("name", TOKENIZERS)
@settings(max_examples=150, deadline=None)
@given(texts=st.lists(TEXT, min_size=1, max_size=3))
def test_ids_and_places_are_the_engines(name: str, texts: list[str]):
    tokenizer = TOKENIZERS[name]
    pieces: list[str | int] = []
    for text in texts:
        pieces += [text, tokenizer.eos_id]
    assert_as_the_engine(tokenizer, pieces)
    assert_as_the_engine(tokenizer, [tokenizer.eos_id, *pieces])


def test_words_are_used_where_they_are_proven_and_nowhere_else():
    for name, tokenizer in TOKENIZERS.items():
        cutters = words._cutters(tokenizer.definition)
        assert all((cutter.words is not None) == (name in CUT_INTO_WORDS) for cutter in cutters.values()), name
    crossing = json.loads(TOKENIZERS["llama2"].definition)
    crossing["model"]["vocab"]["t▁"] = 600
    crossing["model"]["merges"].append(["t", "▁"])
    assert words._cutters(json.dumps(crossing))[True].words is None


def test_what_is_remembered_has_a_bound(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(words, "_REMEMBERED", 5)
    tokenizer = sentencepiece_like(BOTH, None)
    known = words._cutters(tokenizer.definition)[True].words
    assert known is not None
    for number in range(20):
        tokenizer.encode_many([[f"some words {number} and {'long' * 30}"]])
        assert len(known.known) <= 5 + 6
        assert all(len(word) <= words._LONG for word in known.known)


def nasty() -> Iterator[str]:
    draw = random.Random(0)
    pieces = [
        "▁",
        " ",
        "  ",
        "\n",
        "\n\n",
        "é",
        "日本",
        "😀",
        "\u200d",
        "e\u0301",
        "\x00",
        "</s>",
        "<0x0A>",
        "a",
        "The",
        " The",
        " 5",
        "7",
        "½",
        " ½",
        "Ⅷ",
        "'s",
        "'S",
        "!?",
        "\t",
        "\x1c",
        "\x85",
        "\u3000",
        "\u2028",
    ]
    for _ in range(600):
        yield "".join(draw.choices(pieces, k=draw.randint(1, 30)))


def assert_real_and_nasty_texts_are_cut_as_the_engine_cuts(tokenizer: Tokenizer, shared_data: Path) -> None:
    assert words._cutters(tokenizer.definition)[True].words is not None
    file = shared_data / "ultrafeedback" / "uf_binarized_train_1000.jsonl"
    texts = [json.loads(line)["chosen"] for line in file.read_text(encoding="utf-8").splitlines()[:200]]
    texts += list(nasty())
    for text, cut in zip(texts, tokenizer.encode_many([[text] for text in texts]), strict=True):
        ids, _ = tokenizer.encode_pieces([text])
        assert np.array_equal(cut.ids, ids), text
    for text in nasty():
        assert_as_the_engine(tokenizer, [1, text, 2, text, 2])


def test_llama_2_is_cut_as_its_own_engine_cuts(shared_data: Path, tmp_path: Path):
    (tmp_path / "tokenizer.json").write_bytes((shared_data / "llama2_tokenizer" / "tokenizer.json").read_bytes())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"bos_token": "<s>", "eos_token": "</s>"}))
    assert_real_and_nasty_texts_are_cut_as_the_engine_cuts(tokenizers.load(tmp_path), shared_data)


def test_smollm2_is_cut_as_its_own_engine_cuts(smollm2: Path, shared_data: Path):
    assert_real_and_nasty_texts_are_cut_as_the_engine_cuts(tokenizers.load(smollm2), shared_data)
