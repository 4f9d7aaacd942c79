"""An OpenAI-compatible address as a judge, and as a model that answers.

Many requests are on their way at once; each is kept before it is used, so a job that was killed goes on where it was.
What may pass (rate limits, errors of the server, timeouts, replies cut short) is tried again, more and more slowly;
what cannot (no key, no such model) stops the job with a line that says so.
"""

import asyncio
import json
import random
import signal
import time
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from types import ModuleType
from typing import Any
from urllib.parse import urlsplit

from bactrian import interrupts, masking, progress
from bactrian.data.records import Message
from bactrian.errors import InputError, JudgeError, Preempted
from bactrian.evaluate import calls, needs, reading
from bactrian.evaluate.address import Address
from bactrian.evaluate.calls import Call, Failure, Reply, Store, Usable
from bactrian.evaluate.pace import Budget, Limits, Pace, Purse, billed
from bactrian.evaluate.protocol import Prompt, Settings
from bactrian.files import documents

_LONGEST_WAIT = 60.0  # seconds between two attempts
_GRACE = 5.0  # seconds that replies on their way have to arrive when the job is interrupted
_GIVE_UP_AFTER = 8  # calls that failed for good, without a single reply
_LOOK_AGAIN = 0.02  # seconds between two looks at whether the budget has room
_NO_KEY = "none"  # what is sent where there is no key: servers of one's own want none


class _Passing(Exception):
    """An attempt that failed for a reason that may pass; `wait` if the other side said for how long."""

    def __init__(self, reason: str, wait: float | None = None, is_billed: bool = False):
        super().__init__(reason)
        self.wait = wait
        self.is_billed = is_billed


class _Unreachable(_Passing):
    """Nobody answered the connection, or it broke."""


class _Refused(Exception):
    """This very request is not taken, however often it is sent."""


class Endpoint:
    """An address that answers requests, with everything kept in a store."""

    def __init__(self, address: Address, store: Store, limits: Limits | None = None, budget: Budget | None = None):
        self.address = address.checked()
        self._openai = needs.load("openai")
        self.store = store
        self.limits = limits or Limits()
        self.purse = Purse(budget or Budget(), store)

    @property
    def name(self) -> str:
        return self.address.model

    def ask(self, calls: list[Call], usable: Usable, title: str = "judgments") -> list[Reply | Failure]:
        """A reply to each call, in order; equal calls are sent once. Raises `JudgeError` where going on is useless."""
        keys = [call.key(self.address.kept_as) for call in calls]
        outcomes: dict[str, Reply | Failure] = {}
        for key in keys:
            if (reply := self.store.find(key, self.limits.reasks, usable)) is not None:
                outcomes[key] = reply
        fit = self.address.wire.fit
        waiting = {key: fit(call) for key, call in zip(keys, calls, strict=True) if key not in outcomes}
        if waiting:
            with progress.bar(title, len(waiting)) as bar:
                asking = _Asking(self, self._openai, usable, bar)
                kept = "the replies so far are kept, and the same command asks for the others"
                try:
                    with interrupts.each_raised():
                        outcomes |= asyncio.run(asking.all(waiting))
                except asyncio.CancelledError:
                    raise Preempted(f"told to stop; {kept}") from None
                except KeyboardInterrupt:
                    raise Preempted(f"interrupted; {kept}", interrupts.CODE) from None
        return [outcomes[key] for key in keys]

    def generate(self, prompts: Sequence[Prompt], settings: Settings) -> list[str]:
        """Answers to prompts. Raises `JudgeError` where some got none; the others are kept."""
        asked = []
        for index, prompt in enumerate(prompts):
            messages = (Message("user", prompt),) if isinstance(prompt, str) else prompt
            # A seed of its own for each, as the engine has; where nothing is drawn none is sent.
            seed = settings.seed + index if settings.temperature > 0 else None
            asked.append(
                Call(messages, settings.max_tokens, settings.temperature, settings.top_p, settings.stop, seed=seed)
            )
        outcomes = self.ask(asked, _is_answer, "answers")
        failed = [outcome.reason for outcome in outcomes if isinstance(outcome, Failure)]
        if failed:
            raise JudgeError(
                f"{self.address.shown}: {len(failed)} of {len(asked)} answers failed ({failed[0]}); "
                f"the others are kept, and the same command asks for these again"
            )
        return [reading.clean(outcome.text) for outcome in outcomes if isinstance(outcome, Reply)]


class _Asking:
    """One round of requests."""

    def __init__(self, endpoint: Endpoint, openai: ModuleType, usable: Usable, bar: progress.Bar):
        self._endpoint = endpoint
        self._openai = openai
        self._usable = usable
        self._bar = bar
        self._limits = endpoint.limits
        self._pace = Pace(endpoint.limits)
        self._outcomes: dict[str, Reply | Failure] = {}
        self._total = 0
        self._failed = 0
        self._replied = False
        self._began = time.monotonic()

    async def all(self, waiting: dict[str, Call]) -> dict[str, Reply | Failure]:
        """Ask everything; what the budget leaves unasked is a failure."""
        self._total = len(waiting)
        queue = deque(waiting.items())
        client = _client(self._openai, self._endpoint.address, self._limits.timeout)
        with suppress(NotImplementedError, RuntimeError, ValueError):  # not the main thread, or not a Unix
            asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, asyncio.current_task().cancel)  # pyright: ignore[reportOptionalMemberAccess]
        async with client:
            workers = [
                asyncio.create_task(self._work(client, queue)) for _ in range(min(len(queue), self._limits.concurrency))
            ]
            try:
                # Not gather: it would cancel the workers when this task is cancelled.
                done, _ = await asyncio.wait(workers, return_when=asyncio.FIRST_EXCEPTION)
                for worker in done:
                    worker.result()
            except BaseException:
                # Replies on their way are paid for: they have a moment to arrive and be kept.
                queue.clear()
                self._limits = replace(self._limits, retries=0, reasks=0)
                await asyncio.wait(workers, timeout=_GRACE)
                for worker in workers:
                    worker.cancel()
                await asyncio.gather(*workers, return_exceptions=True)
                raise
        return self._outcomes

    async def _work(self, client: Any, queue: deque[tuple[str, Call]]) -> None:
        while queue:
            key, call = queue.popleft()
            outcome = await self._one(client, key, call)
            self._outcomes[key] = outcome
            if isinstance(outcome, Failure):
                self._failed += outcome.was_asked
                if self._failed >= _GIVE_UP_AFTER and not self._replied:
                    raise JudgeError(
                        f"{self._endpoint.address.shown}: {self._failed} requests failed and none was answered "
                        f"({outcome.reason}); see whether the address, the model and the prompts are right"
                    )
            done = len(self._outcomes)
            rate = 60 * done / max(time.monotonic() - self._began, 1e-9)
            self._bar.to(done, self._total, f"{rate:.0f}/min" + (f", {self._failed} failed" if self._failed else ""))

    async def _one(self, client: Any, key: str, call: Call) -> Reply | Failure:
        """One call to its end: attempts that fail, replies that are no use, the reply that is kept."""
        store, purse, address = self._endpoint.store, self._endpoint.purse, self._endpoint.address
        failures = 0
        while True:
            await self._pace.wait(call)
            while (reserved := purse.reserve(call)) is None and purse.may_refill:
                await asyncio.sleep(_LOOK_AGAIN)
            if reserved is None:
                return Failure(f"the budget is spent ({purse.sent} requests, cost {purse.cost:.2f})", was_asked=False)
            about: dict[str, Any] = {"model": address.model, "address": address.shown}
            if differs := address.wire.as_row():
                about["wire"] = differs
            start = time.monotonic()
            try:
                reply = await asyncio.wait_for(self._send(client, call), self._limits.timeout)
            except (_Passing, _Refused, InputError, TimeoutError) as error:
                reason = str(error) or f"no reply within {self._limits.timeout:g} s"
                is_billed = isinstance(error, TimeoutError) or getattr(error, "is_billed", False)
                paid = billed(call, None) if is_billed else (0, 0)
                purse.settle(reserved, paid)
                about |= {"seconds": round(time.monotonic() - start, 3), "billed": paid}
                store.add(key, call, Failure(reason), False, **about)
                if isinstance(error, InputError):
                    raise
                failures += 1
                if isinstance(error, _Refused) or failures > self._limits.retries:
                    return self._given_up(error, reason)
                await self._pause(failures, error.wait if isinstance(error, _Passing) else None)
                continue
            self._replied = True
            paid = billed(call, reply)
            purse.settle(reserved, paid)
            is_usable = self._usable(reply)
            about |= {"seconds": round(time.monotonic() - start, 3), "billed": paid}
            store.add(key, call, reply, is_usable, **about)
            if is_usable or store.replies(key) > self._limits.reasks:
                return reply

    def _given_up(self, error: Exception, reason: str) -> Failure:
        if isinstance(error, _Unreachable) and not self._replied:
            raise JudgeError(
                f"{self._endpoint.address.shown}: cannot be reached ({reason}); what was answered before is kept, and "
                f"the same command goes on when it can"
            )
        return Failure(reason)

    async def _pause(self, failures: int, asked: float | None) -> None:
        if asked is not None:
            self._pace.pause(min(asked, _LONGEST_WAIT))
            return
        seconds = min(self._limits.retry_wait * 2 ** (failures - 1), _LONGEST_WAIT)
        await asyncio.sleep(seconds * random.uniform(0.5, 1.0))  # apart, so that they do not all come back at once

    async def _send(self, client: Any, call: Call) -> Reply:
        address = self._endpoint.address
        asked = address.wire.body(call, address.model)
        known = {name: asked.pop(name) for name in ("model", "messages")}
        headers = _headers(self._openai, address)
        openai = self._openai
        try:
            response = await client.chat.completions.with_raw_response.create(
                **known,
                extra_body=asked,  # as it is: the library checks nothing of it
                extra_headers=headers,
            )
            reply = _parse(response.text if isinstance(response.text, str) else response.text())
            return Reply(**masking.masked(asdict(reply)))
        except openai.APITimeoutError:
            raise TimeoutError from None
        except openai.APIConnectionError as error:
            why = masking.mask_line(str(error.__cause__ or "") or str(error))
            raise _Unreachable(f"the connection failed: {why}") from None
        except openai.APIStatusError as error:
            raise self._status(error) from None

    def _status(self, error: Any) -> Exception:
        """What an HTTP status means for the job."""
        address, status = self._endpoint.address, error.status_code
        message, parameter = _said(error)
        said = f": {message[:200]}" if message else ""
        advice = address.advice(status, message, parameter)
        more = f"; {advice}" if advice else ""
        if status in (401, 403):
            what = (
                f"set {address.key_name}" if address.key is None else f"the key in {address.key_name} is not accepted"
            )
            return InputError(f"{address.shown}: {status}: {what}{said}{more}")
        if status == 404 or getattr(error, "code", None) == "insufficient_quota":
            has = f"see whether it has the model {address.model!r}, and whether path and query are right"
            return InputError(f"{address.shown}: {status}: {advice or has}{said}")
        if advice and not self._replied:  # none of the requests will be taken
            return InputError(f"{address.shown}: status {status}{said}{more}")
        if status in (408, 409, 425, 429) or status >= 500:
            return _Passing(f"status {status}{said}{more}", _retry_after(error))
        return _Refused(f"status {status}{said}{more}")


def _headers(openai: ModuleType, address: Address) -> dict[str, Any]:
    """The headers of each request that the library does not send itself."""
    headers: dict[str, Any] = dict(address.wire.extra_headers)
    if address.wire.key_header is not None:
        headers["Authorization"] = openai.Omit()
        if address.key is not None:
            headers[address.wire.key_header] = address.key
    return headers


def _client(openai: ModuleType, address: Address, seconds: float) -> Any:
    """A client of the library that asks as the address wants it."""
    base, query = urlsplit(address.base), address.query.encode()
    secret = _headers(openai, address)

    async def prepare(request: Any) -> None:
        url = request.url
        is_there = (url.scheme, url.host, url.port) == (base.scheme, base.hostname, base.port)
        if is_there and not url.query:
            request.url = url.copy_with(query=query or None)
        elif not is_there:  # redirected; the library takes `Authorization` out itself, and no other header
            for name in secret:
                request.headers.pop(name, None)

    return openai.AsyncOpenAI(
        api_key=address.key or _NO_KEY,
        base_url=address.base,
        timeout=seconds,
        max_retries=0,
        http_client=openai.DefaultAsyncHttpxClient(event_hooks={"request": [prepare]}),
    )


def _is_answer(reply: Reply) -> bool:
    return reply.refusal is None and reply.fault is None and reply.finish != reading.FILTERED


def _parse(text: str) -> Reply:
    """The reply in the body of a chat completion; `_Passing` where the body is cut short or something else.

    What came whole and is odd is a reply with a fault: asked again, it would be odd again.
    """
    quoted = masking.mask(text[:20_000])[:80]
    cut_short = _Passing(f"the reply is cut short, or no chat completion: {quoted!r}", is_billed=True)
    try:
        body = json.loads(text)
    except RecursionError:
        return calls.reply("", fault="its JSON is nested too deep")
    except json.JSONDecodeError:
        raise cut_short from None
    except ValueError:
        return calls.reply("", fault="its JSON holds a number of thousands of digits")
    try:
        choice = body["choices"][0]
        message = choice["message"]
        content, refusal = message.get("content"), message.get("refusal")
        finish, usage = choice.get("finish_reason"), body.get("usage") or {}
    except (LookupError, TypeError, AttributeError):
        raise cut_short from None
    tokens = (usage.get("prompt_tokens"), usage.get("completion_tokens")) if isinstance(usage, dict) else (usage, usage)
    return calls.reply(content, finish, refusal, _alternatives(choice), tokens, documents.fault_of(body))


def _alternatives(choice: dict[str, Any]) -> dict[str, Any]:
    """The log-probabilities of the first token's alternatives; none where there are none to be read."""
    try:
        listed = choice["logprobs"]["content"][0]["top_logprobs"]
        return {each["token"]: each["logprob"] for each in listed if isinstance(each["token"], str)}
    except (LookupError, TypeError):
        return {}


def _said(error: Any) -> tuple[str, str | None]:
    """What the other side says about an error, in one line without secrets, and which parameter it names."""
    body = error.body if isinstance(error.body, dict) else {}
    message, parameter = body.get("message") or body.get("detail") or "", body.get("param")
    text = masking.mask_line(" ".join(str(message).split())).rstrip(".")
    return text, parameter if isinstance(parameter, str) else None


def _retry_after(error: Any) -> float | None:
    try:
        return max(0.0, float(error.response.headers.get("retry-after", "")))
    except ValueError:
        return None
