"""One process at a time in a folder: a lock that lies in it, so that it is seen from wherever the folder is.

    FOLDER/.lock   who holds it: host, boot, namespace, pid and the process's start, as JSON; its time tells it is alive

The kernel's lock on that file (fcntl) keeps others out wherever the file system carries it: on one machine, containers
too, and over NFS 4, Lustre (mounted with `flock`), GPFS, CephFS. Where it does not, or may not reach as far, the file
itself does: its holder touches it every few seconds, and another machine's process takes it over only when it has not
been touched for a while. Where a file system shows what one machine writes to another much later (some object stores
mounted as folders), neither can.
"""

import errno
import fcntl
import json
import os
import secrets
import socket
import threading
import time
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bactrian.errors import InputError, RunError
from bactrian.files import atomic, documents

NAME = ".lock"
BEAT = 5.0  # seconds between the touches of a holder
SILENCE = 90.0  # seconds after which a holder on another machine counts as dead; NFS shows times 60 seconds late
_UNSUPPORTED = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EINVAL)


class Lock:
    """A folder held by this process, until `release` or for as long as this object lives."""

    def __init__(self, folder: Path, what: str, say: Callable[[str], None], lost: Callable[[str], None]):
        """Hold a folder. `what` is what others work on in it, `say` tells of waiting and taking over, `lost` is called,
        on a thread, where another has taken the lock over. Raises `RunError` where another process holds it."""
        self._path = folder / NAME
        taken = f"{folder}: another process is working on this {what}"
        with atomic.writing(self._path):
            atomic.make_folder(folder)
            file, locked = _open(self._path, taken)
            try:
                _wait_for_another(self._path, file, locked, taken, say)
                mine = {**_self(), "token": secrets.token_hex(8)}
                _write(file, mine)
                if not locked:  # two may have found it free at once: the last to write holds it
                    time.sleep(0.5)
                    if _read(file) != mine:
                        raise RunError(f"{taken}; wait for it or stop it")
            except BaseException:
                os.close(file)
                raise
        over = threading.Event()
        beating = threading.Thread(target=_beat, args=(self._path, file, mine, over, lost), daemon=True)
        self._release = weakref.finalize(self, _release, self._path, file, mine, over, beating)
        beating.start()

    def release(self) -> None:
        """Give the folder free."""
        self._release()


def _open(path: Path, taken: str) -> tuple[int, bool]:
    """The lock's file, and whether the kernel's lock on it is had: not where the file system knows none."""
    while True:
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = _read(file)
            if error.errno in _UNSUPPORTED:
                return file, False
            os.close(file)
            if error.errno not in (errno.EAGAIN, errno.EACCES):
                raise
            raise RunError(f"{taken}{_described(holder)}; wait for it or stop it") from None
        if _is_at(path, file):
            return file, True
        os.close(file)  # who held it has removed it meanwhile


def _wait_for_another(path: Path, file: int, locked: bool, taken: str, say: Callable[[str], None]) -> None:
    """Return once nobody else holds the lock. Raises `RunError` where somebody does."""
    holder, me = _read(file), _self()
    if holder is None:
        return
    same_machine = holder.get("boot") == me["boot"] and (me["boot"] or holder.get("host") == me["host"])
    if same_machine and holder.get("namespace") == me["namespace"]:
        if _is_this_process(holder) or not _is_alive(holder["pid"], holder.get("started")):
            return
        raise RunError(f"{taken}{_described(holder)}; wait for it or stop it")
    if same_machine and locked:
        return  # one kernel, which would have refused the lock
    # On another machine, or where only its signs of life can be seen. By the times of one clock, the file system's.
    touched = os.fstat(file).st_mtime
    left = SILENCE - (_now(path.parent) - touched)
    if left > 0:
        say(f"{path.parent}: held{_described(holder)} until lately: looking for {left:.0f} s whether it is alive")
    while left > 0:
        time.sleep(min(left, 1.0))
        left -= 1.0
        if os.stat(path).st_mtime != touched or _read(file) != holder:
            raise RunError(f"{taken}{_described(holder)}; wait for it or stop it")
    say(f"{path.parent}: taken over: the process that worked on it{_described(holder)} gives no sign of life")


def _beat(path: Path, file: int, mine: dict[str, Any], over: threading.Event, lost: Callable[[str], None]) -> None:
    """Show that the holder is alive; find out where another has taken the lock over."""
    while not over.wait(BEAT):
        try:
            holder = _read(file)
            if holder and holder != mine and _is_this_process(holder):
                return
            if holder != mine or not _is_at(path, file):
                by = _described(holder) if holder and holder != mine else ""
                lost(f"{path.parent}: another process has taken this folder over{by}, or its {NAME} was removed")
                return
            os.utime(file)
        except OSError:  # the disk may be gone for a while; whoever writes there says so
            continue


def _release(path: Path, file: int, mine: dict[str, Any], over: threading.Event, beating: threading.Thread) -> None:
    over.set()
    if beating.is_alive() and beating is not threading.current_thread():
        beating.join()
    try:
        if _read(file) == mine and _is_at(path, file):
            path.unlink()  # while it is locked: whoever has opened it since sees that it is gone
    except OSError:
        pass  # what is left is found to be of a dead process
    finally:
        os.close(file)


def _is_at(path: Path, file: int) -> bool:
    try:
        there = os.stat(path, follow_symlinks=False)
    except FileNotFoundError:
        return False
    here = os.fstat(file)
    return (there.st_dev, there.st_ino) == (here.st_dev, here.st_ino)


def _read(file: int) -> dict[str, Any] | None:
    """Who the file says holds it; None where it says nothing that can be read: its writer was killed at it."""
    try:
        found = documents.parse_json(os.pread(file, 4096, 0), NAME)
    except InputError:
        return None
    return found if isinstance(found, dict) and isinstance(found.get("pid"), int) else None


def _write(file: int, mine: dict[str, Any]) -> None:
    os.ftruncate(file, 0)
    os.pwrite(file, json.dumps(mine).encode(), 0)
    os.fsync(file)


def _self() -> dict[str, Any]:
    """This process, as no other is at any time on any machine."""
    return {
        "host": socket.gethostname(),
        "boot": _kernel_says("/proc/sys/kernel/random/boot_id"),
        "namespace": _namespace(),
        "pid": os.getpid(),
        "started": _started(os.getpid()),
    }


def _kernel_says(path: str) -> str | None:
    try:
        return Path(path).read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError):
        return None


def _namespace() -> str | None:
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return None


def _started(pid: int) -> str | None:
    """When a process was started, in the kernel's ticks; None where there is none of that number."""
    about = _kernel_says(f"/proc/{pid}/stat")
    # After the name, which may hold anything, in brackets: the state is the third column, the start the 22nd.
    columns = about.rpartition(")")[2].split() if about else ["X"]
    return None if columns[0] in "ZX" else columns[19]


def _is_alive(pid: int, started: str | None) -> bool:
    if started is not None:
        return _started(pid) == started
    try:
        os.kill(pid, 0)
    except (OSError, OverflowError):
        return False
    return True


def _is_this_process(holder: dict[str, Any]) -> bool:
    return {key: value for key, value in holder.items() if key != "token"} == _self()


def _now(folder: Path) -> float:
    """The time by the clock that the files of a folder get theirs from."""
    with atomic.beside(folder / NAME) as probe:
        probe.touch()
        return probe.stat().st_mtime


def _described(holder: dict[str, Any] | None) -> str:
    return f" (process {holder['pid']} on {holder.get('host')})" if holder else ""
