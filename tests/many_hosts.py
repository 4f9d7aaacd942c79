"""The command in several processes that are one run, all on this machine: each with CPU devices of its own."""

import signal
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
import tiny

from bactrian.run import Run

TOLERANCE = 1e-3  # after 30 updates at a high learning rate, summed in another order


class Ended(NamedTuple):
    """How one of the processes ended, and what it said."""

    code: int
    out: str
    err: str


def start(
    command: list[str], cache: Path, count: int, devices: int = 1, silence: float = 8.0, patience: float = 100.0
) -> list[subprocess.Popen]:
    """A command as so many processes, started; each has `devices` devices."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    # A shell that runs the tests in the background has Ctrl-C ignored, which processes inherit.
    ours = signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        return _started(command, cache, count, devices, address, silence, patience)
    finally:
        signal.signal(signal.SIGINT, ours)


def _started(
    command: list[str], cache: Path, count: int, devices: int, address: str, silence: float, patience: float
) -> list[subprocess.Popen]:
    return [
        subprocess.Popen(
            command,
            env=tiny.environment(
                cache,
                JAX_PLATFORMS="cpu",
                XLA_FLAGS=f"--xla_force_host_platform_device_count={devices}",
                JAX_COORDINATOR_ADDRESS=address,
                JAX_NUM_PROCESSES=str(count),
                JAX_PROCESS_ID=str(index),
                BACTRIAN_HOST_TIMEOUT=str(silence),
                BACTRIAN_BARRIER_TIMEOUT=str(patience),
            ),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for index in range(count)
    ]


def finish(processes: list[subprocess.Popen]) -> list[Ended]:
    """Wait for all of them; pytest's own limit ends what does not end."""
    try:
        said = [process.communicate() for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [Ended(process.returncode, *texts) for process, texts in zip(processes, said, strict=True)]


def wait_for(moment: Callable[[], bool], processes: list[subprocess.Popen]) -> None:
    """Until a moment has come; an error where a process ends before."""
    while not moment():
        if any(process.poll() is not None for process in processes):
            for process in processes:
                process.kill()
            raise AssertionError(f"the moment never came: {[process.communicate()[1] for process in processes]}")
        time.sleep(0.01)


def assert_same_curve(folder: Path, other: Path, stages: tuple[str, ...] = ("sft", "dpo")) -> None:
    """The same steps with the same tokens and, to rounding, the same losses."""
    expected = [row for row in Run(other).metrics() if row["stage"] in stages]
    found = Run(folder).metrics()
    assert [(row["stage"], row["kind"], row["step"], row["tokens"]) for row in found] == [
        (row["stage"], row["kind"], row["step"], row["tokens"]) for row in expected
    ]
    for row, other_row in zip(found, expected, strict=True):
        assert row["loss"] == pytest.approx(other_row["loss"], rel=TOLERANCE), (row, other_row)
