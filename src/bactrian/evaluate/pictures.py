"""Pictures of an evaluation: MT-Bench's categories as a radar, AlpacaEval's parts as bars with their intervals."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bactrian.files.atomic import replacing

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Row = dict[str, Any]

# The order in which the categories of MT-Bench are drawn round the circle: what is alike lies side by side.
_ROUND = ("writing", "roleplay", "reasoning", "math", "coding", "extraction", "stem", "humanities")
_COLOURS = ("#2f6690", "#c9822b", "#2d7d53", "#8d4f8f", "#b0433a", "#5d6b7a")
_DOTS = 100


def radar(path: Path, scores: dict[str, Row]) -> bool:
    """Scores by category, a line per model, ratings from 0 to 10. False where no two categories are scored."""
    names = {name for each in scores.values() for name, value in each["categories"].items() if value is not None}
    names = [*(name for name in _ROUND if name in names), *sorted(names - set(_ROUND))]
    if len(names) < 3:
        return False

    def draw(figure: "Figure") -> None:
        axes = figure.add_subplot(projection="polar")
        angles = [2 * math.pi * place / len(names) for place in range(len(names))]
        for place, (model, each) in enumerate(scores.items()):
            values = [each["categories"].get(name) for name in names]
            values = [math.nan if value is None else value for value in values]
            colour = _COLOURS[place % len(_COLOURS)]
            shown = model if len(model) < 40 else f"{model[:37]}…"
            axes.plot([*angles, angles[0]], [*values, values[0]], color=colour, linewidth=2, marker="o", label=shown)
            axes.fill([*angles, angles[0]], [*values, values[0]], color=colour, alpha=0.08)
        axes.set_xticks(angles, names)
        for angle, label in zip(angles, axes.get_xticklabels(), strict=True):
            side = math.cos(angle)
            label.set_horizontalalignment("center" if abs(side) < 0.1 else "left" if side > 0 else "right")
        axes.tick_params(axis="x", pad=4)
        axes.set_ylim(0, 10)
        axes.set_yticks([2, 4, 6, 8, 10])
        axes.set_title("MT-Bench: mean rating by category", pad=24)
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.08), frameon=False)

    _save(path, (9, 9), draw)
    return True


def bars(path: Path, parts: dict[str, Row], whole: Row, model: str) -> bool:
    """Win rates of AlpacaEval's parts and of the whole, with intervals. False where the rows name no parts."""
    if not parts:
        return False
    rows = {"all": whole, **dict(sorted(parts.items()))}

    def draw(figure: "Figure") -> None:
        axes = figure.add_subplot()
        for place, (name, row) in enumerate(rows.items()):
            colour = _COLOURS[1] if name == "all" else _COLOURS[0]
            low, high = row["mean"] - row["low"], row["high"] - row["mean"]
            axes.barh(place, row["mean"], color=colour, alpha=0.85)
            axes.errorbar(row["mean"], place, xerr=[[low], [high]], color="#12304a", capsize=4)
            inside = row["mean"] > 12
            at = 1 if inside else row["high"] + 1
            axes.text(at, place, f"{row['mean']:.1f}", va="center", color="white" if inside else "black", weight="bold")
        axes.axvline(50, color="#5d6b7a", linestyle="--", linewidth=1)
        axes.set_yticks(range(len(rows)), [f"{name} ({row['n']})" for name, row in rows.items()])
        axes.invert_yaxis()
        axes.set_xlim(0, 100)
        axes.set_xlabel("win rate (%), with its 95 % interval")
        axes.set_title(f"AlpacaEval: {model} by part (items)", loc="left")
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)

    _save(path, (9, 1.5 + 0.6 * len(rows)), draw)
    return True


def _save(path: Path, inches: tuple[float, float], draw: Callable[["Figure"], None]) -> None:
    """A figure of its own, drawn without a display."""
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with matplotlib.rc_context({"font.size": 12}):
        figure = Figure(figsize=inches, dpi=_DOTS, layout="tight")
        FigureCanvasAgg(figure)
        draw(figure)
        with replacing(path) as temporary:
            figure.savefig(temporary, format="png", metadata={"Software": None})
