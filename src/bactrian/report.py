"""A run's curves and scores as pictures, made from the files in its folder alone.

loss.png       training and held-out loss, a panel per stage
accuracy.png   DPO: share of pairs in which the chosen answer gained more on the reference than the rejected one
margin.png     DPO: by how much
scores.png     the shares that were measured of the base model and of each stage
"""

import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bactrian.files.atomic import replacing
from bactrian.markdown import harmless
from bactrian.recipe import STAGES
from bactrian.run import Run

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Rows = list[dict[str, Any]]
Drawer = Callable[["Figure"], bool]

TITLES = {"base": "Base model", "sft": "SFT", "dpo": "DPO"}
_COLOURS = {"base": "#8a8f98", "sft": "#c9822b", "dpo": "#2f6690"}
_DARK = {"sft": "#7d4c10", "dpo": "#12304a"}
_INCHES, _DOTS = (12, 7), 100
_STYLE: dict[Any, Any] = {
    "font.size": 12,
    "axes.titlesize": 14,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e6e8eb",
    "legend.frameon": False,
}
# Names of scores that are no shares, and what stands beside the scores in evaluation.json.
_NOT_SHARES = {"sft_loss", "preference_margin", "counts"}


def titles(ledger: dict[str, Any]) -> dict[str, str]:
    """The labels of a run's scores as a reader sees them. What a chained run began with is no base model."""
    runs = ledger.get("base", {}).get("runs", [])
    return {**TITLES, "base": f"Start ({harmless(runs[-1]['name'])})"} if runs else TITLES


def plot(run: Run) -> list[Path]:
    """Write the pictures for which the run has data to its `plots/`; returns them."""
    metrics = run.metrics()
    evaluation = run.evidence("evaluation")
    drawers: dict[str, Drawer] = {
        "loss": lambda figure: _losses(figure, metrics),
        "margin": lambda figure: _preference(figure, metrics, "margin"),
        "accuracy": lambda figure: _preference(figure, metrics, "accuracy"),
        "scores": lambda figure: _scores(figure, evaluation, titles(run.evidence("ledger"))),
    }
    # Figures of their own, drawn by Agg: no display, and nothing of pyplot's that a notebook may have set.
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    paths = []
    with matplotlib.rc_context(_STYLE):
        for name, draw in drawers.items():
            figure = Figure(figsize=_INCHES, dpi=_DOTS, layout="tight")
            FigureCanvasAgg(figure)
            if draw(figure):
                paths.append(run.plots / f"{name}.png")
                with replacing(paths[-1]) as temporary:
                    figure.savefig(temporary, format="png", metadata={"Software": None})
    return paths


def _losses(figure: "Figure", metrics: Rows) -> bool:
    stages = [stage for stage in STAGES if _has(metrics, stage, "loss")]
    for place, stage in enumerate(stages, start=1):
        axes = figure.add_subplot(1, len(stages), place)
        _curve(axes, metrics, stage, "loss")
        unit = "nats per learnt token" if stage == "sft" else "nats per pair"
        axes.set(title=f"{TITLES[stage]}: loss", xlabel="step", ylabel=f"loss ({unit})")
        if stage == "dpo":
            axes.axhline(math.log(2), color="#555555", linestyle="--", linewidth=1, label="ln 2, where DPO begins")
        axes.legend()
    return bool(stages)


def _preference(figure: "Figure", metrics: Rows, name: str) -> bool:
    if not _has(metrics, "dpo", name):
        return False
    axes = figure.add_subplot()
    _curve(axes, metrics, "dpo", name)
    if name == "margin":
        axes.set(title="DPO: reward margin of chosen over rejected", ylabel="β × margin of log-probability (nats)")
        axes.axhline(0, color="#555555", linestyle="--", linewidth=1, label="none, where DPO begins")
    else:
        axes.set(title="DPO: pairs whose margin is positive", ylabel="share of pairs", ylim=(-0.02, 1.02))
        axes.axhline(0.5, color="#555555", linestyle="--", linewidth=1, label="half of the pairs")
    axes.set_xlabel("step")
    axes.legend()
    return True


def _curve(axes: "Axes", metrics: Rows, stage: str, name: str) -> None:
    """What training reported as a line, behind its running mean where it is long; held-out values as points."""
    from matplotlib.ticker import MaxNLocator

    steps, values = _points(metrics, stage, "train", name)
    window = len(values) // 20
    if window >= 4:
        axes.plot(steps, values, color=_COLOURS[stage], linewidth=0.8, alpha=0.35)
        means = [sum(values[i : i + window]) / window for i in range(len(values) - window + 1)]
        # A mean stands at its last step: it never shows what came later.
        axes.plot(steps[window - 1 :], means, color=_COLOURS[stage], label=f"training, mean of {window} steps")
    elif steps:
        marker = "." if len(steps) < 20 else ""
        axes.plot(steps, values, color=_COLOURS[stage], marker=marker, label="training")
    steps, values = _points(metrics, stage, "heldout", name)
    if steps:
        axes.plot(steps, values, color=_DARK[stage], linewidth=1, linestyle=":", marker="o", label="held out")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))


def _has(metrics: Rows, stage: str, name: str) -> bool:
    return any(_points(metrics, stage, kind, name)[0] for kind in ("train", "heldout"))


def _points(metrics: Rows, stage: str, kind: str, name: str) -> tuple[list[int], list[float]]:
    rows = [row for row in metrics if row["stage"] == stage and row["kind"] == kind and name in row]
    return [row["step"] for row in rows], [row[name] for row in rows]


def _scores(figure: "Figure", evaluation: dict[str, Any], titles: dict[str, str] = TITLES) -> bool:
    shares = {name: by_label for name, by_label in evaluation.items() if name not in _NOT_SHARES and by_label}
    labels = [label for label in TITLES if any(label in by_label for by_label in shares.values())]
    if not shares:
        return False
    axes = figure.add_subplot()
    width = 0.8 / len(labels)
    for place, label in enumerate(labels):
        measured = [(group, by[label]) for group, by in enumerate(shares.values()) if label in by]
        centres = [group + (place - (len(labels) - 1) / 2) * width for group, _ in measured]
        heights = [value for _, value in measured]
        bars = axes.bar(centres, heights, width * 0.94, color=_COLOURS[label], label=titles[label])
        axes.bar_label(bars, fmt="%.2f", padding=2, fontsize=10)
    axes.set_xticks(range(len(shares)), [name.replace("_", " ") for name in shares])
    if len(shares) > 5:
        axes.tick_params(axis="x", labelrotation=20)
    start = "base model" if titles is TITLES else titles["base"]
    axes.set(title=f"Held-out data: {start} and each stage", ylabel="share", ylim=(0, 1.08))
    axes.grid(visible=False, axis="x")
    axes.legend(ncols=len(labels), loc="upper right", bbox_to_anchor=(1, 1.09))
    return True
