"""The tokenizer inside a GGUF file, as a `tokenizers` definition.

A GGUF file holds the vocabulary, but only names how text is cut before it is looked up (`tokenizer.ggml.pre`), and for
SentencePiece vocabularies holds scores in place of merges. Both are put back here, exactly or not at all: a name that
is not known is an error, never a guess.
"""

from pathlib import Path
from typing import Annotated, Any, NamedTuple

from gguf import TokenType
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from bactrian import gguf_file
from bactrian.errors import ModelError
from bactrian.files import schemas

Json = dict[str, Any]


class Description(NamedTuple):
    """What a file says of its tokenizer; `definition` is the content of a tokenizer.json."""

    definition: Json
    bos_id: int | None
    eos_id: int
    pad_id: int | None
    chat_template: str | None
    ends: tuple[int, ...] = ()  # where generation stops, EOS among them or not
    named: tuple[tuple[str, str], ...] | None = None  # special tokens by the names that a chat template calls them


# The flags of an added token that is found as it is written and takes nothing of its neighbours.
EXACT: Json = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}

_LETTERS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+"
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_GPT2: Json = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
_BYTES: Json = {**_GPT2, "use_regex": False}
_DIGITS: Json = {"type": "Digits", "individual_digits": True}


def _split(regex: str) -> Json:
    return {"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": False}


# `tokenizer.ggml.pre` → pre-tokenizer. The names are llama.cpp's; the pre-tokenizers are those of the original
# tokenizer.json files (SmolLM2, Llama 3, Qwen 2, GPT-2), which llama.cpp rewrites for its own regex engine. "default"
# has no original: it is llama.cpp's sequence of patterns (src/llama-vocab.cpp).
_LLAMA3 = [_split(rf"{_LETTERS}|\p{{N}}{{1,3}}|{_REST}"), _BYTES]
_QWEN2 = [_split(rf"{_LETTERS}|\p{{N}}|{_REST}"), _BYTES]
_PRE_TOKENIZERS: dict[str, list[Json]] = {
    "gpt-2": [_GPT2],
    "phi-2": [_GPT2],
    "mpt": [_GPT2],
    "olmo": [_GPT2],
    "smollm": [_DIGITS, _GPT2],
    "starcoder": [_DIGITS, _GPT2],
    "refact": [_DIGITS, _GPT2],
    "command-r": [_DIGITS, _GPT2],
    "llama-bpe": _LLAMA3,
    "llama3": _LLAMA3,
    "llama-v3": _LLAMA3,
    "falcon3": _LLAMA3,
    "smaug-bpe": _LLAMA3,
    "qwen2": _QWEN2,
    "deepseek-r1-qwen": _QWEN2,
    "default": [
        _split(r"[\p{P}\$\+<=>\^~\|]+"),
        _split(r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)"),
        _split(r"\p{N}+"),
        _split(r"[0-9][0-9][0-9]"),
        _BYTES,
    ],
}
_ENDS_TURN = frozenset(
    {"<|eot_id|>", "<|im_end|>", "<|end|>", "<end_of_turn>", "<EOT>", "_<EOT>", "[EOT]", "<|eom_id|>", "<|return|>"}
)
# Llama 3's vocabulary has words that its merges do not reach, so a piece that is a word is taken whole; its texts begin
# with BOS.
_WHOLE_WORDS = frozenset({"llama-bpe", "llama3", "llama-v3", "falcon3"})

_ROLES = ("bos", "eos", "eot", "eom", "padding", "unknown")
_Id = Annotated[int, Field(ge=0)]


class _Vocabulary(BaseModel):
    """The keys of a vocabulary, by their names after `tokenizer.ggml.`."""

    model_config = ConfigDict(strict=True, allow_inf_nan=False)

    tokens: Annotated[list[str], Field(min_length=1)]
    token_type: list[int]
    scores: list[float] | None = None
    merges: list[str] | None = None
    pre: str | None = None
    add_bos_token: bool | None = None
    add_space_prefix: bool | None = None
    bos_token_id: _Id | None = None
    eos_token_id: _Id | None = None
    eot_token_id: _Id | None = None
    eom_token_id: _Id | None = None
    padding_token_id: _Id | None = None
    unknown_token_id: _Id | None = None


_VOCABULARY = TypeAdapter(_Vocabulary)


def read(path: Path) -> Description:
    """The tokenizer of a GGUF file; `ModelError` names the file and what is missing or unknown in it."""
    fields, _ = gguf_file.read(path, with_texts=True)
    kind = fields.get("tokenizer.ggml.model")
    if kind not in ("gpt2", "llama"):
        raise ModelError(f"{path}: tokenizer.ggml.model is {kind!r}; known are 'gpt2' and 'llama'")
    for name in ("tokens", "token_type", *(("merges",) if kind == "gpt2" else ("scores",))):
        if f"tokenizer.ggml.{name}" not in fields:
            raise ModelError(f"{path}: tokenizer.ggml.{name} is missing; convert the model to GGUF again")
    _refuse_what_cannot_be(fields, path)
    sentencepiece = kind == "llama"
    bos_id = fields.get("tokenizer.ggml.bos_token_id", 1 if sentencepiece else None)
    eos_id = fields.get("tokenizer.ggml.eos_token_id", 2 if sentencepiece else None)
    if eos_id is None:
        raise ModelError(f"{path}: tokenizer.ggml.eos_token_id is missing; convert the model to GGUF again")
    definition = _sentencepiece(fields) if sentencepiece else _byte_level(fields, path)
    begins = fields.get("tokenizer.ggml.add_bos_token", sentencepiece or _pre(fields) in _WHOLE_WORDS)
    if begins and bos_id is not None:
        bos = fields["tokenizer.ggml.tokens"][bos_id]
        definition["post_processor"] = begin_with(bos, bos_id)
    pad_id = fields.get("tokenizer.ggml.padding_token_id")
    template, ends = fields.get("tokenizer.chat_template"), _ends(fields)
    return Description(definition, bos_id, eos_id, pad_id, template, ends)


def _ends(fields: Json) -> tuple[int, ...]:
    """The tokens that end a turn or a message: those that the file states, and those whose text says so to llama.cpp
    (src/llama-vocab.cpp), if they are set apart from text."""
    stated = [fields.get(f"tokenizer.ggml.{role}_token_id") for role in ("eot", "eom")]
    tokens, types = fields["tokenizer.ggml.tokens"], fields["tokenizer.ggml.token_type"]
    apart = (TokenType.CONTROL, TokenType.USER_DEFINED)
    known = [i for i, text in enumerate(tokens) if text in _ENDS_TURN and types[i] in apart]
    return tuple(dict.fromkeys(i for i in [*stated, *known] if i is not None and i < len(tokens)))


def _refuse_what_cannot_be(fields: Json, path: Path) -> None:
    """See that every value is of its type, that lists are as long as the vocabulary, and that ids are in it."""
    own = "tokenizer.ggml."
    stated = {key.removeprefix(own): value for key, value in fields.items() if key.startswith(own)}
    schemas.validate(_VOCABULARY, stated, str(path), ModelError, own)
    size = len(stated["tokens"])
    for name in ("token_type", "scores"):
        if name in stated and len(stated[name]) != size:
            raise ModelError(f"{path}: {own}{name} has {len(stated[name])} values for {size} tokens; convert it again")
    for name in _ROLES:
        token = stated.get(f"{name}_token_id", 0)
        if token >= size:
            raise ModelError(f"{path}: {own}{name}_token_id is {token}, and there are {size} tokens; convert it again")
    if not isinstance(fields.get("tokenizer.chat_template", ""), str):
        raise ModelError(f"{path}: tokenizer.chat_template is no text; convert the model to GGUF again")


def begin_with(bos: str, bos_id: int) -> Json:
    """The post-processor that puts BOS in front of a text."""
    token, text = {"SpecialToken": {"id": bos, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}
    second = {"Sequence": {"id": "B", "type_id": 1}}
    known = {bos: {"id": bos, "ids": [bos_id], "tokens": [bos]}}
    return {
        "type": "TemplateProcessing",
        "single": [token, text],
        "pair": [token, text, second],
        "special_tokens": known,
    }


def _pre(fields: Json) -> str | None:
    return fields.get("tokenizer.ggml.pre")


def _byte_level(fields: Json, path: Path) -> Json:
    """A vocabulary of byte strings with merges, as GPT-2's, Llama 3's and SmolLM2's."""
    pre = _pre(fields)
    if pre not in _PRE_TOKENIZERS:
        known = ", ".join(sorted(_PRE_TOKENIZERS))
        raise ModelError(f"{path}: tokenizer.ggml.pre is {pre!r}; known are {known}; use the model's tokenizer.json")
    merges = [merge.split(" ") for merge in fields["tokenizer.ggml.merges"]]
    if any(len(merge) != 2 for merge in merges):
        raise ModelError(f"{path}: tokenizer.ggml.merges holds an entry that is not two pieces and a space")
    definition = _definition(fields, merges, ignore_merges=pre in _WHOLE_WORDS)
    # Qwen 2 alone of these composes Unicode characters before anything else.
    definition["normalizer"] = {"type": "NFC"} if pre in ("qwen2", "deepseek-r1-qwen") else None
    definition["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": _PRE_TOKENIZERS[pre]}
    definition["decoder"] = _BYTES
    return definition


def _sentencepiece(fields: Json) -> Json:
    """A vocabulary of SentencePiece's BPE kind, as Llama 2's: spaces are `▁`, unknown characters become bytes."""
    tokens, types = fields["tokenizer.ggml.tokens"], fields["tokenizer.ggml.token_type"]
    prefixed = fields.get("tokenizer.ggml.add_space_prefix", True)
    definition = _definition(fields, merges_from_scores(tokens, fields["tokenizer.ggml.scores"], types))
    unknown = [token for token, kind in zip(tokens, types, strict=True) if kind == TokenType.UNKNOWN]
    definition["model"].update(
        unk_token=unknown[0] if unknown else None, fuse_unk=True, byte_fallback=TokenType.BYTE in types
    )
    spaces: Json = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
    marks: Json = {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}
    strip: Json = {"type": "Strip", "content": " ", "start": 1, "stop": 0}
    before: list[Json] = [{"type": "Prepend", "prepend": "▁"}] if prefixed else []
    after: list[Json] = [strip] if prefixed else []
    definition["normalizer"] = {"type": "Sequence", "normalizers": [*before, spaces]}
    definition["decoder"] = {
        "type": "Sequence",
        "decoders": [marks, {"type": "ByteFallback"}, {"type": "Fuse"}, *after],
    }
    return definition


def merges_from_scores(tokens: list[str], scores: list[float], types: list[int]) -> list[list[str]]:
    """The merges that make BPE choose as SentencePiece does: the join with the best score first.

    Every way to cut a piece in two pieces of the vocabulary is a merge, and ranks by the score of the whole piece.
    Equal scores keep the vocabulary's order, and the cuts of one piece stand in the order of their halves' ids.
    """
    ids = {token: i for i, token in enumerate(tokens) if types[i] == TokenType.NORMAL}
    merges: list[list[str]] = []
    for token in sorted(ids, key=lambda token: -scores[ids[token]]):
        cuts = ([token[:cut], token[cut:]] for cut in range(1, len(token)))
        known = [cut for cut in cuts if cut[0] in ids and cut[1] in ids]
        merges += sorted(known, key=lambda cut: (ids[cut[0]], ids[cut[1]]))
    return merges


def _definition(fields: Json, merges: list[list[str]], ignore_merges: bool = False) -> Json:
    tokens, types = fields["tokenizer.ggml.tokens"], fields["tokenizer.ggml.token_type"]
    added = (TokenType.CONTROL, TokenType.UNKNOWN, TokenType.USER_DEFINED)
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {"id": i, "content": token, **EXACT, "special": kind != TokenType.USER_DEFINED}
            for i, (token, kind) in enumerate(zip(tokens, types, strict=True))
            if kind in added
        ],
        "normalizer": None,
        "pre_tokenizer": None,
        "post_processor": None,
        "decoder": None,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": ignore_merges,
            "vocab": {token: i for i, token in enumerate(tokens)},
            "merges": merges,
        },
    }
