"""Which example comes when, and how much of each source: pure functions of counts and the seed."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from bactrian.errors import DataError


class Part(NamedTuple):
    """What a source of `records` records is to give: at most one of count, proportion and epochs; else all of it."""

    name: str
    records: int
    count: int | None = None
    proportion: float | None = None
    epochs: float | None = None
    repeat: bool = False


def order(examples: int, batch_size: int, epochs: int, seed: int) -> np.ndarray:
    """The examples of every update, int32 [updates, batch_size].

    Each epoch is its own shuffle. The examples at its end that do not fill a batch are left out of that epoch, as the
    original recipes do: 326,154 conversations in batches of 128 over 2 epochs are 5,096 updates.
    """
    whole = examples // batch_size
    shuffles = [np.random.default_rng([seed, epoch]).permutation(examples) for epoch in range(epochs)]
    batches = [shuffle[: whole * batch_size].reshape(whole, batch_size) for shuffle in shuffles]
    return np.concatenate(batches).astype(np.int32)


def amounts(parts: Sequence[Part], size: int | None = None, temperature: float | None = None) -> list[int]:
    """How many records each source gives. Raises `DataError` where that is more than it has and it may not repeat.

    With proportions or a temperature the sum is `size`; without a size it is the largest for which no source repeats
    a record. A temperature of 1 takes sources as large as they are, a higher one makes them more equal.
    """
    shares = [part.proportion for part in parts]
    if temperature is not None:
        weights = [part.records ** (1 / temperature) for part in parts]
        shares = [weight / sum(weights) for weight in weights]
    if all(share is not None for share in shares):
        given = [share or 0.0 for share in shares]
        wanted = _apportion(given, size or _largest(parts, given))
    else:
        wanted = [_of_its_own(part) for part in parts]
    for part, amount in zip(parts, wanted, strict=True):
        if amount > part.records and not part.repeat and part.epochs is None:
            raise DataError(
                f"{part.name}: {amount} records are wanted and it has {part.records}; "
                f"ask for fewer, or set repeat = true"
            )
    return wanted


def draw(records: int, amount: int, seed: Sequence[int]) -> np.ndarray:
    """The records that a source of `records` gives, int64 [amount], ascending: each equally often, but for a rest."""
    whole, rest = divmod(amount, records)
    some = np.random.default_rng(seed).permutation(records)[:rest]
    return np.sort(np.concatenate([np.tile(np.arange(records), whole), some]))


def _of_its_own(part: Part) -> int:
    if part.count is not None:
        return part.count
    return part.records if part.epochs is None else max(1, round(part.records * part.epochs))


def _largest(parts: Sequence[Part], shares: Sequence[float]) -> int:
    size = min(part.records / share for part, share in zip(parts, shares, strict=True))
    # Rounding may ask a source for one record more than it has.
    return next(
        whole
        for whole in range(math.floor(size * (1 + 1e-9)), 0, -1)
        if all(n <= part.records for n, part in zip(_apportion(shares, whole), parts, strict=True))
    )


def _apportion(shares: Sequence[float], size: int) -> list[int]:
    """Whole numbers that add up to `size`, by largest remainder."""
    exact = [share * size for share in shares]
    whole = [math.floor(each) for each in exact]
    first = sorted(range(len(shares)), key=lambda index: (whole[index] - exact[index], index))
    for index in first[: size - sum(whole)]:
        whole[index] += 1
    return whole
