"""Laws: generated ids have the text that decoding them behind their prompt adds to it; pieces joined are that text."""

import json
import random
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as Engine
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

from bactrian.data import continuation, tokenizer
from bactrian.data.continuation import Continuation
from bactrian.data.tokenizer import Tokenizer

TEXT = "def one(n):\n    return n + 1  # naïve 日本語 🐫\n"
SPECIAL = ["<unk>", "<s>", "</s>"]
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]


def _bytes() -> Engine:
    engine = Engine(models.BPE())
    engine.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    engine.decoder = decoders.ByteLevel()
    return engine


def _sentencepiece() -> Engine:
    engine = Engine(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    engine.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    engine.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return engine


def _metaspace(scheme: str) -> Callable[[], Engine]:
    def made() -> Engine:
        engine = Engine(models.BPE(unk_token="<unk>", byte_fallback=True))
        engine.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=False)
        engine.decoder = decoders.Sequence(
            [decoders.ByteFallback(), decoders.Metaspace(prepend_scheme=scheme, split=False)]
        )
        return engine

    return made


def _unproven() -> Engine:
    """Its decoder looks across tokens, so that only the whole is decoded."""
    engine = _metaspace("first")()
    engine.decoder = decoders.Sequence([decoders.Metaspace(), decoders.Fuse(), decoders.Replace("  ", "\t")])
    return engine


KINDS: dict[str, Callable[[], Engine]] = {
    "bytes": _bytes,
    "sentencepiece": _sentencepiece,
    **{f"metaspace, {scheme}": _metaspace(scheme) for scheme in ("first", "always", "never")},
    "unproven": _unproven,
}


def _trained(engine: Engine, kind: str) -> Tokenizer:
    alphabet = pre_tokenizers.ByteLevel.alphabet() if kind == "bytes" else ["▁", *"abc"]
    special = SPECIAL if kind == "bytes" else [*SPECIAL, *BYTES]
    trainer = trainers.BpeTrainer(
        vocab_size=600, special_tokens=special, initial_alphabet=alphabet, limit_alphabet=256, show_progress=False
    )
    engine.train_from_iterator([TEXT, "a b c  ab  abc\n\n"] * 3, trainer)
    content = json.loads(engine.to_str())
    content["added_tokens"] = [token for token in content["added_tokens"] if token["content"] in SPECIAL]
    return Tokenizer(tokenizer.canonical(content), eos_id=2, bos_id=1)


@pytest.fixture(scope="module", params=[*KINDS, "llama2"])
def words(request: pytest.FixtureRequest) -> Tokenizer:
    if request.param == "llama2":
        folder: Path = request.getfixturevalue("shared_data")
        return Tokenizer((folder / "llama2_tokenizer" / "tokenizer.json").read_text(encoding="utf-8"), 2, 1)
    return _trained(KINDS[request.param](), request.param)


def _pieces(words: Tokenizer, before: list[int], ids: list[int]) -> list[str]:
    text = Continuation(words, before)
    return [*map(text.add, ids), text.end()]


def test_every_cut_of_a_text_gives_what_is_left_of_it(words):
    for text in (TEXT, f" {TEXT}", f"x\n\n   {TEXT}"):
        ids = words.encode_text(text, add_bos=True).tolist()
        whole = words.decode(ids)
        for cut in range(len(ids)):
            begin = words.decode(ids[:cut])
            if whole.startswith(begin):  # else it cuts a character
                assert continuation.after(words, ids[:cut], ids[cut:]) == whole[len(begin) :]
            else:
                rest = continuation.after(words, ids[:cut], ids[cut:])
                assert whole.endswith(rest) and "\ufffd" not in rest
            pieces = _pieces(words, ids[:cut], ids[cut:])
            assert "".join(pieces) == continuation.after(words, ids[:cut], ids[cut:])
            assert "\ufffd" not in "".join(pieces)


def test_any_ids_behind_any_prompt(words):
    draw = random.Random(1)
    common = [*words.encode_text(TEXT, False).tolist(), 1, 2]
    bytes_of = [i for text, i in words.engine.get_vocab().items() if text in BYTES] or common

    def some(count: int) -> list[int]:
        pools = [common, bytes_of, range(words.vocab_size)]
        return [draw.choice(draw.choice(pools)) for _ in range(draw.randint(0, count))]

    for _ in range(400):
        before, ids = some(12), some(12)
        whole, begin = words.decode(before + ids), words.decode(before)
        text = continuation.after(words, before, ids)
        if whole.startswith(begin):
            assert text == whole[len(begin) :], (before, ids)
        assert whole.endswith(text)
        assert "".join(_pieces(words, before, ids)) == text, (before, ids)


@settings(max_examples=60, deadline=None)
@given(prompt=st.text(max_size=20), answer=st.text(max_size=20))
def test_text_written_behind_text(prompt: str, answer: str):
    for words in _SMALL:
        before = words.encode_text(prompt, True).tolist()
        ids = words.encode_text(prompt + answer, True).tolist()
        if ids[: len(before)] == before:
            whole, begin = words.decode(ids), words.decode(before)
            rest = ids[len(before) :]
            assert continuation.after(words, before, rest) == whole[len(begin) :]
            assert "".join(_pieces(words, before, rest)) == whole[len(begin) :]


_SMALL = [_trained(KINDS[kind](), kind) for kind in ("bytes", "sentencepiece", "metaspace, first")]


def test_a_space_in_front_is_kept_and_a_long_prompt_costs_no_more(words):
    before = words.encode_text("def one(n):\n" * 400, True).tolist()
    ids = words.encode_text("def one(n):\n    return", True).tolist()
    begin = words.encode_text("def one(n):\n", True).tolist()
    if ids[: len(begin)] == begin:
        assert continuation.after(words, before, ids[len(begin) :]) == "    return"


def test_characters_begun_in_the_prompt_belong_to_the_answer():
    (words,) = [each for each in _SMALL if "ByteFallback" in each.definition and "Prepend" in each.definition]
    byte = {value: words.engine.get_vocab()[f"<0x{value:02X}>"] for value in (0x0A, 0xE2, 0x82, 0xAC)}
    line_end, euro = byte[0x0A], [byte[0xE2], byte[0x82], byte[0xAC]]
    a = words.encode_text("a", False).tolist()
    assert continuation.after(words, [*a, line_end, euro[0]], euro[1:]) == "€"
    assert continuation.after(words, [*a, line_end], [*euro, *a]) == "€ a"
    # Spoilt bytes are written as many times as there are; the line end in front was the prompt's.
    assert continuation.after(words, [*a, line_end], euro[:1]) == "\ufffd"
    assert _pieces(words, [*a, line_end], [line_end, *euro, a[-1]]) == ["", "", "", "", "\n€a", ""]
