"""Laws: a folder is one process's at a time; a dead one's is taken over; nothing is left in a folder given free."""

import fcntl
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import tiny

from bactrian.errors import RunError
from bactrian.files import lock
from bactrian.files.lock import Lock

HOLD = """
import sys, time
from pathlib import Path
from bactrian.files.lock import Lock
held = Lock(Path(sys.argv[1]), "run", print, print)
print("held", flush=True)
time.sleep(100)
"""


def start(folder: Path) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder)], env=tiny.environment(folder), stdout=-1, stderr=-1, text=True
    )


@pytest.fixture
def other(tmp_path: Path) -> Iterator[subprocess.Popen]:
    """Another process that holds the folder."""
    with start(tmp_path) as process:
        assert process.stdout is not None and process.stdout.readline() == "held\n"
        yield process
        process.kill()


def take(folder: Path, said: list[str] | None = None) -> Lock:
    return Lock(folder, "run", [].append if said is None else said.append, pytest.fail)


def holder(folder: Path) -> dict[str, Any]:
    return json.loads((folder / lock.NAME).read_text())


def leave(folder: Path, **about: Any) -> None:
    """The lock's file as some other process has left it."""
    me = {key: value for key, value in lock._self().items()}
    (folder / lock.NAME).write_text(json.dumps({**me, "pid": 2**22 + 7, "token": "0", **about}))


def test_the_second_is_refused_and_told_who_holds_it(tmp_path: Path, other: subprocess.Popen):
    with pytest.raises(RunError) as caught:
        take(tmp_path)
    assert str(caught.value).startswith(f"{tmp_path}: another process is working on this run (process {other.pid} on ")
    assert str(caught.value).endswith("; wait for it or stop it")


def test_whoever_is_killed_holds_nothing(tmp_path: Path, other: subprocess.Popen):
    other.kill()
    while True:  # until the kernel has taken its lock from it; its parent has not yet heard of its end
        try:
            held = take(tmp_path)
            break
        except RunError:
            time.sleep(0.01)
    assert holder(tmp_path)["pid"] == os.getpid()
    held.release()
    assert os.listdir(tmp_path) == []


@pytest.fixture
def no_kernel_lock(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file system that knows no locks."""

    def unsupported(*_: object) -> None:
        raise OSError(lock.errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "lockf", unsupported)


def test_without_the_kernels_lock_a_living_process_is_seen(
    tmp_path: Path, other: subprocess.Popen, no_kernel_lock: None
):
    with pytest.raises(RunError, match="another process is working"):
        take(tmp_path)
    other.kill()
    other.wait()
    take(tmp_path).release()


ELSEWHERE = {
    "another machine": {"boot": "another"},
    "another machine of the same name, with its pids": {"boot": "another", "pid": os.getpid()},
}


@pytest.mark.parametrize("about", ELSEWHERE.values(), ids=ELSEWHERE)
def test_another_machines_is_taken_over_once_it_is_silent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, about: dict[str, Any]
):
    monkeypatch.setattr(lock, "SILENCE", 1.0)
    said: list[str] = []
    leave(tmp_path, **about)
    began = time.monotonic()
    take(tmp_path, said).release()
    assert 0.5 < time.monotonic() - began < 10
    assert len(said) == 2 and "looking for 1 s whether it is alive" in said[0] and "taken over" in said[1]
    leave(tmp_path, **about)
    os.utime(tmp_path / lock.NAME, (1e9, 1e9))  # silent for long: nothing is waited for
    began = time.monotonic()
    take(tmp_path, said).release()
    assert len(said) == 3 and "taken over" in said[2]


def test_another_machines_is_left_to_it_while_it_gives_signs_of_life(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(lock, "SILENCE", 60.0)
    monkeypatch.setattr(time, "sleep", lambda _: os.utime(tmp_path / lock.NAME))
    leave(tmp_path, boot="another", host="far")
    with pytest.raises(RunError, match=r"another process is working on this run \(process \d+ on far\)"):
        take(tmp_path)


def test_another_container_of_this_machine_is_known_by_the_kernels_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    # Its pid means nothing here; where its kernel's lock, which is ours, is free, it is dead.
    leave(tmp_path, namespace="pid:[1]", pid=os.getpid())
    take(tmp_path).release()


@pytest.mark.parametrize("text", ["", "{", "[]", '{"pid": "x"}', "\0" * 100])
def test_a_lock_that_says_nothing_is_free(tmp_path: Path, text: str):
    (tmp_path / lock.NAME).write_text(text)
    take(tmp_path).release()
    assert os.listdir(tmp_path) == []


LOSSES: dict[str, Callable[[Path], object]] = {
    "taken over": lambda folder: leave(folder, boot="another", host="far"),
    "removed": lambda folder: (folder / lock.NAME).unlink(),
}


@pytest.mark.parametrize("loss", LOSSES)
def test_who_has_lost_its_lock_hears_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, loss: str):
    monkeypatch.setattr(lock, "BEAT", 0.01)
    heard: list[str] = []
    held = Lock(tmp_path, "run", pytest.fail, heard.append)
    LOSSES[loss](tmp_path)
    give_up = time.monotonic() + 10
    while not heard and time.monotonic() < give_up:
        time.sleep(0.01)
    assert heard and "another process has taken this folder over" in heard[0]
    held.release()
    assert os.listdir(tmp_path) == ([lock.NAME] if loss == "taken over" else [])
