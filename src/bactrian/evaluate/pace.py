"""How fast and how much may be asked: rate limits, and a budget that is never passed."""

import asyncio
import time
from dataclasses import dataclass

from bactrian.errors import InputError
from bactrian.evaluate.calls import Call, Reply, Store


@dataclass(frozen=True)
class Limits:
    """How an address is asked. Rates of 0 are no limit; seconds are a request's, from its start to its last byte.

    A request that fails for a reason that may pass is sent up to `retries` times more, after `retry_wait` seconds, then
    twice as long each time. A reply that is not usable (a refusal, a missing verdict) is asked for up to `reasks` times
    more.
    """

    concurrency: int = 8
    requests_per_minute: int = 0
    tokens_per_minute: int = 0
    timeout: float = 120.0
    retries: int = 6
    retry_wait: float = 1.0
    reasks: int = 2

    def __post_init__(self):
        if self.concurrency < 1:
            raise InputError(f"concurrency is {self.concurrency}: ask at least 1 at a time")
        for name in ("requests_per_minute", "tokens_per_minute", "retries", "retry_wait", "reasks"):
            if getattr(self, name) < 0:
                raise InputError(f"{name} is {getattr(self, name)}: give 0 or more")
        if self.timeout <= 0:
            raise InputError(f"timeout is {self.timeout}: give seconds")


@dataclass(frozen=True)
class Budget:
    """Most requests, and most money, that a folder may ever cost. Prices are those of a million tokens."""

    max_calls: int | None = None
    max_cost: float | None = None
    price_in: float = 0.0
    price_out: float = 0.0

    def __post_init__(self):
        if self.max_cost is not None and not (self.price_in or self.price_out):
            raise InputError("a budget in money needs the judge's prices: give --price-in and --price-out")

    def cost(self, tokens_in: int, tokens_out: int) -> float:
        return (tokens_in * self.price_in + tokens_out * self.price_out) / 1e6


class Purse:
    """What is left of a budget, with what is on its way counted at its highest possible price."""

    def __init__(self, budget: Budget, store: Store):
        self.budget = budget
        self.sent = store.sent
        self.cost = budget.cost(*store.cost_tokens)
        self._reserved = 0.0

    def reserve(self, call: Call) -> float | None:
        """Set the price of a call aside; None if it could pass the budget."""
        price = self.budget.cost(call.tokens_at_most, call.max_tokens)
        if self.budget.max_calls is not None and self.sent >= self.budget.max_calls:
            return None
        if self.budget.max_cost is not None and self.cost + self._reserved + price > self.budget.max_cost:
            return None
        self.sent += 1
        self._reserved += price
        return price

    @property
    def may_refill(self) -> bool:
        """Whether calls on their way may turn out to cost less than what is set aside for them."""
        return self._reserved > 0 and (self.budget.max_calls is None or self.sent < self.budget.max_calls)

    def settle(self, reserved: float, billed: tuple[int, int]) -> None:
        """Replace what was set aside by what a call cost: tokens in and out."""
        self._reserved -= reserved
        self.cost += self.budget.cost(*billed)


def billed(call: Call, reply: Reply | None) -> tuple[int, int]:
    """The tokens in and out that a call is paid for; where nobody says how many, the most that it can be."""
    if reply is not None and reply.input_tokens is not None and reply.output_tokens is not None:
        return reply.input_tokens, reply.output_tokens
    return call.tokens_at_most, call.max_tokens


class Pace:
    """When the next request may leave."""

    def __init__(self, limits: Limits):
        self._limits = limits
        self._next = 0.0

    async def wait(self, call: Call) -> None:
        """Return when there is room for the call within the rates; its room is then taken."""
        now = time.monotonic()
        start = max(now, self._next)
        seconds = 0.0
        if self._limits.requests_per_minute:
            seconds = 60 / self._limits.requests_per_minute
        if self._limits.tokens_per_minute:
            tokens = call.tokens_about + call.max_tokens
            seconds = max(seconds, 60 * tokens / self._limits.tokens_per_minute)
        self._next = start + seconds
        if start > now:
            await asyncio.sleep(start - now)

    def pause(self, seconds: float) -> None:
        """Let nothing leave for a while: the other side has asked for it."""
        self._next = max(self._next, time.monotonic() + seconds)
