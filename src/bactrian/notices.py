"""What Google's metadata server says of a machine's end, taken as SIGTERM.

A machine learns there that it will be stopped for maintenance or taken back, before its processes are told, if they
ever are. Whatever else the server does, and where there is none, nothing happens.
"""

import http.client
import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from urllib.parse import urlencode

# By key its value and what that means. MIGRATE_ON_HOST_MAINTENANCE is no notice: a machine that is moved goes on.
# cloud.google.com/compute/docs/metadata/getting-live-migration-notice and /compute/docs/instances/create-use-spot
_NOTICES = {
    "maintenance-event": ("TERMINATE_ON_HOST_MAINTENANCE", "is to be stopped for maintenance"),
    "preempted": ("TRUE", "is taken back"),
}
_NO_ETAG = "NONE"  # of no value, so that the first answer comes at once
_CONNECT = 2.0  # seconds to reach the server, which is on the machine itself
_POLL = 60  # seconds after which the server is asked to answer even if nothing has changed
_LATE = 15.0  # seconds that such an answer may be late
_PAUSE, _LONGEST_PAUSE = 1.0, 60.0  # seconds between two questions, where the server fails longer and longer
_PARTING = 1.0  # seconds that a thread has to end, which takes it none unless it is just connecting


@contextmanager
def heeded() -> Iterator[None]:
    """While this lasts a notice sends this process SIGTERM, once, after a line that says why."""
    listening = _Listening()
    try:
        listening.start()
        yield
    finally:
        listening.end()


class _Listening:
    """A thread for each notice, which asks for its value and is answered when that changes."""

    def __init__(self):
        self._over = threading.Event()
        self._lock = threading.Lock()
        self._sockets: dict[str, socket.socket] = {}
        self._threads = [threading.Thread(target=self._run, args=(key,), daemon=True) for key in _NOTICES]

    def start(self) -> None:
        """Listen; no notice comes before all threads run, since its signal may end whatever is under way."""
        with self._lock:
            for thread in self._threads:
                thread.start()

    def end(self) -> None:
        """Listen no longer; after this no signal is sent."""
        self._over.set()
        with self._lock:
            for waiting in self._sockets.values():
                with suppress(OSError):
                    waiting.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            if thread.is_alive():  # as it is unless `start` was cut short
                thread.join(_PARTING)

    def _run(self, key: str) -> None:
        notice, meaning = _NOTICES[key]
        etag, pause = _NO_ETAG, 0.0
        while not self._over.wait(pause):
            try:
                value, etag = self._ask(key, etag)
            except (OSError, http.client.HTTPException, ValueError):
                pause = min(max(2 * pause, _PAUSE), _LONGEST_PAUSE)
                continue
            pause = _PAUSE
            if value == notice:
                self._heed(f"{socket.gethostname()} {meaning} ({key} is {value}): the run stops as by SIGTERM")

    def _ask(self, key: str, etag: str) -> tuple[str, str]:
        """A key's value and its etag, as soon as that is another than `etag`, or after a while."""
        # As google-auth finds the server. `http.client` knows of no proxy and follows nowhere.
        host = os.environ.get("GCE_METADATA_HOST") or "metadata.google.internal"
        query = urlencode({"wait_for_change": "true", "last_etag": etag, "timeout_sec": _POLL})
        connection = http.client.HTTPConnection(host, timeout=_CONNECT)
        try:
            connection.connect()
            connection.sock.settimeout(_POLL + _LATE)
            with self._lock:
                self._sockets[key] = connection.sock
                if self._over.is_set():
                    raise ConnectionAbortedError
            connection.request(
                "GET", f"/computeMetadata/v1/instance/{key}?{query}", headers={"Metadata-Flavor": "Google"}
            )
            response = connection.getresponse()
            if response.status != 200 or response.headers.get("Metadata-Flavor") != "Google":
                raise ValueError
            return response.read(100).decode().strip(), response.headers.get("ETag") or _NO_ETAG
        finally:
            with self._lock:
                self._sockets.pop(key, None)
            connection.close()

    def _heed(self, why: str) -> None:
        with self._lock:
            if self._over.is_set():
                return
            self._over.set()
            with suppress(OSError, ValueError):
                print(why, file=sys.stderr, flush=True)
            os.kill(os.getpid(), signal.SIGTERM)
