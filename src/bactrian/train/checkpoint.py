"""Save, keep and restore a stage's state: asynchronous and atomic, by orbax.

A checkpoint is the state after an update, under that update's number, without the parameters that no update changes.
It has a manifest of its files, which are on the disk before it takes its name; a damaged one is not gone on from.
"""

import logging
import shutil
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers

from bactrian import progress
from bactrian.errors import BactrianError, Preempted, RunError, RunFailed
from bactrian.files import folders
from bactrian.hosts import ALONE, Hosts
from bactrian.train.trainer import State

_SUMMED = 128 * 2**30  # bytes of a checkpoint whose files are summed: of a larger one their sizes are checked alone
_NOT_LISTED = ("_CHECKPOINT_METADATA", "commit_success.txt")  # written once more as orbax renames a checkpoint


class Checkpoints:
    """The checkpoints of one stage: the last few, and the best by held-out loss if asked for.

    A block: when it ends well, or was told to stop, everything is on disk; after another error nothing is waited for.
    """

    def __init__(self, folder: Path, keep_last: int, keep_best: bool, hosts: Hosts = ALONE):
        """Open the checkpoints in a folder. One that is damaged is removed where an earlier one is whole. Raises
        `RunError` where none is, and `RunFailed` where orbax fails."""
        # What goes wrong in writing is raised; orbax logs it first, at length and from every thread.
        logging.getLogger("absl").setLevel(logging.CRITICAL)
        threading.excepthook, sys.excepthook = _thread_raised, partial(_printed, sys.excepthook)
        self._folder = folder.resolve()
        fault = hosts.agree("whether the checkpoints are whole", lambda: _settle(self._folder))
        if fault is not None:
            raise RunError(fault)
        kept: list[Any] = [checkpoint_managers.LatestN(keep_last)]
        if keep_best:
            best = checkpoint_managers.BestN(
                get_metric_fn=lambda metrics: metrics["loss"],
                reverse=True,
                n=1,
                keep_checkpoints_without_metrics=False,  # as that of a run which was told to stop
            )
            kept.append(best)
        options = ocp.CheckpointManagerOptions(
            preservation_policy=checkpoint_managers.AnyPreservationPolicy(kept),
            best_fn=(lambda metrics: metrics["loss"]) if keep_best else None,
            best_mode="min",
            async_options=ocp.AsyncOptions(post_finalization_callback=self._seal),
        )
        self._hosts = hosts
        self._number = 0  # of the checkpoint that is being written
        self._failed = False
        with self._writing():
            # Compressed, a state is 7 % smaller and takes eight times the processor's time, which training wants.
            handler = ocp.PyTreeCheckpointHandler(use_compression=False)
            manager: Any = ocp.CheckpointManager(self._folder, options=options, item_handlers=handler)
        # Whether to stop is the loop's question: asked here too, under other numbers, hosts would not agree on when.
        manager.reached_preemption = lambda step: False
        self._manager = manager

    def latest(self) -> int | None:
        """The number of the last checkpoint, if there is one."""
        return self._manager.latest_step()

    def best(self) -> int | None:
        """The number of the checkpoint with the least held-out loss."""
        return self._manager.best_step()

    def save(self, number: int, state: State, loss: float | None) -> None:
        """Begin to save the state after an update; `loss` is the held-out one. Training may go on meanwhile."""
        metrics = None if loss is None else {"loss": loss}
        with self._writing():
            self._manager.wait_until_finished()
            self._number = number
            self._manager.save(number, args=ocp.args.PyTreeSave(_changing(state)), metrics=metrics)

    def restore(self, number: int, like: State) -> State:
        """The state of a checkpoint; `like` gives shapes, dtypes and shardings, and what is frozen. Raises `RunError`
        where it cannot be read."""
        path = self._folder / str(number)
        fault = self._hosts.agree("whether the checkpoint is whole", lambda: _fault(path))
        if fault is not None:
            raise RunError(_named(path, fault))
        abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, _changing(like))
        arguments = ocp.args.PyTreeRestore(abstract, ocp.checkpoint_utils.construct_restore_args(abstract))
        try:
            restored = self._manager.restore(number, args=arguments)
        except Exception as error:  # whatever orbax and the libraries beneath it raise
            raise RunError(_named(path, _reason(error))) from error
        return State(**restored, frozen=like.frozen)

    def close(self) -> None:
        """Wait until everything is on disk."""
        with self._writing():
            self._manager.wait_until_finished()
            self._manager.close()

    def check(self) -> None:
        """Raise what has gone wrong in writing a checkpoint since it was begun."""
        with self._writing():
            self._manager.check_for_errors()

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        # Other hosts may be where this one will never come, and what has failed to be written may be waited for long.
        if error is None or isinstance(error, Preempted) or (self._hosts.count == 1 and not self._failed):
            self.close()

    def _seal(self) -> None:
        """List the files of a checkpoint, once they are on the disk, before orbax gives it its name."""
        if not self._hosts.is_first:
            return
        for path in self._folder.glob(f"{self._number}.*"):
            files = [name for name in folders.names(path) if name not in _NOT_LISTED]
            size = sum((path / name).stat().st_size for name in files)
            folders.write_manifest(path, files, content=size <= _SUMMED)

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except BactrianError:
            self._failed = True
            raise
        except Exception as error:  # of orbax's threads; tensorstore's are ValueErrors
            self._failed = True
            if any(reason in str(error) for reason in ("No space left on device", "Disk quota exceeded")):
                raise RunError(
                    f"{self._folder}: cannot write a checkpoint: the disk is full; free some space, run again"
                ) from error
            raise RunFailed(
                f"{self._folder}: cannot write a checkpoint: {_reason(error)}; see to the folder and its disk, then "
                f"the same command resumes the run"
            ) from error


def _settle(folder: Path) -> str | None:
    """See that the last checkpoint is whole. One that is not is removed where an earlier one is; else says what is."""
    numbers = sorted((int(path.name) for path in folder.glob("*") if path.name.isdecimal()), reverse=True)
    whole = {number: folders.has_manifest(folder / str(number)) for number in numbers}
    damaged: list[tuple[Path, str]] = []
    for number in numbers:
        path = folder / str(number)
        # Without a manifest it is of an earlier version, or of a process that was killed before it was on the disk.
        unsealed = None if whole[number] or not any(whole.values()) else "it was not yet all on the disk"
        fault = unsealed or _fault(path)
        if fault is None:
            for each, why in damaged:
                progress.say(f"{each}: removed: {why}; going on from step {number}")
                shutil.rmtree(each)
            return None
        damaged.append((path, fault))
    return _named(*damaged[0]) if damaged else None


def _fault(path: Path) -> str | None:
    return folders.fault(path) if folders.has_manifest(path) else None


def _named(path: Path, fault: str) -> str:
    return f"{path}: the checkpoint is damaged: {fault}; restore it, or remove {path.parent} to begin the stage again"


def _reason(error: BaseException) -> str:
    """What an error says: orbax raises some from others, and the last one of them knows."""
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    named = getattr(error, "filename", None)
    return f"{text} ({named})" if named else text


def _printed(before: Callable[..., Any], kind: type[BaseException], error: BaseException, trace: Any) -> None:
    """Tensorstore prints what its threads meet where the loop that waited for them is over, of an earlier error."""
    if not (isinstance(error, RuntimeError) and str(error) == "Event loop is closed"):
        before(kind, error, trace)


def _thread_raised(about: threading.ExceptHookArgs) -> None:
    """What a thread of orbax raises is raised by `Checkpoints` too: its traceback is not printed."""
    trace = about.exc_traceback
    while trace is not None:
        if trace.tb_frame.f_globals.get("__name__", "").startswith("orbax."):
            return
        trace = trace.tb_next
    threading.__excepthook__(about)


def _changing(state: State) -> dict[str, Any]:
    """What updates change of a state."""
    return {name: part for name, part in state._asdict().items() if name != "frozen"}
