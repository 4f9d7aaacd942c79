"""Where metrics go besides metrics.jsonl: TensorBoard, and Weights & Biases where the extra is installed."""

import importlib.util
import time
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

from bactrian import masking
from bactrian.errors import RecipeError
from bactrian.files.atomic import writing
from bactrian.recipe import Recipe

_FLUSH_EVERY = 10  # seconds: a flush waits for the disk


class Tracker(Protocol):
    """Takes the numbers of one step of one stage."""

    def log(self, stage: str, kind: str, step: int, values: dict[str, float]) -> None: ...

    def close(self) -> None: ...


class TensorBoard:
    """Event files in the run's `tensorboard/`."""

    def __init__(self, folder: Path):
        self._folder = folder
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
        self._flushed = time.monotonic()

    @cached_property
    def _writer(self) -> Any:
        # Opened by the first step that reports, while the next one runs: tensorboardX loads torch where that is there,
        # which takes seconds. The writer beneath SummaryWriter, which writes in a thread, where a full disk cannot be
        # told to anyone.
        from tensorboardX.event_file_writer import EventsWriter

        return EventsWriter(str(self._folder / "events"))

    def log(self, stage: str, kind: str, step: int, values: dict[str, float]) -> None:
        from tensorboardX.proto.event_pb2 import Event  # pyright: ignore[reportAttributeAccessIssue]
        from tensorboardX.proto.summary_pb2 import Summary  # pyright: ignore[reportAttributeAccessIssue]

        named = [Summary.Value(tag=f"{stage}/{kind}/{name}", simple_value=value) for name, value in values.items()]
        with writing(self._folder):
            self._writer.write_event(Event(wall_time=time.time(), step=step, summary=Summary(value=named)))
            if time.monotonic() - self._flushed > _FLUSH_EVERY:
                self._writer.flush()
                self._flushed = time.monotonic()

    def close(self) -> None:
        if "_writer" in vars(self):
            with writing(self._folder):
                self._writer.close()


class WandB:
    """A Weights & Biases run; its credentials are wandb's own business."""

    def __init__(self, project: str, recipe: Recipe):
        import wandb  # pyright: ignore[reportMissingImports]

        self._run: Any = wandb.init(project=project, name=recipe.name, config=recipe.model_dump(mode="json"))

    def log(self, stage: str, kind: str, step: int, values: dict[str, float]) -> None:
        named = {f"{stage}/{kind}/{name}": value for name, value in values.items()}
        self._run.log({f"{stage}/step": step, **named})

    def close(self) -> None:
        self._run.finish()


def check_trackers(recipe: Recipe) -> None:
    """Raise `InputError` if a tracker that the recipe asks for is not installed, or its key cannot be sent."""
    if recipe.tracking.wandb:
        masking.key("WANDB_API_KEY")
        if importlib.util.find_spec("wandb") is None:
            raise RecipeError("tracking.wandb: wandb is not installed; pip install 'bactrian[wandb]'")


def replay(rows: list[dict[str, Any]], trackers: list[Tracker]) -> None:
    """Give trackers what a run has written to its metrics before it had them."""
    for row in rows:
        values = {name: value for name, value in row.items() if isinstance(value, int | float) and name != "step"}
        measured = row.get("timing", {}).items()
        timing = {name: value for name, value in measured if isinstance(value, int | float) and name != "at"}
        for tracker in trackers:
            tracker.log(row["stage"], row["kind"], row["step"], {**values, **timing})


def open_trackers(recipe: Recipe, folder: Path) -> list[Tracker]:
    """The trackers that a recipe asks for."""
    trackers: list[Tracker] = []
    if recipe.tracking.tensorboard:
        trackers.append(TensorBoard(folder / "tensorboard"))
    if recipe.tracking.wandb:
        trackers.append(WandB(recipe.tracking.wandb, recipe))
    return trackers
