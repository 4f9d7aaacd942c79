"""What a run's model was before the run: a base model by its name, and the runs that trained it since.

It is written to the run's ledger when the run begins. The card is made of that, and never reads another run.
"""

import math
import re
import statistics
from collections import Counter
from pathlib import Path
from typing import Any

from bactrian import gguf_file
from bactrian.model import hub
from bactrian.run import Run

_PLAIN = ("F32", "F16", "BF16")  # numbers of a GGUF file that are not quantized


def of(source: str, path: Path) -> dict[str, Any]:
    """The lineage of a MODEL that lies at a path. Raises `RunError` where the run that made it cannot be read.

    `model` is the base model's name, `revision` of the Hub; `file` and `quantization` say which numbers it was read
    from, where that was a GGUF file; `runs` are those that trained it since, the first one first.
    """
    run, upto = _run_of(path)
    if run is not None:
        recipe, ledger = run.recipe(), run.evidence("ledger")
        before = ledger.get("base") or named(recipe.model.source)
        names = list(recipe.stages())
        names = names[: names.index(upto) + 1] if upto in names else names
        stages = {
            name: {
                "settings": recipe.stages()[name].model_dump(mode="json"),
                "ledger": ledger.get(name, {}),
                "measured": measured(name, run.metrics()),
            }
            for name in names
        }
        return {**before, "runs": [*before["runs"], {"name": recipe.export.name or recipe.name, "stages": stages}]}
    about = named(source)
    if source.startswith("hf:"):
        about["revision"] = path.name if re.fullmatch(r"[0-9a-f]{40}", path.name) else about["revision"]
    if path.suffix == ".gguf":
        about |= {"file": path.name, "quantization": _quantization(path)}
    return about


def published(source: str, path: Path) -> tuple[str, str | None]:
    """Where others load the very weights of a MODEL from: its name on the Hub with the commit, or where it lies."""
    if source.startswith("hf:"):
        about = of(source, path)
        return about["model"], about["revision"]
    return str(path.resolve()), None


def named(source: str) -> dict[str, Any]:
    """What the name of a MODEL tells by itself: as on the Hub, or plain; never where it lies."""
    on_the_hub = hub.on_the_hub(source)
    if on_the_hub is None:
        path = Path(source)
        name = path.parent.name if path.name in ("export", "final") else path.name.removesuffix(".gguf")
        on_the_hub = re.sub(r"[^\w.-]+", "-", name).strip("-.") or "base", None
    model, revision = on_the_hub
    return {"model": model, "revision": revision, "file": None, "quantization": None, "runs": []}


def measured(stage: str, metrics: list[dict[str, Any]]) -> dict[str, float]:
    """What the rows of a stage's metrics add up to."""
    rows = [row for row in metrics if row["stage"] == stage and row["kind"] == "train"]
    held = [row for row in metrics if row["stage"] == stage and row["kind"] == "heldout"]
    timings = [row.get("timing", {}) for row in rows]
    seconds = [timing["seconds"] for timing in timings if "seconds" in timing]
    # Of a step in the middle: the first one compiles. The lower of two is one that was measured.
    speeds = [timing["tokens_per_second"] for timing in timings if "tokens_per_second" in timing]
    best = min(held, key=lambda row: row["loss"], default=None)
    found = {
        "steps": max((row["step"] for row in rows), default=None),
        "tokens": sum(row.get("tokens", 0) for row in rows) or None,
        "learned_tokens": sum(row.get("learned_tokens", 0) for row in rows) or None,
        "loss": rows[-1]["loss"] if rows else None,
        "best_heldout_loss": best and best["loss"],
        "best_heldout_step": best and best["step"],
        "seconds": sum(seconds) if seconds else None,
        "tokens_per_second": statistics.median_low(speeds) if speeds else None,
    }
    return {name: value for name, value in found.items() if value is not None}


def _run_of(path: Path) -> tuple[Run | None, str | None]:
    """The run that made the model at a path, and the stage whose end it is, where that is not the run's."""
    folder, upto = (path.parent if path.name == "export" else path), None
    if path.name == "final" and len(path.parents) > 2:
        folder, upto = path.parents[2], path.parent.name
    return (Run(folder), upto) if (folder / "recipe.json").is_file() else (None, None)


def _quantization(path: Path) -> str | None:
    """The type of most numbers in a GGUF file, if it is not one of plain numbers."""
    counts: Counter[str] = Counter()
    for stored in gguf_file.read(path, with_texts=False)[1].values():
        counts[stored.type.name] += math.prod(stored.shape)
    common = counts.most_common(1)
    return common[0][0] if common and common[0][0] not in _PLAIN else None
