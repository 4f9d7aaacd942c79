"""Many plain texts → token ids and where each token stands, exactly as the engine cuts them, and much faster.

Two facts are used, each only where the tokenizer's own rules prove it.

No merge crosses the beginning of a word. Where a byte-pair vocabulary writes spaces as `▁` and has no merge of
something else with a following `▁`, a text can be cut in front of every run of spaces, and around every character that
is in no merge. Where GPT-2's pattern cuts a text before anything is merged, it cuts in front of every run of white
space, and looks across none of these cuts. Equal words have equal tokens, which are remembered.

A token is so many bytes. Where nothing but spaces is rewritten, the bytes that tokens stand for add up to those of the
text, so that a sum says where each stands. Where they do not add up, the engine is asked for the places.
"""

import json
import re
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache, partial
from typing import NamedTuple

import numpy as np
from tokenizers import Tokenizer as Engine

from bactrian.data import plain_text
from bactrian.data.plain_text import BYTE, SPACES, Json

_SPACE = "▁"
_REMEMBERED = 100_000  # words: some 25 MB
_LONG = 40  # characters of a word that is not worth remembering
_TOGETHER = 200  # words cut as one text


class Cut(NamedTuple):
    """A text's tokens: ids int32 [N], and the bytes of the text where each begins and ends, int64 [N]."""

    ids: np.ndarray
    begins: np.ndarray
    ends: np.ndarray


def encode(definition: str, texts: Sequence[tuple[str, bool]]) -> list[Cut]:
    """The tokens of each text, which is a first thing in a sequence (true) or comes later, without special tokens.

    definition: the content of a tokenizer.json.
    """
    cutters = _cutters(definition)
    cuts: list[Cut | None] = [None] * len(texts)
    for first in (True, False):
        places = [index for index, (_, is_first) in enumerate(texts) if is_first == first]
        found = cutters[first].encode([texts[index][0] for index in places])
        for index, cut in zip(places, found, strict=True):
            cuts[index] = cut
    return [cut for cut in cuts if cut is not None]


@dataclass
class _Cutter:
    """What cuts texts of one kind.

    lengths:  int64 [vocabulary], bytes that each token stands for; None where they cannot be known.
    composed: whether texts are normalized to NFC first.
    words:    how texts are cut into words, and with what in front; None where that is not proven.
    """

    engine: Engine
    lengths: np.ndarray | None
    composed: bool
    words: "_Words | None"

    def encode(self, texts: list[str]) -> list[Cut]:
        if not texts:
            return []
        if self.words is not None:
            each = [np.frombuffer(ids, np.int32) for ids in self.words.encode(texts)]
        else:
            found = self.engine.encode_batch_fast(texts, add_special_tokens=False)
            each = [np.array(one.ids, np.int32) for one in found]
        if self.lengths is None:
            return [_asked(self.engine, text) for text in texts]
        sizes = np.split(self.lengths[np.concatenate(each)], np.cumsum([len(ids) for ids in each])[:-1])
        return [self._placed(*columns) for columns in zip(texts, each, sizes, strict=True)]

    def _placed(self, text: str, ids: np.ndarray, sizes: np.ndarray) -> Cut:
        is_ascii = text.isascii()
        if is_ascii or not self.composed or unicodedata.is_normalized("NFC", text):
            ends = sizes.cumsum()
            # A space that was put in front is no byte of the text.
            added = int(ends[-1]) - (len(text) if is_ascii else len(text.encode())) if len(ends) else 0
            if added == 0:
                return Cut(ids, ends - sizes, ends)
            if added == 1:
                return Cut(ids, np.maximum(ends - sizes - 1, 0), ends - 1)
        return _asked(self.engine, text)


def _asked(engine: Engine, text: str) -> Cut:
    found = engine.encode(text, add_special_tokens=False)
    characters = np.frombuffer(text.encode("utf-32-le"), np.uint32)
    sizes = 1 + (characters >= 0x80).astype(np.int64) + (characters >= 0x800) + (characters >= 0x10000)
    places = np.concatenate([np.zeros(1, np.int64), sizes.cumsum()])
    spans = np.array(found.offsets, np.int64).reshape(-1, 2)
    return Cut(np.array(found.ids, np.int32), places[spans[:, 0]], places[spans[:, 1]])


class _Known(dict[str, bytes | bytearray]):
    """Words and their tokens, int32 in bytes. What is asked for and not known is listed in `new`, to be filled in."""

    def __init__(self, older: "dict[str, bytes | bytearray]"):
        self.older = older
        self.new: list[str] = []

    def __missing__(self, word: str) -> bytes | bytearray:
        tokens = self.older.get(word)
        if tokens is None:
            tokens = bytearray()
            self.new.append(word)
        self[word] = tokens
        return tokens


@dataclass
class _Words:
    """Words and their tokens, remembered. `bare` cuts words of a text that is `written` already.

    separator: what stands between words that are cut as one text, and its token; None if there is none.
    joins:     whether a word may be cut so: beside a separator it gives the tokens that it gives alone.
    """

    bare: Engine
    pattern: re.Pattern[str]
    separator: tuple[str, int] | None
    written: Callable[[str], str] = str
    joins: Callable[[str], object] = bool
    known: _Known = field(default_factory=lambda: _Known({}))

    def encode(self, texts: list[str]) -> list[bytes]:
        """The tokens of each text, int32 in bytes: words are looked up and joined, never handled token by token."""
        if len(self.known) > _REMEMBERED:
            self.known = _Known(older=dict(self.known))
        known = self.known
        found = [list(map(known.__getitem__, self.pattern.findall(self.written(text)))) for text in texts]
        new, known.new = known.new, []
        cut = self._cut(new)
        for word, tokens in zip(new, cut, strict=True):
            known[word] += tokens  # in place: whoever asked for it holds it
        joined = [b"".join(tokens) for tokens in found]
        for word, tokens in zip(new, cut, strict=True):
            if len(word) > _LONG:
                del known[word]
            else:
                known[word] = tokens
        return joined

    def _cut(self, new: list[str]) -> list[bytes]:
        joined = [word for word in new if self.separator and self.joins(word)]
        cut = dict(zip(joined, self._cut_joined(joined), strict=True))
        alone = [word for word in new if word not in cut]
        found = self.bare.encode_batch_fast(alone, add_special_tokens=False)
        cut |= {word: np.array(each.ids, np.int32).tobytes() for word, each in zip(alone, found, strict=True)}
        return [cut[word] for word in new]

    def _cut_joined(self, words: list[str]) -> list[bytes]:
        if self.separator is None:
            return []
        character, token = self.separator
        groups = [words[begin : begin + _TOGETHER] for begin in range(0, len(words), _TOGETHER)]
        cut: list[bytes] = []
        for found in self.bare.encode_batch_fast(list(map(character.join, groups)), add_special_tokens=False):
            ids = np.array(found.ids, np.int32)
            ends = [*(4 * np.flatnonzero(ids == token)).tolist(), 4 * len(ids)]
            tokens = ids.tobytes()
            cut += [tokens[begin:end] for begin, end in zip([0, *(end + 4 for end in ends)], ends, strict=False)]
        return cut


@lru_cache(maxsize=8)
def _cutters(definition: str) -> dict[bool, _Cutter]:
    first, later = plain_text.definitions(definition)
    cutter = _cutter(first, plain_text.engines(definition)[0])
    return {True: cutter, False: cutter if later == first else _cutter(later, plain_text.engines(definition)[1])}


def _cutter(definition: str, engine: Engine) -> _Cutter:
    content = json.loads(definition)
    normalizer, pre_tokenizer = content.get("normalizer"), content.get("pre_tokenizer")
    front = _front(normalizer, pre_tokenizer)
    composed = _kinds(normalizer) == ["NFC"]
    if front is not None:
        return _Cutter(engine, _lengths(content, spaces=True), False, _words(content, *front))
    if (
        content["model"]["type"] == "BPE"
        and _kinds(pre_tokenizer)[-1:] == ["ByteLevel"]
        and (composed or not normalizer)
    ):
        return _Cutter(engine, _lengths(content, spaces=False), composed, _white_space_words(content, engine))
    return _Cutter(engine, None, False, None)


def _kinds(step: Json | None) -> list[str]:
    if step is None:
        return []
    inner = step.get("normalizers") or step.get("pretokenizers")
    return [kind for each in inner for kind in _kinds(each)] if inner else [step["type"]]


def _front(normalizer: Json | None, pre_tokenizer: Json | None) -> tuple[str, bool] | None:
    """What is put in front of a text, and whether only where it does not begin so; None if more than that, and than
    writing spaces as `▁`, is done to it."""
    if pre_tokenizer is None and normalizer is not None:
        steps = normalizer.get("normalizers", [normalizer])
        replaces = {"type": "Replace", "pattern": {"String": " "}, "content": _SPACE}
        if steps == [replaces]:
            return "", False
        if steps == [{"type": "Prepend", "prepend": _SPACE}, replaces]:
            return _SPACE, False
    if normalizer is None and pre_tokenizer is not None and pre_tokenizer["type"] == "Metaspace":
        scheme = pre_tokenizer.get("prepend_scheme")
        if pre_tokenizer["replacement"] == _SPACE and pre_tokenizer.get("split") is False and scheme is not None:
            return ("" if scheme == "never" else _SPACE), True
    return None


def _lengths(content: Json, spaces: bool) -> np.ndarray | None:
    """Bytes that each token stands for. `spaces`: they are written as `▁` and bytes as `<0x0A>`; else every character
    of a token is a byte."""
    vocab = content["model"]["vocab"]
    if not isinstance(vocab, dict):
        return None
    added = {token["id"]: len(token["content"].encode()) for token in content["added_tokens"]}
    lengths = np.zeros(max([*vocab.values(), *added], default=0) + 1, np.int64)
    for token, i in vocab.items():
        if not spaces:
            lengths[i] = len(token)
        else:
            lengths[i] = 1 if BYTE.fullmatch(token) else len(token.replace(_SPACE, " ").encode())
    for i, length in added.items():
        lengths[i] = length
    return lengths


def _white_space_words(content: Json, engine: Engine) -> _Words | None:
    """The cut in front of white space, if GPT-2's pattern alone cuts texts, maybe after digits are set apart."""
    steps = content["pre_tokenizer"].get("pretokenizers", [content["pre_tokenizer"]])
    if content.get("normalizer") or any(not token["special"] for token in content["added_tokens"]):
        return None
    *before, last = steps
    if last["add_prefix_space"] or not last.get("use_regex", True) or any(each["type"] != "Digits" for each in before):
        return None
    line_end = content["model"]["vocab"].get("Ċ")
    separator = None if line_end is None else ("\n", line_end)
    return _Words(engine, re.compile(f"[{SPACES}]*[^{SPACES}]+|[{SPACES}]+"), separator, joins=_begins_with_a_letter)


def _begins_with_a_letter(word: str) -> bool:
    """After one space: there the pattern cuts from a line end; a digit would be set apart from its space first."""
    return word[0] == " " and word[1:2].isalpha()


def _words(content: Json, prefix: str, unless_there: bool) -> _Words | None:
    """The cut into words, if no token can cross it."""
    model = content["model"]
    plain = ("dropout", "continuing_subword_prefix", "end_of_word_suffix", "ignore_merges")
    if model["type"] != "BPE" or any(model.get(key) for key in plain):
        return None
    if any(not token["special"] for token in content["added_tokens"]):
        return None  # they are found in the text before words are
    if not model.get("byte_fallback") or any(f"<0x{byte:02X}>" not in model["vocab"] for byte in range(256)):
        return None  # unknown characters side by side become one token
    merges = [merge.split(" ") if isinstance(merge, str) else merge for merge in model["merges"]]
    if any(left[-1] != _SPACE and right[0] == _SPACE for left, right in merges):
        return None
    merged = "".join(sorted({char for merge in merges for part in merge for char in part} - {_SPACE}))
    inside = f"[{re.escape(merged)}]" if merged else "(?!)"
    # A character in no merge is a word alone.
    pattern = f"{_SPACE}+{inside}*|{inside}+|."
    separator = None if "\n" in merged or "\n" in model["vocab"] else ("\n", model["vocab"]["<0x0A>"])
    bare = plain_text.engine(plain_text.canonical({**content, "normalizer": None, "pre_tokenizer": None}))
    written = partial(_written, prefix, unless_there)
    joins = (separator or " ")[0].__ne__  # the separator itself, cut so, would be taken for two ends
    return _Words(bare, re.compile(pattern, re.DOTALL), separator, written, joins)


def _written(prefix: str, unless_there: bool, text: str) -> str:
    written = text.replace(" ", _SPACE)
    if not written or (unless_there and written.startswith(_SPACE)):
        return written
    return prefix + written
