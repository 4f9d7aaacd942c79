"""Screens `duplicates` and `near_duplicates`: what came before, in the order of the build; the first one stays.

Both keep what they have seen, so one object screens one build. MinHash and its index are datasketch's. A signature
takes 512 bytes; with the index it is 4 KiB a record, so 1.3 GiB for 326,154.
"""

import hashlib
import zlib
from functools import partial
from typing import cast

import numpy as np

from bactrian.data.records import Conversation, Record
from bactrian.data.screens import words
from bactrian.data.screens.settings import Duplicates, NearDuplicates

_RUN = 3
_PERMUTATIONS = 128  # an estimated similarity is off by 0.035 or less, two times in three (at 0.8)


class Exact:
    """`duplicate`: the same words by the same roles."""

    def __init__(self, settings: Duplicates):
        self._settings = settings
        self._seen: set[bytes] = set()

    def __call__(self, record: Record) -> str | None:
        digest = hashlib.blake2b(_text(record, self._settings.of).encode(), digest_size=16).digest()
        if digest in self._seen:
            return "duplicate"
        self._seen.add(digest)
        return None


class Near:
    """`near_duplicate`: so many runs of three words in common with something that came before."""

    def __init__(self, settings: NearDuplicates):
        from datasketch import MinHash, MinHashLSH

        self._settings = settings
        first = MinHash(num_perm=_PERMUTATIONS, seed=1)
        given = {"permutations": first.permutations, "scheme": first.scheme}  # made once
        self._signature = partial(MinHash, num_perm=_PERMUTATIONS, seed=1, hashfunc=zlib.crc32, **given)
        self._index = MinHashLSH(threshold=settings.similarity, num_perm=_PERMUTATIONS, hashfunc=_short)
        self._kept: list[np.ndarray] = []

    def __call__(self, record: Record) -> str | None:
        text = _text(record, self._settings.of)
        signature = self._signature()
        signature.update_batch([run.encode() for run in words.shingles(text.split(), _RUN)])
        # The index finds candidates; their signatures say how alike they are.
        for candidate in cast(list[int], self._index.query(signature)):
            if np.mean(self._kept[candidate] == signature.hashvalues) >= self._settings.similarity:
                return "near_duplicate"
        self._index.insert(len(self._kept), signature, check_duplication=False)
        self._kept.append(signature.hashvalues.astype(np.uint32))
        return None


def _text(record: Record, of: str) -> str:
    if of == "prompt":
        messages = words.conversations(record)[0]
        answers = [index for index, message in enumerate(messages) if message.role == "assistant"]
        end = len(messages) - 1 if not isinstance(record, Conversation) else (answers or [len(messages)])[0]
        return _written(messages[:end])
    return "\n\n".join(_written(messages) for messages in words.conversations(record))


def _written(messages: tuple) -> str:
    """The words of messages, each after its role. What has no words (a formula, an emoji) counts as it stands."""
    turns = ((turn.role, " ".join(words.split(turn.content)) or turn.content.strip()) for turn in messages)
    return "\n".join(f"{role}: {said}" for role, said in turns)


def _short(band: bytes) -> bytes:
    return hashlib.blake2b(band, digest_size=8).digest()
