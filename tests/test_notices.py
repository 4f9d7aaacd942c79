"""Law: a notice of the machine's end is SIGTERM; nothing else that a metadata server does, or does not, is anything."""

import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import many_hosts
import pytest
import tiny
from fake_metadata import QUIET, FakeMetadata

from bactrian import cluster, hosts
from bactrian.errors import Preempted
from bactrian.hosts import Hosts
from bactrian.run import Run

NOTICES = [("maintenance-event", "TERMINATE_ON_HOST_MAINTENANCE"), ("preempted", "TRUE")]
# The command where JAX finds the one host of a slice of one.
COMMAND = """
from bactrian import cluster, hosts
cluster.is_tpu_vm, hosts._connect = lambda: True, lambda place: hosts.Hosts()
from bactrian.cli import app
app.main()
"""
# Two hosts, of which one is told nothing.
TOGETHER = """
import os, time
from bactrian import cluster, hosts
cluster.is_tpu_vm = lambda: os.environ["JAX_PROCESS_ID"] == "1"
with hosts.joined() as together:
    step = 0
    while not together.should_stop():
        step += 1; time.sleep(0.05)
    print(step)
    together.wait("all have seen it")
print("parted well")
"""


@pytest.fixture
def metadata(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeMetadata]:
    """A server that is there and has no notice."""
    with FakeMetadata().running() as server:
        monkeypatch.setenv("GCE_METADATA_HOST", server.host)
        yield server


@pytest.fixture
def on_a_tpu_vm(monkeypatch: pytest.MonkeyPatch) -> None:
    """This process is the only one of a TPU slice, behind a proxy that is not there."""
    monkeypatch.setattr(cluster, "is_tpu_vm", lambda: True)
    monkeypatch.setattr(hosts, "_connect", lambda place: Hosts())
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")


@contextmanager
def joined() -> Iterator[Hosts]:
    """`hosts.joined`, which leaves no thread behind, and SIGTERM what it was."""
    before = signal.getsignal(signal.SIGTERM)
    try:
        with hosts.joined() as alone:
            yield alone
    finally:
        assert [thread.name for thread in threading.enumerate() if thread.name.endswith("(_run)")] == []
        assert signal.getsignal(signal.SIGTERM) is before


def wait_for(moment: Callable[[], bool]) -> None:
    """Until a moment has come; pytest's own limit ends what does not end."""
    while not moment():
        time.sleep(0.01)


@pytest.mark.parametrize(("key", "value"), NOTICES)
def test_a_run_alone_saves_and_stops(
    key: str, value: str, metadata: FakeMetadata, tmp_path: Path, tiny_recipe: Path, tiny_cache: Path
):
    command = [sys.executable, "-c", COMMAND, "run", str(tiny_recipe), "--run-dir", str(tmp_path)]
    process = subprocess.Popen(command, env=tiny.environment(tiny_cache), stderr=subprocess.PIPE, text=True)

    def trains() -> bool:
        return metadata.is_waited_on() and sum(row["kind"] == "train" for row in Run(tmp_path).metrics()) > 3

    many_hosts.wait_for(trains, [process])
    metadata.set(key, value)
    [ended] = many_hosts.finish([process])
    assert ended.code == 75
    lines = ended.err.splitlines()
    assert lines[-1].startswith("stopped: told to stop, after step ") and "which is saved" in lines[-1]
    [why] = [line for line in lines if value in line]
    assert why.startswith(f"{socket.gethostname()} is ") and f"({key} is {value})" in why


def test_a_notice_to_one_host_stops_all(metadata: FakeMetadata):
    processes = many_hosts.start([sys.executable, "-c", TOGETHER], Path(), 2)
    many_hosts.wait_for(metadata.is_waited_on, processes)
    for key, value in NOTICES:  # one signal, whatever is said besides
        metadata.set(key, value)
    first, second = many_hosts.finish(processes)
    assert (first.code, second.code) == (0, 0), (first, second)
    assert first.out == second.out and first.out.endswith("\nparted well\n")
    assert "stops as by SIGTERM" not in first.err
    assert second.err.count("stops as by SIGTERM") == 1


@pytest.mark.usefixtures("on_a_tpu_vm")
@pytest.mark.parametrize(("key", "value"), NOTICES)
def test_a_notice_that_is_there_already_counts(
    key: str, value: str, metadata: FakeMetadata, capsys: pytest.CaptureFixture[str]
):
    metadata.set(key, value)
    with pytest.raises(Preempted), joined():
        wait_for(lambda: False)
    assert f"({key} is {value})" in capsys.readouterr().err


@pytest.mark.usefixtures("on_a_tpu_vm")
def test_a_machine_that_is_moved_goes_on(metadata: FakeMetadata, capsys: pytest.CaptureFixture[str]):
    with joined() as alone, alone.in_order():
        for value in ("MIGRATE_ON_HOST_MAINTENANCE", "NONE"):
            wait_for(metadata.is_waited_on)
            asked = metadata.asked["maintenance-event"]
            metadata.set("maintenance-event", value)
            wait_for(lambda asked=asked: metadata.asked["maintenance-event"] > asked)
        wait_for(metadata.is_waited_on)
        assert not alone.should_stop()
    assert capsys.readouterr().err == ""


@pytest.mark.usefixtures("on_a_tpu_vm")
@pytest.mark.parametrize("fault", ["404", "503", "302", "rubbish", "not Google's", "never waits", "silence"])
def test_a_server_that_fails_is_left_alone(
    fault: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    with FakeMetadata(fault).running() as server:
        monkeypatch.setenv("GCE_METADATA_HOST", server.host)
        began = time.monotonic()
        with joined() as alone, alone.in_order():
            wait_for(lambda: all(server.asked[key] for key in QUIET))
            time.sleep(1.5)
            assert not alone.should_stop()
        passed = time.monotonic() - began
    # One at once, then none sooner than a second after the one before.
    assert set(server.asked) == set(QUIET) and max(server.asked.values()) <= 1 + passed
    assert capsys.readouterr().err == ""


@pytest.mark.usefixtures("on_a_tpu_vm")
@pytest.mark.parametrize("host", ["127.0.0.1:9", "no host:port", "é" * 70])
def test_a_server_that_is_not_there_is_nothing(
    host: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setenv("GCE_METADATA_HOST", host)
    with joined() as alone, alone.in_order():
        time.sleep(0.3)
        assert not alone.should_stop()
    assert capsys.readouterr().err == ""


def test_elsewhere_nobody_is_asked(metadata: FakeMetadata):
    metadata.set("preempted", "TRUE")
    with joined() as alone, alone.in_order():
        time.sleep(0.3)
        assert not alone.should_stop()
    assert metadata.asked.total() == 0
