"""Work shared between processes: tasks in, results out in the tasks' order, never more of them under way than needed.

One process is the caller itself, and so is the first task's: what is small starts no other. Others begin afresh rather
than as copies of the caller, which may hold threads of JAX; they end with it, even when it is killed.
"""

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from itertools import chain, islice
from typing import Any, TypeVar

from bactrian import children

Task = TypeVar("Task")
Result = TypeVar("Result")

_WORTH_SHARING = 8  # megabytes
_AHEAD = 2  # tasks handed out for each process: one at work, one waiting
_function: Callable[[Any], Any] | None = None  # of a worker process, set when it starts


def cores() -> int:
    """The processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def suited(megabytes: int) -> int:
    """How many processes so much data is worth: to start them takes seconds."""
    return cores() if megabytes >= _WORTH_SHARING else 1


def in_order(
    start: Callable[..., Callable[[Task], Result]], arguments: tuple[Any, ...], tasks: Iterable[Task], processes: int
) -> Iterator[Result]:
    """The results of `start(*arguments)(task)` for each task. `start` runs once in each process; all of it is pickled.

    An error in a task is raised here, in its turn.
    """
    waiting = iter(tasks)
    first = list(islice(waiting, 2))
    if processes < 2 or len(first) < 2:
        function = start(*arguments)
        yield from map(function, chain(first, waiting))
        return
    yield from _shared(start, arguments, chain(first, waiting), processes)


def _shared(
    start: Callable[..., Callable[[Task], Result]], arguments: tuple[Any, ...], tasks: Iterator[Task], processes: int
) -> Iterator[Result]:
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(processes, context, initializer=_begin, initargs=(start, arguments))
    under_way: deque[Future[Result]] = deque()
    try:
        for task in tasks:
            # A process that this starts has Ctrl-C blocked from its first instant on: the caller is interrupted.
            masked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
            try:
                with children.isolated():
                    under_way.append(pool.submit(_work, task))
            finally:
                signal.pthread_sigmask(signal.SIG_SETMASK, masked)
            if len(under_way) >= _AHEAD * processes:
                yield under_way.popleft().result()
        while under_way:
            yield under_way.popleft().result()
    except BaseException:
        for process in list(pool._processes.values()):  # not to wait for work that nobody wants
            process.terminate()
        raise
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _begin(start: Callable[..., Callable[[Any], Any]], arguments: tuple[Any, ...]) -> None:
    global _function
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the processes are parallel enough
    threading.Thread(target=_end_with_caller, daemon=True).start()
    _function = start(*arguments)


def _end_with_caller() -> None:
    caller = multiprocessing.parent_process()
    if caller is not None:
        caller.join()
        os._exit(1)


def _work(task: Any) -> Any:
    assert _function is not None
    return _function(task)
