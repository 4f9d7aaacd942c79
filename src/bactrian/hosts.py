"""Many processes as one run: they start together, decide as one, wait with a limit, and stop together.

The first process decides and writes; the others ask it. So no two of them ever take different turns, whatever each
sees of a shared disk. A process that is alone is its own first, and none of this costs it anything.
"""

import ctypes
import json
import os
import re
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from functools import partial
from typing import Any, NoReturn

from bactrian import cluster, errors, interrupts, notices
from bactrian.cluster import Place
from bactrian.errors import BactrianError, HostLost, Preempted

_SILENCE = 60.0  # seconds after which a host that says nothing counts as lost: $BACTRIAN_HOST_TIMEOUT
_PATIENCE = 1800.0  # seconds that hosts wait for one another: $BACTRIAN_BARRIER_TIMEOUT
_PULSE = 0.05  # of the silence: how often a host says that it is there
_START = 300  # seconds until all must have come
_AGAIN = "start all of them again, and the run goes on from its last checkpoint, if it makes any"
# How JAX, gloo and NCCL put it when another process is gone.
_CUT_OFF = re.compile(r"gloo|nccl|UNAVAILABLE|ABORTED|CANCELLED|DEADLINE_EXCEEDED|coordination service", re.IGNORECASE)


class Hosts:
    """The processes of a run, seen from one of them."""

    def __init__(self, count: int = 1, index: int = 0, client: Any = None):
        self.count = count
        self.index = index
        self.names = {index: socket.gethostname()}
        self._client = client
        self._asked = 0
        self._asked_to_stop = 0
        self.is_stopping = False  # the last answer of `should_stop`
        self._in_order = False
        self._by_hand = False  # this process was told by Ctrl-C
        self.under_way = "before it began; the same command begins it"
        self._patience = float(os.environ.get("BACTRIAN_BARRIER_TIMEOUT", _PATIENCE))

    @property
    def is_first(self) -> bool:
        """Whether this process decides and writes for all."""
        return self.index == 0

    def agree(self, what: str, value: Callable[[], Any]) -> Any:
        """The first process's `value()`, on all of them; it is plain data, and nobody else's is computed.

        All must ask for the same things in the same order. Raises `HostLost` where the first does not answer in time.
        """
        if self.count == 1:
            return value()
        self._asked += 1
        key = f"bactrian/agreed/{self._asked}"
        if self.is_first:
            found = value()
            self._client.key_value_set(key, json.dumps(found))
            return found
        try:
            return json.loads(self._client.blocking_key_value_get(key, int(1000 * self._patience)))
        except Exception as error:
            self._late(what, [0], error)

    def wait(self, what: str) -> None:
        """Wait until all processes are here. Raises `HostLost`, naming those that did not come in time."""
        if self.count == 1:
            return
        self._asked += 1
        try:
            self._client.wait_at_barrier(f"bactrian/wait/{self._asked}", int(1000 * self._patience))
        except Exception as error:
            # "Some timed out task names:", then each on a line of its own.
            named = str(error).partition("timed out task names:")[2].partition("RPC:")[0]
            self._late(what, [int(index) for index in re.findall(r"^\s*(\d+)\s*$", named, re.MULTILINE)], error)

    def _late(self, what: str, missing: list[int], error: Exception) -> NoReturn:
        if "DEADLINE_EXCEEDED" not in str(error):
            raise error
        who = " and ".join(map(self.name, missing)) or "some host"
        raise HostLost(
            f"{who} did not come within {self._patience:.0f} seconds to where the others wait ({what}); look at what "
            f"it says, then start all of them again"
        ) from None

    def name(self, index: int) -> str:
        """A process as an error names it."""
        if index not in self.names:
            try:
                self.names[index] = self._client.key_value_try_get(f"bactrian/name/{index}")
            except Exception:
                return f"host {index}"
        return f"host {index} ({self.names[index]})"

    def should_stop(self) -> bool:
        """Whether some process was told to stop: on all of them the same answer, asked at the same point of the run.

        Once it is yes it stays yes.
        """
        if self.count > 1 and not self.is_stopping:
            from jax.experimental import multihost_utils

            # A count of its own: JAX stops at the number after the highest that some process has reached, and no other.
            self._asked_to_stop += 1
            self.is_stopping = multihost_utils.reached_preemption_sync_point(self._asked_to_stop)
        return self.is_stopping

    def ask(self) -> None:
        """Raise `Preempted`, on all of them, if some process was told to stop."""
        if self.should_stop():
            raise self.stopped(self.under_way)

    def stopped(self, where: str) -> Preempted:
        """What ends a run that `should_stop`. `where` says where it stops and what the same command does then."""
        by_hand = self._by_hand
        if self.count > 1:
            if by_hand:
                self._client.key_value_set(f"bactrian/interrupted/{self.index}", "yes", allow_overwrite=True)
            self.wait("all know that the run stops")
            by_hand = bool(self._client.key_value_dir_get("bactrian/interrupted/"))
        return Preempted(f"interrupted, {where}", interrupts.CODE) if by_hand else Preempted(f"told to stop, {where}")

    @contextmanager
    def in_order(self) -> Iterator[None]:
        """While this lasts `should_stop` is asked often, and a process that is told to stop goes on until it is."""
        before, self._in_order = self._in_order, True
        try:
            yield
        finally:
            self._in_order = before

    def doing(self, what: str) -> None:
        """Note what is under way, and what comes of it where a run stops meanwhile. Raises `Preempted` if it is to."""
        self.under_way = what
        self.ask()

    def told(self, number: int = signal.SIGTERM, _: object = None) -> None:
        """This process was told to stop. Raises `Preempted` where nobody will ask."""
        if number == signal.SIGINT:
            if self._by_hand:
                interrupts.leave(interrupts.AGAIN)
            self._by_hand = True
        if self.count == 1:
            self.is_stopping = True
            if not self._in_order:
                raise self.stopped(self.under_way)
        elif self._in_order:
            os.kill(os.getpid(), signal.SIGTERM)  # JAX tells the others
        else:
            raise Preempted(f"interrupted, {self.under_way}", interrupts.CODE)


ALONE = Hosts()


@contextmanager
def joined() -> Iterator[Hosts]:
    """The processes that the environment speaks of, together; when the block ends well they part together.

    To be entered before JAX has looked for its devices. Where one fails or falls silent this ends all of them, each
    with a line that says which it was. On a TPU VM a notice of the machine's end stops them as SIGTERM does, and so
    does Ctrl-C.
    """
    place = cluster.place_of(os.environ)
    is_tpu_vm = cluster.is_tpu_vm()
    hosts = _connect(place) if place is not None or is_tpu_vm else Hosts()
    listening = notices.heeded() if is_tpu_vm else nullcontext()
    if hosts.count == 1:
        with _telling(hosts, signal.SIGTERM, signal.SIGINT), listening:
            yield hosts
        return
    watch, stopped = _Watch(hosts), None
    try:
        try:
            with _telling(hosts, signal.SIGINT), listening:  # SIGTERM is JAX's own
                yield hosts
        except Preempted as error:
            if not hosts.is_stopping:
                raise  # this one alone, where nobody asked
            stopped = error
        watch.part()
    except BaseException as error:
        watch.fail(error)
    if stopped is not None:
        raise stopped


@contextmanager
def _telling(hosts: Hosts, *numbers: signal.Signals) -> Iterator[None]:
    """While this lasts these signals tell the run to stop; Ctrl-C not in a process that was started to ignore it."""
    before = {number: signal.getsignal(number) for number in numbers}
    if before.get(signal.SIGINT) is signal.SIG_IGN:
        del before[signal.SIGINT]
    for number in before:
        signal.signal(number, hosts.told)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _connect(place: Place | None) -> Hosts:
    import jax
    from jax._src import distributed

    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    # The watch is to be the first to see that a host is gone, since it can say which.
    heartbeat = int(3 * _silence()) + 10
    initialize = partial(jax.distributed.initialize, initialization_timeout=_START, heartbeat_timeout_seconds=heartbeat)
    try:
        if place is None:
            initialize()
        else:
            initialize(place.coordinator, place.count, place.index, place.devices, "deactivate")
    except RuntimeError as error:
        said = str(error).splitlines()[0]
        where = "" if place is None else f" {place.count} processes at {place.coordinator}"
        raise HostLost(f"the hosts did not come together{where}: {said}; see that all are started") from error
    client: Any = distributed.global_state.client
    hosts = Hosts(jax.process_count(), jax.process_index(), client)
    client.key_value_set(f"bactrian/name/{hosts.index}", hosts.names[hosts.index])
    hosts.names[0] = client.blocking_key_value_get("bactrian/name/0", 1000 * _START)
    return hosts


class _Watch:
    """A thread that tells the others that this process is there, and ends it when one of them is not, or has failed."""

    def __init__(self, hosts: Hosts):
        self._hosts = hosts
        self._client = hosts._client
        self._silence = _silence()
        self._over = threading.Event()
        self._heard: dict[str, tuple[str, int]] = {}  # of each its last beat, and the looks since
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._on_abort = ctypes.CFUNCTYPE(None, ctypes.c_int)(self._aborted)
        # When the first process is gone JAX aborts this one; a handler of Python's own would come too late.
        ctypes.CDLL(None).signal(signal.SIGABRT, self._on_abort)
        self._thread.start()

    def part(self) -> None:
        """Wait for all the others, then leave."""
        import jax

        self._hosts.wait("the end")
        self._over.set()
        self._thread.join()
        jax.distributed.shutdown()

    def fail(self, error: BaseException) -> NoReturn:
        """End this process because of an error, and with it all the others."""
        if not isinstance(error, BactrianError) and _CUT_OFF.search(str(error)):
            time.sleep(2 * self._silence)  # by then the watch knows who is gone, and has ended this process
        told = error if isinstance(error, BactrianError | Preempted) else errors.refusal(error)
        if told is not None:
            text, code = errors.line(told), told.exit_code
        elif isinstance(error, KeyboardInterrupt):
            text, code = f"interrupted, {self._hosts.under_way}", interrupts.CODE
        else:
            traceback.print_exception(error)
            text, code = f"failed: {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}", 1
        self._over.set()
        with suppress(Exception):
            self._announce(self._hosts.index, f"has ended: {text}", code)
        self._end(text, code)

    def _run(self) -> None:
        beat = 0
        while not self._over.wait(self._silence * _PULSE):
            beat += 1
            try:
                self._client.key_value_set(f"bactrian/pulse/{self._hosts.index}", str(beat), allow_overwrite=True)
                if self._hosts.is_first:
                    self._listen()
                found = self._client.key_value_dir_get("bactrian/stopped/")
            except Exception:
                if not self._over.is_set():
                    self._end(f"failed: {self._gone()}", 1)
                return
            if found:
                about = json.loads(found[0][1])
                self._end(f"failed: {self._hosts.name(about['index'])} {about['text']}", about["code"])

    def _listen(self) -> None:
        """Note who has spoken since the last time. Counted in looks: the time that this process was held up is none."""
        spoken = {key.rpartition("/")[2]: beat for key, beat in self._client.key_value_dir_get("bactrian/pulse/")}
        for index in map(str, range(self._hosts.count)):
            beat, looks = self._heard.get(index, ("", 0))
            looks = looks + 1 if spoken.get(index, "") == beat else 0
            self._heard[index] = spoken.get(index, ""), looks
            if looks > 1 / _PULSE:
                text = f"said nothing for {self._silence:.0f} seconds: it was killed, or its machine is gone; {_AGAIN}"
                self._announce(int(index), text, HostLost.exit_code)

    def _announce(self, index: int, text: str, code: int) -> None:
        about = {"index": index, "text": text, "code": code}
        self._client.key_value_set(f"bactrian/stopped/{index}", json.dumps(about), allow_overwrite=True)

    def _gone(self) -> str:
        if self._hosts.is_first:
            return f"another host is gone; {_AGAIN}"
        return f"{self._hosts.name(0)} is gone, or the network to it; {_AGAIN}"

    def _aborted(self, _: int) -> None:
        os.write(2, f"failed: {self._gone()}\n".encode())
        os._exit(HostLost.exit_code)

    def _end(self, text: str, code: int) -> NoReturn:
        """Not by an exception: the main thread may be inside a collective that never ends."""
        if self._hosts.is_first:
            time.sleep(3 * _PULSE * self._silence)  # what the first knows is gone with it: the others hear it before
        sys.stdout.flush()
        os.write(2, f"{text}\n".encode())
        os._exit(code)


def _silence() -> float:
    return float(os.environ.get("BACTRIAN_HOST_TIMEOUT", _SILENCE))
