"""What of a run's recipe may change once the run has begun.

Names, export, tracking and devices may change at any time. A stage may be trained for more epochs, from its last
checkpoint on, where every update made so far is one that the longer stage makes too. All else is another run.
"""

import re
from pathlib import Path

from bactrian import recipe as recipes
from bactrian.recipe import STAGES, Recipe, Stage

_FREE = re.compile(
    r"name|(export|tracking|mesh)\..*|model\.config|(sft|dpo)\.(checkpoint_every|keep_last|mean_places)"
    r"|(sft|dpo)\.(data|heldout)\.\d+\.rows"
)


def refused(folder: Path, old: Recipe, new: Recipe) -> str | None:
    """Why the run in a folder cannot take over a changed recipe; None if it can."""
    found = []
    for change in recipes.differences(old, new):
        key = change.partition(":")[0]
        if not _FREE.fullmatch(key) and (why := _why_not(folder, key, old, new)) is not None:
            found.append((change, why))
    if len(found) == 1 and found[0][1]:
        return f"{found[0][0]} cannot be taken over: {found[0][1]}"
    return f"this run has another recipe ({'; '.join(change for change, _ in found)})" if found else None


def longer(folder: Path, old: Recipe, new: Recipe) -> dict[str, int]:
    """The stages that are over and are to be trained for more epochs, and the checkpoint that each goes on from."""
    ended = [
        name
        for name, stage in new.stages().items()
        if (before := old.stages().get(name)) and stage.epochs > before.epochs and _has_ended(folder, name)
    ]
    return {name: checkpoints(folder, name)[-1] for name in ended}


def checkpoints(folder: Path, stage: str) -> list[int]:
    """The steps of a stage of which a checkpoint is kept, in order."""
    steps = folder / "checkpoints" / stage / "steps"
    return sorted(int(path.name) for path in steps.iterdir() if path.name.isdecimal()) if steps.is_dir() else []


def _why_not(folder: Path, key: str, old: Recipe, new: Recipe) -> str | None:
    """Why one setting cannot change: a reason, an empty one where it is just another run, None if it can."""
    name, _, setting = key.partition(".")
    before, after = (each.stages().get(name) for each in (old, new))  # pyright: ignore[reportArgumentType, reportCallIssue]
    if setting != "epochs" or before is None or after is None or after.epochs < before.epochs:
        return ""
    begun = [stage for stage in STAGES if (folder / "checkpoints" / stage).exists()]
    later = [stage for stage in STAGES[STAGES.index(name) + 1 :] if stage in begun]
    if later:
        return f"{later[0]} has begun with what {name} ended with"
    if name not in begun:
        return None
    return _why_not_longer(before) or (
        f"no checkpoint of {name} is kept to go on from"
        if _has_ended(folder, name) and not checkpoints(folder, name)
        else None
    )


def _why_not_longer(stage: Stage) -> str | None:
    optimizer = stage.optimizer
    if optimizer.schedule != "constant":
        return f"the {optimizer.schedule} schedule of a longer stage has other learning rates from its first step on"
    if optimizer.warmup_ratio:
        return "the warm-up is a share of the steps, and a longer stage has another one"
    return None


def _has_ended(folder: Path, stage: str) -> bool:
    return (folder / "checkpoints" / stage / "final").exists()
