"""Save, keep and restore a stage's state: asynchronous and atomic, by orbax.

A checkpoint is the state after an update, under that update's number, without the parameters that no update changes.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers

from bactrian.errors import RunError
from bactrian.train.trainer import State


class Checkpoints:
    """The checkpoints of one stage: the last few, and the best by held-out loss if asked for."""

    def __init__(self, folder: Path, keep_last: int, keep_best: bool):
        # What goes wrong in writing is raised; orbax logs it first, at length and from every thread.
        logging.getLogger("absl").setLevel(logging.CRITICAL)
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
        )
        self._folder = folder.resolve()
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
            self._manager.save(number, args=ocp.args.PyTreeSave(_changing(state)), metrics=metrics)

    def restore(self, number: int, like: State) -> State:
        """The state of a checkpoint; `like` gives shapes, dtypes and shardings, and what is frozen."""
        abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, _changing(like))
        arguments = ocp.args.PyTreeRestore(abstract, ocp.checkpoint_utils.construct_restore_args(abstract))
        return State(**self._manager.restore(number, args=arguments), frozen=like.frozen)

    def close(self) -> None:
        """Wait until everything is on disk."""
        with self._writing():
            self._manager.wait_until_finished()
            self._manager.close()

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except (OSError, ValueError) as error:  # tensorstore's errors are ValueErrors
            if not any(reason in str(error) for reason in ("No space left on device", "Disk quota exceeded")):
                raise
            raise RunError(
                f"{self._folder}: cannot write a checkpoint: the disk is full; free some space, run again"
            ) from error


def _changing(state: State) -> dict[str, Any]:
    """What updates change of a state."""
    return {name: part for name, part in state._asdict().items() if name != "frozen"}
