"""Runs programs that a model wrote, where they can do no harm; refuses where the system offers no such place.

A program counts as passed when it came to its own end: a secret is written after its last line, so neither leaving
early nor printing passes it off as done. One that looks for the secret among its interpreter's frames can find it: what
is judged here is what a model wrote to solve a task.
"""

import json
import os
import secrets
import signal
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

from bactrian.errors import InputError

Outcome = Literal["passed", "failed", "timed out"]

_UNAVAILABLE = 125
_JAIL = Path(__file__).with_name("jail.py")
# Reads the secret and the program, runs it as the official harness does, and says so at its end.
_RUN = (
    "import os, sys\n"
    "secret, _, program = sys.stdin.buffer.read().decode().partition('\\n')\n"
    "exec(compile(program, '<answer>', 'exec'), {'__name__': '__answer__'})\n"
    "os.write(DESCRIPTOR, secret.encode())\n"
)


@dataclass(frozen=True)
class Limits:
    """What one program may use: bytes of memory and of files, seconds of processor and by the clock, threads."""

    memory: int = 1 << 30
    disk: int = 32 << 20
    cpu: int = 5
    clock: float = 15.0
    threads: int = 8


def run(programs: Sequence[str], limits: Limits = Limits(), workers: int | None = None) -> list[Outcome]:
    """What became of each program, in order; `workers` at once. Raises `InputError` where none can be run safely."""
    require()
    with ThreadPoolExecutor(workers or os.cpu_count() or 1) as pool:
        return list(pool.map(lambda program: _run_one(program, limits)[0], programs))


@cache
def require() -> None:
    """Raise `InputError` unless this system offers the isolation, tried with a program that does nothing."""
    if sys.platform != "linux":
        raise InputError(f"{_refusal('Linux name spaces are needed')}")
    outcome, why = _run_one("pass", Limits(clock=60.0))
    if outcome != "passed":
        raise InputError(_refusal(why or outcome))


def _refusal(why: str) -> str:
    return (
        f"programs that a model wrote are not run here: this system offers no isolation for them ({why}); allow "
        f"unprivileged user name spaces, or leave HumanEval out"
    )


def _run_one(program: str, limits: Limits) -> tuple[Outcome, str]:
    """How one program ended, and what the jail said if it could not be built."""
    secret = secrets.token_hex(16)
    reading, writing = os.pipe()
    try:
        command = [sys.executable, "-I", str(_JAIL), _settings(limits), _RUN.replace("DESCRIPTOR", str(writing))]
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            pass_fds=(writing,),
            start_new_session=True,
        )
        try:
            _, said = process.communicate(f"{secret}\n{program}".encode("utf-8", "replace"), timeout=limits.clock)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
            return "timed out", ""
        os.close(writing)
        writing = -1
        if process.returncode == _UNAVAILABLE:
            return "failed", said.decode(errors="replace").strip()[:300]
        return ("passed" if os.read(reading, 1024) == secret.encode() else "failed"), ""
    finally:
        for descriptor in (reading, writing):
            if descriptor >= 0:
                os.close(descriptor)


def _settings(limits: Limits) -> str:
    return json.dumps(
        {
            "memory": limits.memory,
            "disk": limits.disk,
            "cpu": limits.cpu,
            "threads": limits.threads,
            "paths": sorted({sys.prefix, sys.base_prefix}),
            "caller": os.getpid(),
        }
    )
