"""A judge over HTTP that speaks OpenAI's protocol, and does badly what servers do badly, as a seed says.

What it answers depends on the prompt alone; whether it fails first depends on the seed, the prompt and how often that
prompt was sent. It keeps count of everything, so a test can say what was asked twice.
"""

import contextlib
import hashlib
import json
import re
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

FAULTS = ("429", "500", "hang", "cut", "refusal", "says_no", "reset")


def number(text: str, *more: object) -> int:
    """A number that a text always gives."""
    return int.from_bytes(hashlib.sha256("\0".join([text, *map(str, more)]).encode()).digest()[:4], "big")


class FakeJudge:
    """The server; `url` while it runs."""

    def __init__(
        self, faults: Sequence[str] = (), seed: int = 0, rate: float = 0.4, hang: float = 3.0, delay: float = 0.0
    ):
        self.faults, self.seed, self.rate, self.hang, self.delay = faults, seed, rate, hang, delay
        self.key: str | None = None
        self.stopped_after: int | None = None  # good replies, after which nobody is answered
        self.lock = threading.Lock()
        self.sent: Counter[str] = Counter()  # requests by content
        self.good: Counter[str] = Counter()  # replies that were whole and of use, by content
        self.done: Counter[str] = Counter()  # faults that were done
        self.bodies: list[dict[str, Any]] = []
        self.url = ""

    def fault(self, content: str, attempt: int) -> str | None:
        """What goes wrong with an attempt, if anything; the third always goes well."""
        drawn = number(content, self.seed, attempt)
        if not self.faults or attempt > 2 or drawn / 2**32 >= self.rate:
            return None
        return self.faults[number(content, self.seed, attempt, "which") % len(self.faults)]

    @contextlib.contextmanager
    def running(self, port: int = 0) -> Iterator["FakeJudge"]:
        judge = self

        class Handler(_Handler):
            owner = judge

        server = _Server(("127.0.0.1", port), Handler)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        self.url = f"http://127.0.0.1:{server.server_address[1]}/v1"
        try:
            yield self
        finally:
            server.shutdown()
            server.server_close()


def answer(body: dict[str, Any]) -> str:
    """What a good judge, or model, says to a request."""
    prompt, system = body["messages"][-1]["content"], body["messages"][0]["content"]
    drawn = number(prompt)
    if "model_1" in prompt and "rank" in prompt:
        first = 1 + drawn % 2
        return str([{"model": "model_1", "rank": first}, {"model": "model_2", "rank": 3 - first}])
    if "[[rating]]" in prompt + system:
        return f"It is an answer.\n\nRating: [[{1 + drawn % 10}]]"
    if "[[A]]" in prompt + system:
        return f"One of them. [[{'ABC'[drawn % 3]}]]"
    return f"An answer to {prompt[:30]}, number {drawn % 1000}."


def logprobs(prompt: str) -> list[dict[str, Any]]:
    share = (1 + number(prompt) % 98) / 100
    import math

    return [{"token": "m", "logprob": math.log(share)}, {"token": "M", "logprob": math.log(1 - share)}]


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128  # or connections made at once wait a second for one another


class _Handler(BaseHTTPRequestHandler):
    owner: FakeJudge
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_POST(self) -> None:
        owner = self.owner
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        content = json.dumps(body, sort_keys=True)
        with owner.lock:
            owner.sent[content] += 1
            owner.bodies.append(body)
            attempt = owner.sent[content]
            stopped = owner.stopped_after is not None and owner.good.total() >= owner.stopped_after
        if stopped:
            time.sleep(owner.hang)
            return self._refuse(503, "going down")
        if owner.key is not None and self.headers.get("Authorization") != f"Bearer {owner.key}":
            return self._refuse(401, f"Incorrect API key provided: {self.headers.get('Authorization')}")
        if not self.path.endswith("/v1/chat/completions"):
            return self._refuse(404, "no such path")
        fault = owner.fault(content, attempt)
        if fault:
            with owner.lock:
                owner.done[fault] += 1
            return self._fail(fault, body)
        if owner.delay:
            time.sleep(owner.delay)
        with owner.lock:
            owner.good[content] += 1
        self._reply(_completion(body, answer(body)))

    def _fail(self, fault: str, body: dict[str, Any]) -> None:
        if fault == "429":
            return self._refuse(429, "slow down", {"Retry-After": "0.05"})
        if fault == "500":
            return self._refuse(500, "oh no")
        if fault == "hang":
            time.sleep(self.owner.hang)
            return self._refuse(504, "too late")
        whole = json.dumps(_completion(body, answer(body))).encode()
        if fault == "cut":
            return self._send(200, whole[: len(whole) // 2])
        if fault == "reset":
            self.send_response(200)
            self.send_header("Content-Length", str(len(whole)))
            self.end_headers()
            self.wfile.write(whole[: len(whole) // 2])
            self.close_connection = True
            return None
        completion = _completion(body, "I'm sorry, but I can't help with that.")
        if fault == "refusal":
            completion["choices"][0]["message"] |= {"content": None, "refusal": "I can't help with that."}
        completion["choices"][0]["logprobs"] = None
        return self._reply(completion)

    def _refuse(self, status: int, message: str, headers: dict[str, str] | None = None) -> None:
        self._send(status, json.dumps({"error": {"message": message}}).encode(), headers)

    def _reply(self, completion: dict[str, Any]) -> None:
        self._send(200, json.dumps(completion).encode())

    def _send(self, status: int, content: bytes, headers: dict[str, str] | None = None) -> None:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self.send_response(status)
            for name, value in {"Content-Type": "application/json", **(headers or {})}.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)


def _completion(body: dict[str, Any], text: str) -> dict[str, Any]:
    prompt = body["messages"][-1]["content"]
    choice: dict[str, Any] = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": text}}
    if body.get("logprobs"):
        choice["message"]["content"] = re.sub(r"\W.*", "", text, flags=re.DOTALL)[:1]
        choice["logprobs"] = {"content": [{"token": "m", "logprob": -1.0, "top_logprobs": logprobs(prompt)}]}
    usage = {"prompt_tokens": len(prompt) // 4, "completion_tokens": max(1, len(str(text)) // 4)}
    return {"id": "x", "object": "chat.completion", "model": body["model"], "choices": [choice], "usage": usage}
