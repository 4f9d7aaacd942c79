"""A metadata server as a machine of Google's has it: values that can be waited for, and faults of other servers."""

import contextlib
import threading
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

ROOT = "/computeMetadata/v1/instance/"
QUIET = {"maintenance-event": "NONE", "preempted": "FALSE"}


class FakeMetadata:
    """The server; `host` while it runs. `fault` names what it does in place of an answer."""

    def __init__(self, fault: str | None = None):
        self.fault = fault
        self.values = dict(QUIET)
        self.changed = threading.Condition()
        self.asked: Counter[str] = Counter()  # requests by key
        self.waiting: Counter[str] = Counter()  # of these, those that wait for a change now
        self.is_over = False
        self.host = ""

    @contextlib.contextmanager
    def running(self) -> Iterator["FakeMetadata"]:
        metadata = self

        class Handler(_Handler):
            owner = metadata

        server = _Server(("127.0.0.1", 0), Handler)
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        self.host = f"127.0.0.1:{server.server_address[1]}"
        try:
            yield self
        finally:
            with self.changed:
                self.is_over = True
                self.changed.notify_all()
            server.shutdown()
            server.server_close()

    def set(self, key: str, value: str) -> None:
        """Give a key another value, which those who wait for it are told."""
        with self.changed:
            self.values[key] = value
            self.changed.notify_all()

    def is_waited_on(self, listeners: int = 1) -> bool:
        """Whether so many wait for a change of each key."""
        with self.changed:
            return all(self.waiting[key] >= listeners for key in QUIET)


class _Server(ThreadingHTTPServer):
    daemon_threads = True


class _Handler(BaseHTTPRequestHandler):
    owner: FakeMetadata

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        owner, parts = self.owner, urlsplit(self.path)
        key = parts.path.removeprefix(ROOT)
        asked = {name: values[0] for name, values in parse_qs(parts.query).items()}
        with owner.changed:
            owner.asked[key] += 1
        with contextlib.suppress(OSError):
            if owner.fault is not None:
                self._fail(owner.fault)
            elif self.headers.get("Metadata-Flavor") != "Google":
                self._answer(403, "Missing Metadata-Flavor:Google header.")
            elif key not in owner.values:
                self._answer(404, "")
            else:
                self._answer(200, self._value(key, asked))

    def _value(self, key: str, asked: dict[str, str]) -> str:
        owner = self.owner
        with owner.changed:
            if asked.get("wait_for_change") == "true":
                owner.waiting[key] += 1
                owner.changed.wait_for(
                    lambda: owner.is_over or _etag(owner.values[key]) != asked.get("last_etag"),
                    float(asked["timeout_sec"]),
                )
                owner.waiting[key] -= 1
            return owner.values[key]

    def _fail(self, fault: str) -> None:
        if fault == "silence":
            with self.owner.changed:
                self.owner.changed.wait_for(lambda: self.owner.is_over)
        elif fault == "rubbish":
            self.wfile.write(b"\x16\x03\x01 TRUE TERMINATE_ON_HOST_MAINTENANCE\r\n\r\n")
        elif fault == "not Google's":
            self._answer(200, "TRUE", {})
        elif fault == "never waits":
            self._answer(200, "NONE")
        else:
            self._answer(int(fault), "TRUE")

    def _answer(self, status: int, text: str, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in ({"Metadata-Flavor": "Google", "ETag": _etag(text)} if headers is None else headers).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text.encode())


def _etag(value: str) -> str:
    return f"{sum(value.encode()):x}"
