"""Engines of the `tokenizers` library that find no special token in a text, whatever it looks like."""

import hashlib
import json
import re
from functools import lru_cache
from typing import Any

from tokenizers import Tokenizer as Engine

Json = dict[str, Any]

BYTE = re.compile(r"<0x[0-9A-F]{2}>")  # how SentencePiece writes a token that is a byte

# What `\s` matches in the engine's regexes; Python's `str.strip()` takes four control characters more.
SPACES = "\t\n\x0b\x0c\r \x85\xa0\u1680\u2028\u2029\u202f\u205f\u3000" + "".join(map(chr, range(0x2000, 0x200B)))


def canonical(definition: Json) -> str:
    """The text of a tokenizer.json."""
    return json.dumps(definition, ensure_ascii=False, separators=(",", ":"))


@lru_cache(maxsize=8)
def engines(definition: str) -> tuple[Engine, Engine]:
    """Engines that find no special token in a text: for the first thing in a sequence, and for what comes later."""
    first, later = definitions(definition)
    made = engine(first)
    return made, made if later == first else engine(later)


def engine(definition: str) -> Engine:
    """An engine to which even its own special tokens are text."""
    made = Engine.from_str(definition)
    made.encode_special_tokens = True
    return made


def definitions(definition: str) -> tuple[str, str]:
    """A tokenizer.json without special tokens: for the first thing in a sequence, and for what comes later."""
    content = json.loads(definition)
    _hide_special(content, secret=hashlib.sha256(definition.encode()).hexdigest())
    first = canonical(content)
    return first, canonical(content) if _begin_as_later(content.get("pre_tokenizer")) else first


def _hide_special(definition: Json, secret: str) -> None:
    """Renames special tokens, in place, to what no text holds; their ids stay."""
    special = {token["content"]: token["id"] for token in definition["added_tokens"] if token["special"]}
    hidden = {text: f"<{secret}:{i}>" for text, i in special.items()}
    model = definition["model"]
    vocab = model["vocab"]
    if isinstance(vocab, dict):
        model["vocab"] = {hidden.get(text, text): i for text, i in vocab.items()}
    else:  # Unigram: a list of pieces and scores
        model["vocab"] = [[hidden.get(text, text), score] for text, score in vocab]
    if model.get("unk_token") in hidden:
        model["unk_token"] = hidden[model["unk_token"]]
    if "merges" in model:
        pairs = (merge.split(" ") if isinstance(merge, str) else merge for merge in model["merges"])
        model["merges"] = [pair for pair in pairs if hidden.keys().isdisjoint((*pair, "".join(pair)))]
    for token in definition["added_tokens"]:
        token["content"] = hidden.get(token["content"], token["content"])
    definition["post_processor"] = None


def _begin_as_later(step: Json | None) -> bool:
    """Turns "a space in front of the first text" off, in place; False if it was not on."""
    if step is None:
        return False
    if step["type"] == "Sequence":
        return any([_begin_as_later(inner) for inner in step["pretokenizers"]])
    if step["type"] != "Metaspace" or step.get("prepend_scheme") != "first":
        return False
    step["prepend_scheme"] = "never"
    return True
