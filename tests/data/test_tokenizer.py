"""Laws: ids are those of `transformers`; text never becomes a special token; what is saved is what is loaded."""

import json
import random
from pathlib import Path

import gguf
import numpy as np
import pytest
import sentencepiece
from tokenizers import AddedToken, decoders, models, pre_tokenizers, trainers
from tokenizers import Tokenizer as Engine
from transformers import AutoTokenizer

from bactrian.data import tokenizer
from bactrian.data.tokenizer import Tokenizer
from bactrian.errors import ModelError

SAMPLE = [
    "Der Fluss fließt, langsam.\n\tx = [1, 23, 456]  # naïve",
    "Hello there!  It's the 3rd of May, isn't it?",
    "日本語 🐫",
]
KINDS = ["byte_level", "metaspace_first", "metaspace_always", "eats_space", "spaces_are_words", "unigram"]


def _engine(kind: str) -> Engine:
    """A small tokenizer of each kind that treats the neighbourhood of special tokens in its own way."""
    special = ["<unk>", "<s>", "</s>", "<|end|>"]
    engine = Engine(models.Unigram() if kind == "unigram" else models.BPE(unk_token="<unk>"))
    if kind.startswith("metaspace") or kind == "unigram":
        scheme = "first" if kind == "metaspace_first" else "always"
        engine.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=False)
        engine.decoder = decoders.Metaspace(prepend_scheme=scheme, split=False)
        alphabet = []
    else:
        engine.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        engine.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = (
        trainers.UnigramTrainer(vocab_size=200, special_tokens=special, unk_token="<unk>", show_progress=False)
        if kind == "unigram"
        else trainers.BpeTrainer(vocab_size=400, special_tokens=special, initial_alphabet=alphabet, show_progress=False)
    )
    engine.train_from_iterator(SAMPLE * 3, trainer)
    if kind == "eats_space":
        engine.add_special_tokens([AddedToken("<|user|>", rstrip=True, normalized=False)])
        engine.add_special_tokens([AddedToken("<|mask|>", lstrip=True, rstrip=True, normalized=False)])
    if kind == "spaces_are_words":
        engine.add_tokens([AddedToken("    ", normalized=True), AddedToken("<think>", normalized=False)])
    return engine


def _folder(path: Path, engine: Engine, **config: object) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    engine.save(str(path / "tokenizer.json"))
    config = {"bos_token": "<s>", "eos_token": "</s>", "tokenizer_class": "PreTrainedTokenizerFast", **config}
    (path / "tokenizer_config.json").write_text(json.dumps(config))
    return path


@pytest.fixture(scope="module", params=KINDS)
def small(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _folder(tmp_path_factory.mktemp(request.param), _engine(request.param))


@pytest.fixture(scope="module")
def llama2_folder(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    engine = Engine.from_file(str(shared_data / "llama2_tokenizer" / "tokenizer.json"))
    return _folder(tmp_path_factory.mktemp("llama2"), engine, add_bos_token=True)


@pytest.fixture(scope="module")
def llama2(llama2_folder: Path) -> Tokenizer:
    return tokenizer.load(llama2_folder)


@pytest.fixture(scope="module")
def outputs(shared_data: Path) -> list[str]:
    rows = json.loads((shared_data / "codealpaca" / "code_alpaca_2k.json").read_text(encoding="utf-8"))
    return [row["output"] for row in rows]


def _conversations(special: list[str], texts: list[str], seed: int) -> list[list[str]]:
    """Strings of texts between special tokens, as chat templates write them."""
    draw = random.Random(seed)
    made = []
    for _ in range(60):
        parts = [draw.choice(["", *special])]
        for _ in range(draw.randint(1, 5)):
            space = draw.choice(["", " ", "\n", "\n\n  ", "    "])
            parts += [space + draw.choice(texts) + draw.choice(["", " ", "\n", "    "]), draw.choice(special)]
        made.append([part for part in parts if part])
    return made


def _check_pieces(ours: Tokenizer, theirs: AutoTokenizer, texts: list[str]) -> None:
    for parts in _conversations(list(ours.special), texts, seed=1):
        ids, spans = ours.encode_pieces([ours.special.get(part, part) for part in parts])
        assert ids.tolist() == theirs.encode("".join(parts), add_special_tokens=False), parts  # type: ignore[attr-defined]
        assert len(spans) == len(ids) and (np.diff(spans[:, 0]) >= 0).all() and (spans[:, 0] <= spans[:, 1]).all()


def test_pieces_are_the_ids_of_the_whole_string(small: Path):
    _check_pieces(tokenizer.load(small), AutoTokenizer.from_pretrained(small), SAMPLE)


def test_pieces_are_the_ids_of_the_whole_string_for_llama2(llama2, llama2_folder, outputs):
    _check_pieces(llama2, AutoTokenizer.from_pretrained(llama2_folder), outputs[:200])


def test_text_never_becomes_a_special_token(small: Path):
    ours = tokenizer.load(small)
    unknown = ours.special["<unk>"]  # what the vocabulary cannot write; no role in any chat
    for text in ["".join(ours.special), *(f"a{token}b {token}\n{token}" for token in ours.special)]:
        for ids in (ours.encode_text(text, add_bos=False), ours.encode_pieces([ours.eos_id, text])[0][1:]):
            assert not set(ids.tolist()) & (set(ours.special.values()) - {unknown})


def test_text_never_becomes_a_special_token_of_llama2(llama2):
    text = "a</s>b <s>\n<unk>"
    assert not set(llama2.encode_text(text, add_bos=False).tolist()) & set(llama2.special.values())
    assert llama2.decode(llama2.encode_text(text, add_bos=True)) == text


def test_spans_say_where_tokens_stand(llama2):
    ids, spans = llama2.encode_pieces([1, "Hi", 2])
    assert ids.tolist() == [1, 6324, 2] and spans.tolist() == [[0, 3], [3, 5], [5, 9]]
    text = "def f(x):\n    return 'é🐫'"
    ids, spans = llama2.encode_pieces([1, text, 2, text])
    whole = f"<s>{text}</s>{text}"
    for token, (begin, end) in zip(ids.tolist(), spans.tolist(), strict=True):
        written = llama2.token_text(token)
        assert written.strip() == whole[begin:end].strip() or "�" in written or written == "\n"


def test_bos_is_what_the_tokenizer_itself_puts_in_front(llama2, small):
    assert llama2.prefix_ids == (1,)
    assert llama2.encode_text("Hi", add_bos=True).tolist() == [1, 6324]
    assert llama2.encode_text("Hi", add_bos=False).tolist() == [6324]
    assert tokenizer.load(small).prefix_ids == ()


def test_saved_is_loaded_here_and_by_transformers(small: Path, tmp_path: Path):
    ours = tokenizer.load(small).with_template("{% for m in messages %}{{ m.content }}{{ eos_token }}{% endfor %}")
    tokenizer.save(ours, tmp_path, max_length=77)
    again, theirs = tokenizer.load(tmp_path), AutoTokenizer.from_pretrained(tmp_path)
    assert again.fingerprint == ours.fingerprint
    assert (theirs.bos_token_id, theirs.eos_token_id, theirs.model_max_length) == (ours.bos_id, ours.eos_id, 77)
    assert theirs.pad_token_id == ours.eos_id and len(theirs) == ours.vocab_size
    for text in SAMPLE:
        assert theirs.encode(text) == ours.encode_text(text, add_bos=True).tolist()
        assert theirs.decode(theirs.encode(text)) == ours.decode(ours.encode_text(text, add_bos=True))
    turn = [{"role": "user", "content": "Hello there!"}]
    assert theirs.apply_chat_template(turn, tokenize=False) == "Hello there!</s>"


def test_saved_llama2_begins_with_bos_in_transformers(llama2, tmp_path: Path):
    tokenizer.save(llama2, tmp_path)
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    assert theirs.encode("Hi") == [1, 6324] and theirs.encode("Hi", add_special_tokens=False) == [6324]


def test_added_tokens_get_the_next_ids(small: Path):
    ours = tokenizer.load(small)
    more = ours.add_tokens(["<pad>", "</s>"])
    assert more.vocab_size == ours.vocab_size + 1
    assert more.special == {**ours.special, "<pad>": ours.vocab_size}
    assert more.fingerprint != ours.fingerprint
    assert more.vocab_size - 1 not in more.encode_text("a<pad>b", add_bos=False)
    assert more.encode_text(SAMPLE[0], False).tolist() == ours.encode_text(SAMPLE[0], False).tolist()


def test_words_that_are_added_tokens_stay_words(tmp_path: Path):
    ours = tokenizer.load(_folder(tmp_path, _engine("spaces_are_words")))
    assert "<think>" not in ours.special
    assert ours.engine.token_to_id("<think>") in ours.encode_text("a<think>b", add_bos=False)


def test_bos_is_added_as_configured_where_no_rule_says_otherwise(tmp_path: Path):
    folder = _folder(tmp_path, _engine("byte_level"), add_bos_token=True)
    ours = tokenizer.load(folder)
    assert ours.prefix_ids == (ours.bos_id,)
    tokenizer.save(ours, tmp_path / "saved")
    assert ours.encode_text("Hi", True).tolist() == AutoTokenizer.from_pretrained(tmp_path / "saved").encode("Hi")


def test_eos_and_template_are_found_wherever_they_stand(tmp_path: Path):
    folder = _folder(
        tmp_path, _engine("byte_level"), eos_token=None, chat_template=[{"name": "default", "template": "d"}]
    )
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [3, 2]}))
    ours = tokenizer.load(folder)
    assert ours.eos_id == 3 and ours.eos_text == "<|end|>" and ours.chat_template == "d"
    (folder / "chat_template.jinja").write_text("file")
    (folder / "tokenizer_config.json").write_text("{}")
    (folder / "special_tokens_map.json").write_text(json.dumps({"eos_token": {"content": "</s>"}}))
    ours = tokenizer.load(folder)
    assert (ours.eos_id, ours.bos_id, ours.chat_template) == (2, None, "file")


@pytest.mark.parametrize(
    ("files", "says"),
    [
        ({}, "tokenizer.json is missing"),
        ({"tokenizer.json": "{"}, "not valid JSON"),
        ({"tokenizer.json": "[]"}, "expected a JSON object"),
        ({"tokenizer.json": "{}"}, "no model with a vocabulary"),
        ({"tokenizer.json": '{"model": {"vocab": {"a": 0}}}'}, "no end-of-text token"),
        (
            {"tokenizer.json": '{"model": {"vocab": {"a": 0}}}', "tokenizer_config.json": '{"eos_token": "b"}'},
            "'b' is not in the vocabulary",
        ),
        (
            {"tokenizer.json": '{"model": {"vocab": {"a": 0}}}', "config.json": '{"eos_token_id": 7}'},
            "not a valid tokenizer",
        ),
    ],
)
def test_a_folder_that_is_no_tokenizer_is_refused(tmp_path: Path, files: dict[str, str], says: str):
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(ModelError, match=says) as refused:
        tokenizer.load(tmp_path)
    assert "\n" not in str(refused.value) and str(tmp_path) in str(refused.value)


def test_a_path_that_is_nothing_is_refused(tmp_path: Path):
    with pytest.raises(ModelError, match="no tokenizer here"):
        tokenizer.load(tmp_path / "absent")


# GGUF


def test_smollm2_gives_texts_back(smollm2: Path, outputs):
    ours = tokenizer.load(smollm2)
    assert (ours.vocab_size, ours.bos_id, ours.eos_id, ours.prefix_ids) == (49152, 1, 2, ())
    assert all(ours.decode(ours.encode_text(text, add_bos=True)) == text for text in outputs)


def test_smollm2_cuts_digits_one_by_one(smollm2: Path):
    ours = tokenizer.load(smollm2)
    words = [ours.token_text(i) for i in ours.encode_text("In 2024, it's 12.5%", add_bos=False)]
    assert words == ["In", " ", "2", "0", "2", "4", ",", " it", "'s", " ", "1", "2", ".", "5", "%"]
    assert ours.token_text(2) == "<|im_end|>"


def _write_gguf(path: Path, model: str, tokens: list[str], types: list[int], **fields: object) -> Path:
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_tokenizer_model(model)
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    for name, value in fields.items():
        getattr(writer, f"add_{name}")(value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return path


def test_sentencepiece_is_rebuilt_from_scores(shared_data: Path, tmp_path: Path, outputs, llama2):
    source = sentencepiece.SentencePieceProcessor(str(shared_data / "llama2_tokenizer" / "tokenizer.model"))
    ids = range(source.GetPieceSize())
    kinds = [(source.IsControl, 3), (source.IsUnknown, 2), (source.IsByte, 6), (source.IsUnused, 5)]
    types = [next((kind for holds, kind in kinds if holds(i)), 1) for i in ids]
    path = _write_gguf(
        tmp_path / "llama2.gguf",
        "llama",
        [source.IdToPiece(i) for i in ids],
        types,
        token_scores=[source.GetScore(i) for i in ids],
    )
    ours = tokenizer.load(path)
    assert (ours.bos_id, ours.eos_id, ours.prefix_ids, ours.special) == (1, 2, (1,), llama2.special)
    texts = [*outputs[:400], *SAMPLE, "", " ", "  a", "\n\n\n", "a" * 50, " " * 37 + "x", "\x00\u200b\u2581_"]
    for text in texts:
        assert ours.encode_text(text, True).tolist() == llama2.encode_text(text, True).tolist()
        assert ours.decode(ours.encode_text(text, True)) == llama2.decode(llama2.encode_text(text, True))
    for text in outputs[:400]:
        assert ours.encode_text(text, False).tolist() == source.EncodeAsIds(text)


BYTES = sorted(pre_tokenizers.ByteLevel.alphabet())


def _byte_level_gguf(path: Path, **fields: object) -> Path:
    tokens = ["<|end|>", "<|pad|>", *BYTES, "aa"]
    types = [3, 4, *([1] * len(BYTES)), 1]
    fields = {"tokenizer_pre": "gpt-2", "eos_token_id": 0, "token_merges": ["a a"], **fields}
    return _write_gguf(path, "gpt2", tokens, types, **{k: v for k, v in fields.items() if v is not None})


@pytest.mark.parametrize(
    ("pre", "words"),
    [
        ("gpt-2", ["it", "'s", "Ġ12345", "'", "S", "ĊĊĊ", "Ġb", "!?", "Ċ"]),
        ("smollm", ["it", "'s", "Ġ", "1", "2", "3", "4", "5", "'", "S", "ĊĊĊ", "Ġb", "!?", "Ċ"]),
        ("llama-bpe", ["it", "'s", "Ġ", "123", "45", "'S", "ĊĊĊ", "Ġb", "!?Ċ"]),
        ("qwen2", ["it", "'s", "Ġ", "1", "2", "3", "4", "5", "'S", "ĊĊĊ", "Ġb", "!?Ċ"]),
        ("default", ["it", "'", "s", "Ġ", "123", "45", "'", "S", "ĊĊĊ", "Ġb", "!?", "Ċ"]),
    ],
)
def test_text_is_cut_as_the_named_pre_tokenizer_does(tmp_path: Path, pre: str, words: list[str]):
    ours = tokenizer.load(_byte_level_gguf(tmp_path / "a.gguf", tokenizer_pre=pre))
    cutter = ours.engine.pre_tokenizer
    assert [word for word, _ in cutter.pre_tokenize_str("it's 12345'S\n\n\n b!?\n")] == words
    assert ours.decode(ours.encode_text("aaa é 12\n", False)) == "aaa é 12\n"
    assert ours.special == {"<|end|>": 0}


def test_bos_of_a_gguf_is_the_file_s_or_the_family_s(tmp_path: Path):
    llama3 = {"tokenizer_pre": "llama-bpe", "bos_token_id": 2}
    assert tokenizer.load(_byte_level_gguf(tmp_path / "a.gguf", bos_token_id=2)).prefix_ids == ()
    assert tokenizer.load(_byte_level_gguf(tmp_path / "b.gguf", bos_token_id=2, add_bos_token=True)).prefix_ids == (2,)
    assert tokenizer.load(_byte_level_gguf(tmp_path / "c.gguf", **llama3)).prefix_ids == (2,)
    assert tokenizer.load(_byte_level_gguf(tmp_path / "d.gguf", **llama3, add_bos_token=False)).prefix_ids == ()


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"tokenizer_pre": "tekken"}, "'tekken'; known are command-r, deepseek-r1-qwen, default"),
        ({"tokenizer_pre": None}, "tokenizer.ggml.pre is None"),
        ({"token_merges": None}, "merges is missing"),
        ({"token_merges": ["aa"]}, "not two pieces"),
        ({"token_merges": ["a zz"]}, "not a valid tokenizer"),
        ({"eos_token_id": None}, "eos_token_id is missing"),
    ],
)
def test_a_gguf_without_what_it_takes_is_refused(tmp_path: Path, fields: dict[str, object], says: str):
    with pytest.raises(ModelError, match=says):
        tokenizer.load(_byte_level_gguf(tmp_path / "a.gguf", **fields))


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"bos_token_id": 2**32 - 1}, "tokenizer.ggml.bos_token_id is 4294967295, and there are"),
        ({"eos_token_id": 9999}, "tokenizer.ggml.eos_token_id is 9999, and there are"),
        ({"pad_token_id": 9999, "bos_token_id": 1}, "tokenizer.ggml.padding_token_id is 9999"),
    ],
)
def test_a_gguf_s_token_outside_the_vocabulary_is_refused(tmp_path: Path, fields: dict[str, object], says: str):
    path = _byte_level_gguf(tmp_path / "a.gguf", **{"tokenizer_pre": "llama-bpe", "eos_token_id": 2, **fields})
    with pytest.raises(ModelError, match=f"^{path}: {says}"):
        tokenizer.load(path)


_SPOILT = {
    "an id of no size": (
        "tokenizer.json",
        {"added_tokens": [{"id": 2**31 - 1, "content": "x"}]},
        "has the id 2147483647 of",
    ),
    "an id of a text": ("tokenizer.json", {"added_tokens": [{"id": "7", "content": "x"}]}, "added_tokens.0.id is '7'"),
    "no content": ("tokenizer.json", {"added_tokens": [{"id": 7}]}, "added_tokens.0.content is missing"),
    "a list": ("tokenizer.json", {"model": {"type": "BPE", "vocab": {"a": []}, "merges": []}}, "model.vocab.dict"),
    "a role": ("tokenizer_config.json", {"eos_token": {"text": "a"}}, "eos_token"),
    "a template": ("tokenizer_config.json", {"chat_template": 5}, "chat_template"),
}


@pytest.mark.parametrize("what", _SPOILT)
def test_a_tokenizer_s_file_of_other_types_is_one_line(tmp_path: Path, what: str):
    name, changes, says = _SPOILT[what]
    definition = {"version": "1.0", "model": {"type": "BPE", "vocab": {"a": 0, "b": 1}, "merges": []}}
    files = {"tokenizer.json": definition, "tokenizer_config.json": {"eos_token": "b"}}
    for file, content in files.items():
        content = {**content, **changes} if file == name else content
        (tmp_path / file).write_text(json.dumps(content))
    with pytest.raises(ModelError, match=f"{name}: .*{says}") as caught:
        tokenizer.load(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_no_gguf_is_refused(tmp_path: Path):
    for content in (b"", b"GGUF", b"not a GGUF file, but long enough to hold a header"):
        (tmp_path / "a.gguf").write_bytes(content)
        with pytest.raises(ModelError, match="GGUF"):
            tokenizer.load(tmp_path / "a.gguf")


# What other files state


STATED = {"content": "<|turn|>", "special": True, "normalized": False, "lstrip": False, "rstrip": False}


@pytest.mark.parametrize(
    ("config", "more"),
    [
        ({"added_tokens_decoder": {"400": STATED}}, {}),
        ({"extra_special_tokens": ["<|turn|>", {"__type": "AddedToken", "content": "<|x|>", "rstrip": True}]}, {}),
        ({"additional_special_tokens": ["<|turn|>"]}, {}),
        ({"extra_special_tokens": {"turn_token": "<|turn|>"}}, {}),
        ({"mask_token": "<|turn|>"}, {}),
        ({"added_tokens_decoder": {"400": {**STATED, "special": False}, "401": {**STATED, "content": "b c"}}}, {}),
        ({}, {"added_tokens.json": {"<|turn|>": 400}}),
        # Flags that the configuration states otherwise than tokenizer.json does.
        ({"added_tokens_decoder": {"3": {**STATED, "content": "<|end|>", "special": False}}}, {}),
    ],
)
def test_tokens_that_only_the_configuration_states_are_read_as_transformers_reads_them(tmp_path, config, more):
    folder = _folder(tmp_path, _engine("byte_level"), **config)
    size = len(json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"])
    for key in [key for key in config.get("added_tokens_decoder", {}) if int(key) >= 400]:
        config["added_tokens_decoder"][str(size + int(key) - 400)] = config["added_tokens_decoder"].pop(key)
    _folder(tmp_path, _engine("byte_level"), **config)
    for name, content in more.items():
        (folder / name).write_text(json.dumps({text: size for text in content}))
    ours, theirs = tokenizer.load(folder), AutoTokenizer.from_pretrained(folder)
    assert ours.vocab_size == len(theirs)
    known = {i: (token.content, token.special) for i, token in theirs.added_tokens_decoder.items()}
    assert {i: (token.content, token.special) for i, token in ours.engine.get_added_tokens_decoder().items()} == known
    text = "x<|turn|> y<|x|>  z<|end|>b c"
    assert ours.engine.encode(text, add_special_tokens=False).ids == theirs.encode(text, add_special_tokens=False)
    tokenizer.save(ours, tmp_path / "saved")
    again = AutoTokenizer.from_pretrained(tmp_path / "saved")
    assert again.encode(text, add_special_tokens=False) == theirs.encode(text, add_special_tokens=False)


def test_a_padding_token_that_nothing_else_mentions_does_not_make_the_model_larger(tmp_path: Path):
    plain = tokenizer.load(_folder(tmp_path / "plain", _engine("byte_level")))
    for name, config in {
        "named": {},
        "stated": {"added_tokens_decoder": {str(plain.vocab_size): {**STATED, "content": "[PAD]"}}},
    }.items():
        padded = tokenizer.load(_folder(tmp_path / name, _engine("byte_level"), pad_token="[PAD]", **config))
        assert (padded.vocab_size, padded.pad_id) == (plain.vocab_size, None)
    asked = _folder(tmp_path / "asked", _engine("byte_level"), pad_token="[PAD]", chat_template="{{ pad_token }}")
    assert tokenizer.load(asked).written(plain.vocab_size) == "[PAD]"


@pytest.mark.parametrize(
    ("generation", "config", "ends"),
    [
        ({"eos_token_id": [3, 2]}, {}, (2, 3)),
        ({"eos_token_id": 3}, {"eos_token_id": [2, 3]}, (2, 3)),
        ({"eos_token_id": 70}, {}, (2, 70)),
        ({}, {"eos_token_id": [2, 3]}, (2, 3)),
        # Left over from another vocabulary: the number of an ordinary word.
        ({}, {"eos_token_id": 70}, (2,)),
        ({"eos_token_id": 70, "_from_model_config": True}, {"eos_token_id": 70}, (2,)),
        ({"eos_token_id": True}, {"eos_token_id": ["3", None]}, (2,)),
    ],
)
def test_generation_stops_wherever_the_model_s_files_say(tmp_path: Path, generation, config, ends):
    folder = _folder(tmp_path, _engine("byte_level"))
    (folder / "generation_config.json").write_text(json.dumps(generation))
    (folder / "config.json").write_text(json.dumps(config))
    assert tokenizer.load(folder).stop_ids == ends


def test_a_token_that_ends_turns_is_special_though_not_flagged(tmp_path: Path):
    engine = _engine("byte_level")
    engine.add_tokens([AddedToken("<|stop|>", normalized=False)])
    folder = _folder(tmp_path, engine)
    stop = engine.token_to_id("<|stop|>")
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [2, stop]}))
    assert tokenizer.load(folder).special["<|stop|>"] == stop


def test_end_of_turn_tokens_of_a_gguf(tmp_path: Path):
    tokens, types = ["a", "<|s|>", "<|e|>", "<|m|>", "<|eot_id|>", "<|im_end|>", "aa"], [1, 3, 3, 3, 3, 1, 1]
    path = _write_gguf(tmp_path / "m.gguf", "gpt2", tokens, types, token_merges=["a a"], tokenizer_pre="gpt-2",
                       eos_token_id=1, eot_token_id=2, eom_token_id=3)  # fmt: skip
    assert tokenizer.load(path).stop_ids == (1, 2, 3, 4)


def test_normalized_special_tokens_are_found_where_they_are_written(tmp_path: Path):
    """As Llama 2's older files have them: `Hi</s>` would hold no `</s>`, since a space belongs in front of it."""
    engine = _engine("metaspace_first")
    content = json.loads(engine.to_str())
    content["normalizer"] = {"type": "Prepend", "prepend": "▁"}
    content["pre_tokenizer"] = None
    content["added_tokens"] = [{**token, "normalized": True} for token in content["added_tokens"]]
    folder = _folder(tmp_path, Engine.from_str(json.dumps(content)))
    assert 2 not in AutoTokenizer.from_pretrained(folder).encode("Hello</s>", add_special_tokens=False)
    ours = tokenizer.load(folder)
    tokenizer.save(ours, tmp_path / "saved")
    theirs = AutoTokenizer.from_pretrained(tmp_path / "saved")
    ids = theirs.encode("Hello</s>", add_special_tokens=False)
    assert ids == ours.encode_pieces(["Hello", 2])[0].tolist() and ids[-1] == 2
