"""The text of generated ids: what decoding them behind their prompt adds to the text of the prompt.

Ids have no text of their own. SentencePiece's first token of a text loses its space, bytes become a character together
with those in front of them, and a run of byte tokens is a text or is not as a whole. So ids are decoded behind what
stands before them, whose text is taken away again:

    after(tokenizer, prompt, ids)     decode(prompt + ids) without decode(prompt)

Invariant: the pieces of a `Continuation` joined are the text of `after`, and none ends inside a character.

Only the end of a prompt is decoded, from its last token that begins with a whole character, where the tokenizer's
decoder treats each token alike wherever it stands but for the first one; else all of the prompt is.
"""

import json
from collections.abc import Callable, Sequence

import numpy as np

from bactrian.data.plain_text import BYTE, Json
from bactrian.data.tokenizer import Tokenizer

Ids = Sequence[int] | np.ndarray

_BROKEN = "\ufffd"  # what a decoder writes for bytes that are no character
_LONGEST_CHARACTER = 4  # bytes, and so tokens
_FAR = 64  # tokens of a prompt in which an anchor is looked for
# Decoders that treat a token alike wherever it stands, but for the first and for runs of bytes.
_LOCAL = {"ByteLevel", "Metaspace", "ByteFallback", "Fuse", "WordPiece", "BPEDecoder"}


class Continuation:
    """Text that grows behind a prompt, token by token. What may still change is held back: bytes of a character that
    is not whole yet, and a run of byte tokens until another kind of token ends it."""

    def __init__(self, tokenizer: Tokenizer, before: Ids, skip_special: bool = True):
        self._tokenizer = tokenizer
        self._skip = skip_special
        self._is_local = _is_local(tokenizer)
        self._context = _anchored(tokenizer, [int(i) for i in before], skip_special)
        self._ids: list[int] = []
        self._told = 0

    def add(self, token: int) -> str:
        """What is now known of the text and has not been given yet; often nothing, often more than one token's."""
        token = int(token)
        self._ids.append(token)
        # A special token that is left out does not end a run of bytes.
        silent = not self._tokenizer.decode([token], self._skip)
        if silent or _is_byte(self._tokenizer, token) or not self._is_local:
            return ""
        text = self._text()
        settled = text.rstrip(_BROKEN)
        piece = settled[self._told :]
        self._told = max(self._told, len(settled))
        if settled == text and _begins_whole(self._tokenizer, token, self._skip):
            self._context, self._ids, self._told = [token], [], 0
        return piece

    def end(self) -> str:
        """What was held back, when no token comes any more."""
        rest = self.held()
        self._told += len(rest)
        return rest

    def held(self) -> str:
        """What `end` would give now."""
        return self._text()[self._told :]

    def _text(self) -> str:
        return _added(lambda ids: self._tokenizer.decode(ids, self._skip), self._context, self._ids)


def after(tokenizer: Tokenizer, before: Ids, ids: Ids, skip_special: bool = True) -> str:
    """The text of `ids` where they follow `before`."""
    context = _anchored(tokenizer, [int(i) for i in before], skip_special)
    return _added(lambda each: tokenizer.decode(each, skip_special), context, [int(i) for i in ids])


def _added(decode: Callable[[list[int]], str], before: list[int], ids: list[int]) -> str:
    whole, begin = decode(before + ids), decode(before)
    if whole.startswith(begin):
        return whole[len(begin) :]
    same = _shared(begin, whole)
    changed = begin[same:]
    # Bytes that are no character spoil the run of bytes they stand in: each of them is then written as broken.
    spoilt = _BROKEN * len(changed.encode())
    if _BROKEN not in changed and whole.startswith(spoilt, same):
        return whole[same + len(spoilt) :]
    # The prompt ends inside a character, which belongs to what makes it whole.
    shorter = (decode(before[:end]) for end in range(len(before) - 1, len(before) - _LONGEST_CHARACTER, -1) if end >= 0)
    return whole[max([same, *(_shared(text, whole) for text in shorter)]) :]


def _shared(one: str, other: str) -> int:
    """How many characters two texts begin with alike."""
    pairs = zip(one, other, strict=False)
    return next((at for at, (a, b) in enumerate(pairs) if a != b), min(len(one), len(other)))


def _anchored(tokenizer: Tokenizer, before: list[int], skip_special: bool) -> list[int]:
    """The end of a prompt behind which ids have the text that they have behind all of it."""
    if _is_local(tokenizer):
        for at in range(len(before) - 1, max(len(before) - _FAR, 0) - 1, -1):
            if _begins_whole(tokenizer, before[at], skip_special):
                return before[at:]
    return before


def _begins_whole(tokenizer: Tokenizer, token: int, skip_special: bool) -> bool:
    """Whether a token has a text that does not depend on what stands before it, but for a space in front."""
    if _is_byte(tokenizer, token):
        return False
    alone = tokenizer.decode([token], skip_special)
    return bool(alone) and _BROKEN not in alone


def _is_byte(tokenizer: Tokenizer, token: int) -> bool:
    written = tokenizer.engine.id_to_token(token)
    return written is not None and BYTE.fullmatch(written) is not None


def _is_local(tokenizer: Tokenizer) -> bool:
    decoder = tokenizer.engine.decoder
    return decoder is None or _local(json.loads(decoder.__getstate__()))


def _local(step: Json) -> bool:
    if step["type"] == "Sequence":
        return all(map(_local, step["decoders"]))
    if step["type"] == "Replace":
        return len(step["pattern"].get("String", "")) == 1
    if step["type"] == "Strip":
        return step["stop"] == 0
    return step["type"] in _LOCAL
