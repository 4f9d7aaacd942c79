"""Text ↔ token ids, on the `tokenizers` library alone.

Invariant: text is text. A special token enters a sequence by its id, put there by whoever wrote the chat format; no
characters in a text ever become one. Otherwise ids are those of the Hugging Face fast tokenizer with the same
tokenizer.json.

    tokenizer = load(Path("model/"))               a Hugging Face folder, or a .gguf file
    ids, spans = tokenizer.encode_pieces([1, "Hi </s>", 2])
    save(tokenizer, Path("out/"), max_length=8192)   transformers.AutoTokenizer reads it back
"""

import hashlib
import json
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tokenizers import AddedToken
from tokenizers import Tokenizer as Engine

from bactrian.data import gguf_tokenizer, plain_text, tokenizer_folder, words
from bactrian.data.plain_text import Json, canonical
from bactrian.errors import ModelError
from bactrian.files import documents


class Cut(NamedTuple):
    """Pieces as tokens. Places are bytes of the UTF-8 string in which special tokens are written out.

    ids:    int32 [N].
    begins: int64 [N], the first byte of each token, or of the first of its characters; ends: the one after its last.
    starts: where each piece begins, int64 [pieces].
    """

    ids: np.ndarray
    begins: np.ndarray
    ends: np.ndarray
    starts: np.ndarray


@dataclass(frozen=True)
class Tokenizer:
    """A vocabulary, the rules that cut text into it, and the ids that have a role.

    definition: the content of a tokenizer.json, as text.
    eos_id:     ends an assistant's turn, or a document.
    bos_id:     begins a sequence, where the tokenizer or the chat format puts it.
    ends:       tokens at which generation stops too, by the model's other files.
    named:      special tokens as the model's files name them; None where they name BOS and EOS alone.
    """

    definition: str = field(repr=False)
    eos_id: int
    bos_id: int | None = None
    pad_id: int | None = None
    chat_template: str | None = field(default=None, repr=False)
    ends: tuple[int, ...] = ()
    named: tuple[tuple[str, str], ...] | None = None

    @property
    def stop_ids(self) -> tuple[int, ...]:
        """Tokens at which generation stops, EOS first."""
        return tuple(dict.fromkeys([self.eos_id, *self.ends]))

    @property
    def names(self) -> dict[str, str]:
        """Special tokens by the names that a chat template calls them: `bos_token`, `eos_token`, …"""
        known = {"bos_token": self.bos_text, "eos_token": self.eos_text}
        return known if self.named is None else dict(self.named)

    @property
    def engine(self) -> Engine:
        """The tokenizer as its file describes it: special tokens in a text are taken for what they look like."""
        return _engine(self.definition)

    @cached_property
    def vocab_size(self) -> int:
        """How many ids there are, added tokens included."""
        return max(self.engine.get_vocab(with_added_tokens=True).values()) + 1

    @cached_property
    def special(self) -> dict[str, int]:
        """Special tokens, which text never becomes, by how they are written.

        Added tokens that are not marked special (runs of spaces, `<think>`) are words like any other.
        """
        return {token.content: i for i, token in sorted(self._added.items()) if token.special}

    @cached_property
    def set_apart(self) -> list[str]:
        """Added tokens, special or not, as they are written; but for those of white space, which are words."""
        return [token.content for _, token in sorted(self._added.items()) if token.content.strip()]

    @cached_property
    def fingerprint(self) -> str:
        """Equal for two tokenizers only if they give equal ids and render equal chats."""
        roles: list[Any] = [self.bos_id, self.eos_id, self.chat_template]
        known, asked = ("bos_token", "eos_token"), self.chat_template or ""
        roles += [name for name in self.named or () if name[0] not in known and name[0] in asked]
        return hashlib.sha256((self.definition + json.dumps(roles)).encode()).hexdigest()

    @cached_property
    def prefix_ids(self) -> tuple[int, ...]:
        """What the tokenizer itself puts in front of a text: BOS, or nothing."""
        alone = self.engine.encode("a", add_special_tokens=False).ids
        ids = self.engine.encode("a").ids
        begins = next((i for i in range(len(ids)) if ids[i : i + len(alone)] == alone), 0)
        return tuple(ids[:begins])

    @property
    def bos_text(self) -> str:
        """How BOS is written; empty where there is none."""
        return "" if self.bos_id is None else self.written(self.bos_id)

    @property
    def eos_text(self) -> str:
        return self.written(self.eos_id)

    def written(self, token_id: int) -> str:
        """A token as the vocabulary writes it; special tokens as they stand in a chat template."""
        added = self._added.get(token_id)
        text = added.content if added else self.engine.id_to_token(token_id)
        if text is None:
            raise ModelError(f"token id {token_id} is not in the vocabulary of {self.vocab_size} ids")
        return text

    def encode_pieces(self, pieces: Sequence[str | int]) -> tuple[np.ndarray, np.ndarray]:
        """Token ids of texts (`str`) and special tokens (`int`) laid one after the other, and where each stands.

        Returns ids, int32 [N], and spans, int32 [N, 2]: the first character of each token and the one after its last,
        in the string in which special tokens are written out. A character of several tokens is in the span of each.
        Texts must not be neighbours: joined or apart, they are cut differently.

        Example: `[1, "Hi", 2]` of Llama 2 gives ids `[1, 6324, 2]`, spans `[[0, 3], [3, 5], [5, 9]]`.
        """
        ids: list[int] = []
        spans: list[tuple[int, int]] = []
        at = 0
        for index, piece in enumerate(pieces):
            if isinstance(piece, int):
                end = at + len(self.written(piece))
                ids.append(piece)
                spans.append((at, end))
            else:
                end = at + len(piece)
                begin, text = self._trimmed(piece, pieces[index - 1 : index], pieces[index + 1 : index + 2])
                first, later = plain_text.engines(self.definition)
                encoding = (first if at + begin == 0 else later).encode(text, add_special_tokens=False)
                ids += encoding.ids
                spans += [(at + begin + a, at + begin + b) for a, b in encoding.offsets]
            at = end
        return np.array(ids, np.int32), np.array(spans, np.int32).reshape(-1, 2)

    def encode_many(self, batch: Sequence[Sequence[str | int]]) -> list[Cut]:
        """What `encode_pieces` gives for each of many sequences, with places in bytes; far faster."""
        prepared = [self._prepared(pieces) for pieces in batch]
        texts = [(text, first) for pieces in prepared for _, text, first in pieces if isinstance(text, str)]
        cut = iter(words.encode(self.definition, texts))
        return [self._joined(pieces, given, cut) for pieces, given in zip(prepared, batch, strict=True)]

    def _prepared(self, pieces: Sequence[str | int]) -> list[tuple[int, str | int, bool]]:
        """Of each piece the bytes in front that a neighbour swallows, what is left, and whether it begins it all."""
        prepared: list[tuple[int, str | int, bool]] = []
        for index, piece in enumerate(pieces):
            if isinstance(piece, int):
                prepared.append((0, piece, False))
            else:
                begin, text = self._trimmed(piece, pieces[index - 1 : index], pieces[index + 1 : index + 2])
                prepared.append((len(piece[:begin].encode()), text, index == 0 and begin == 0))
        return prepared

    def _joined(
        self, prepared: list[tuple[int, str | int, bool]], pieces: Sequence[str | int], cut: Iterator[words.Cut]
    ) -> Cut:
        ids, begins, ends, starts = [], [], [], []
        at = 0
        for (begin, piece, _), whole in zip(prepared, pieces, strict=True):
            starts.append(at)
            if isinstance(piece, int):
                ids.append([piece])
                begins.append([at])
                at += len(self.written(piece).encode())
                ends.append([at])
            else:
                found = next(cut)
                ids.append(found.ids)
                begins.append(found.begins + (at + begin))
                ends.append(found.ends + (at + begin))
                at += len(str(whole).encode())
        columns = (np.concatenate(column) if column else np.zeros(0) for column in (ids, begins, ends))
        first, second, third = columns
        return Cut(first.astype(np.int32), second.astype(np.int64), third.astype(np.int64), np.array(starts, np.int64))

    def encode_text(self, text: str, add_bos: bool) -> np.ndarray:
        """Token ids of a plain text, int32 [N], after what the tokenizer itself puts in front if `add_bos`."""
        ids = self._plain.encode(text, add_special_tokens=False).ids
        return np.array([*self.prefix_ids, *ids] if add_bos else ids, np.int32)

    def decode(self, ids: Iterable[int], skip_special: bool = True) -> str:
        return self.engine.decode([int(i) for i in ids], skip_special_tokens=skip_special)

    def token_text(self, token_id: int) -> str:
        """How one token reads in the middle of a text: with its space; bytes that are no character become `�`."""
        if token_id in self._added:
            return self._added[token_id].content
        anchor = self._anchor
        return self.decode([anchor, token_id], False)[len(self.decode([anchor], False)) :]

    def add_tokens(self, texts: Sequence[str], special: bool = True) -> "Tokenizer":
        """A tokenizer that has these tokens too, with the next free ids: special ones, or words that texts hold."""
        engine = Engine.from_str(self.definition)
        new = [text for text in texts if special or text not in self.special]
        tokens = [AddedToken(text, special=special, normalized=False) for text in new]
        (engine.add_special_tokens if special else engine.add_tokens)(tokens)
        return replace(self, definition=canonical(json.loads(engine.to_str())))

    def with_special(self, texts: Collection[str]) -> "Tokenizer":
        """A tokenizer to which these added tokens are special, so that no text becomes one."""
        return self._flagged(texts, special=True, normalized=False)

    def with_exact(self, texts: Collection[str]) -> "Tokenizer":
        """A tokenizer that finds these added tokens as they are written, not in a text that was normalized."""
        return self._flagged(texts, normalized=False)

    def _flagged(self, texts: Collection[str], **flags: bool) -> "Tokenizer":
        definition = json.loads(self.definition) if texts else {"added_tokens": []}
        changed = [token for token in definition["added_tokens"] if token["content"] in texts]
        if all(token[flag] == value for token in changed for flag, value in flags.items()):
            return self
        for token in changed:
            token.update(flags)
        return replace(self, definition=canonical(definition))

    def with_template(self, chat_template: str | None) -> "Tokenizer":
        return replace(self, chat_template=chat_template)

    @cached_property
    def _added(self) -> dict[int, AddedToken]:
        return dict(self.engine.get_added_tokens_decoder())

    @cached_property
    def _anchor(self) -> int:
        return self._plain.encode("a", add_special_tokens=False).ids[-1]

    @property
    def _plain(self) -> Engine:
        return plain_text.engines(self.definition)[0]

    def _trimmed(self, text: str, before: Sequence[str | int], after: Sequence[str | int]) -> tuple[int, str]:
        """The text without the spaces that its neighbours swallow, and how many are gone in front."""
        whole = len(text)
        if any(token in self._added and self._added[token].rstrip for token in before if isinstance(token, int)):
            text = text.lstrip(plain_text.SPACES)
        begin = whole - len(text)
        if any(token in self._added and self._added[token].lstrip for token in after if isinstance(token, int)):
            text = text.rstrip(plain_text.SPACES)
        return begin, text


@lru_cache(maxsize=8)
def _engine(definition: str) -> Engine:
    return Engine.from_str(definition)


def load(path: Path) -> Tokenizer:
    """The tokenizer of a Hugging Face folder or a .gguf file; `ModelError` says what is missing or wrong."""
    path = Path(path)
    if path.suffix == ".gguf":
        description = gguf_tokenizer.read(path)
    elif path.is_dir():
        description = tokenizer_folder.read(path)
    else:
        raise ModelError(f"{path}: no tokenizer here; expected a folder with tokenizer.json, or a .gguf file")
    definition, bos_id, eos_id, pad_id, template, ends, named = description
    definition.update(truncation=None, padding=None)
    try:
        definition["added_tokens"] = tokenizer_folder.with_roles(definition, [bos_id, eos_id], ends)
        tokenizer = Tokenizer(canonical(definition), eos_id, bos_id, pad_id, template, ends, named)
        moved = [t for t in definition["added_tokens"] if tokenizer.engine.token_to_id(t["content"]) != t["id"]]
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # the engine raises nothing narrower for what it cannot read, and may panic
        raise ModelError(f"{path}: not a valid tokenizer ({error}); download the model again") from error
    if moved:
        token = moved[0]
        raise ModelError(f"{path}: added token {token['content']!r} cannot have the id {token['id']} it claims")
    if any(token["special"] and token["single_word"] for token in definition["added_tokens"]):
        raise ModelError(f"{path}: a special token is marked single_word, which is not supported; clear the mark")
    return tokenizer


def save(tokenizer: Tokenizer, folder: Path, max_length: int | None = None) -> None:
    """Writes the files from which `transformers.AutoTokenizer` makes a tokenizer of the same ids and chats."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    config: Json = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "add_bos_token": bool(tokenizer.prefix_ids),
        **_names(tokenizer),
        "clean_up_tokenization_spaces": False,
        **({} if max_length is None else {"model_max_length": max_length}),
    }
    _write(folder / "tokenizer.json", tokenizer.definition)
    _write(folder / "tokenizer_config.json", documents.dumps(config, indent=2) + "\n")
    template = folder / "chat_template.jinja"
    template.unlink(missing_ok=True)
    if tokenizer.chat_template is not None:
        _write(template, tokenizer.chat_template)


def _names(tokenizer: Tokenizer) -> dict[str, str | None]:
    """The special tokens that are named. EOS is one, and pads where no other token does, unless the chat template asks
    for that name and was told of none."""
    names: dict[str, str | None] = {"bos_token": tokenizer.names.get("bos_token") or None, **tokenizer.names}
    pad = tokenizer.eos_text if tokenizer.pad_id is None else tokenizer.written(tokenizer.pad_id)
    for name, text in (("eos_token", tokenizer.eos_text), ("pad_token", pad)):
        if name not in names and name not in (tokenizer.chat_template or ""):
            names[name] = text
    return {name: text or None for name, text in names.items()}


def _write(path: Path, text: str) -> None:
    path.write_bytes(text.encode())  # as bytes, so that a line end stays what it is on every system
