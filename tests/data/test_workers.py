"""Laws: results come in the order of their tasks, however many processes; none outlives its caller."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from bactrian.data import workers
from bactrian.errors import DataError

SOURCE = Path(workers.__file__).parents[2]


def squares(offset: int) -> Callable[[int], tuple[int, int]]:
    """A worker that takes longer over its first tasks than over later ones."""

    def square(number: int) -> tuple[int, int]:
        time.sleep(0.05 if number < 2 else 0)
        if number == 99:
            raise DataError("rows.jsonl:99: no")
        return number * number + offset, os.getpid()

    return square


@pytest.mark.parametrize("processes", [1, 3])
def test_results_come_in_order(processes: int):
    found = list(workers.in_order(squares, (7,), iter(range(20)), processes))
    assert [number for number, _ in found] == [number * number + 7 for number in range(20)]
    assert (len({pid for _, pid in found} | {os.getpid()}) > 1) == (processes > 1)


def test_a_single_task_starts_no_process():
    assert list(workers.in_order(squares, (0,), [3], 8)) == [(9, os.getpid())]
    assert list(workers.in_order(squares, (0,), [], 8)) == []


def test_tasks_are_not_made_before_they_are_wanted():
    made = []

    def tasks() -> Iterator[int]:
        for number in range(50):
            made.append(number)
            yield number

    for done, _ in enumerate(workers.in_order(squares, (0,), tasks(), 2)):
        assert len(made) <= done + 1 + 2 * workers._AHEAD


@pytest.mark.parametrize("processes", [1, 2])
def test_an_error_comes_in_its_turn(processes: int):
    results = workers.in_order(squares, (0,), [1, 2, 99, 3], processes)
    assert next(results)[0] == 1 and next(results)[0] == 4
    with pytest.raises(DataError, match=r"rows\.jsonl:99: no"):
        next(results)


PROGRAM = """
import sys
sys.path[:0] = [{source!r}, {here!r}]
import test_workers
from bactrian.data import workers
if __name__ == "__main__":
    for number, pid in workers.in_order(test_workers.squares, (0,), iter(range(10**9)), 2):
        print(pid, flush=True)
"""


def test_nobody_outlives_a_caller_that_is_killed(tmp_path: Path):
    script = tmp_path / "caller.py"
    script.write_text(PROGRAM.format(source=str(SOURCE), here=str(Path(__file__).parent)))
    caller = subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True)
    assert caller.stdout is not None
    pids = {int(caller.stdout.readline()) for _ in range(40)}
    assert caller.pid not in pids
    caller.send_signal(signal.SIGKILL)
    caller.wait()
    until = time.monotonic() + 20
    while any(Path(f"/proc/{pid}").exists() for pid in pids) and time.monotonic() < until:
        time.sleep(0.05)
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)
