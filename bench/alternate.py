"""Sides that run in turn, A B A B …, each in a process of its own; what came out is printed, kept and plotted.

A side is a function from the command line's arguments to its figures, numbers by name. A script calls `run` with its
sides; each child is the same command with `--side` and `--turn` added, and its last line is its figures as JSON. The
parent stays small, because on Linux a child's peak memory is never said to be less than its parent's was.

Results lie in `bench/results/NAME.json` with the machine, the versions and the commit, and `NAME.png` beside it. What
is cut short goes on where it was, as long as none of these and none of the arguments has changed.
"""

import argparse
import importlib.metadata
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

RESULTS = Path(__file__).parent / "results"
PACKAGES = ("jax", "jaxlib", "numpy", "optax", "torch", "transformers", "trl", "liger-kernel", "triton")
QUIET = {
    "HF_HUB_OFFLINE": "1",
    "TQDM_DISABLE": "1",
    "TRANSFORMERS_VERBOSITY": "error",
    "TOKENIZERS_PARALLELISM": "true",
}

Figures = dict[str, Any]  # numbers, and words that are to be equal
Runs = dict[str, list[Figures]]
Side = Callable[[argparse.Namespace], Figures]


class SideFailed(Exception):
    """A side's process that did not end well; `reason` is the last line that it said."""

    def __init__(self, command: Sequence[str], code: int, errors: Sequence[str]):
        super().__init__("\n".join([f"{' '.join(command)}: exit code {code}", *errors[-30:]]))
        self.reason = next((line.strip() for line in reversed(errors) if line.strip()), f"exit code {code}")


class Ratio(NamedTuple):
    """One figure of the first side over one of a peer's, turn by turn."""

    figure: str
    peer: str
    peer_figure: str

    def of(self, runs: Runs) -> list[float]:
        """The ratio of each turn."""
        pairs = zip(next(iter(runs.values())), runs[self.peer], strict=True)
        return [ours[self.figure] / peer[self.peer_figure] for ours, peer in pairs]


@dataclass(frozen=True)
class Report:
    """What is said of a comparison: `ratios` by what they are called, `notes` as they stand."""

    name: str
    rate: str  # the figure that is plotted
    ratios: Mapping[str, Ratio]
    notes: Sequence[str] = ()


def parser(description: str | None, sides: Mapping[str, Side], turns: int = 3) -> argparse.ArgumentParser:
    """A command line with what `run` reads; a script adds its own."""
    made = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--turns", type=int, default=turns, help="how often each side runs")
    made.add_argument("--through", default="", help="a command to run each side through, as `taskset -c 0,1`")
    made.add_argument("--results", type=Path, default=RESULTS, help="a folder for the JSON and the plot")
    made.add_argument("--side", choices=sides, help="run one side in this process and print its figures")
    made.add_argument("--turn", type=int, default=1, help=argparse.SUPPRESS)
    return made


def run(arguments: argparse.Namespace, sides: Mapping[str, Side], report: Report) -> None:
    """Run each side in turn and publish what came out, or the one side that the arguments name."""
    if arguments.side:
        print(json.dumps(sides[arguments.side](arguments)))
        return
    path = arguments.results / f"{report.name}.partial.json"
    measured_on = machine()
    key = {"machine": measured_on, "arguments": _settings(arguments)}
    before = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    runs: Runs = before["sides"] if {part: before.get(part) for part in key} == key else {}

    def keep() -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({**key, "sides": runs}), encoding="utf-8")

    try:
        in_turn(list(sides), arguments.turns, lambda side, turn: child(own_command(arguments, side, turn)), runs, keep)
    except SideFailed as failed:
        sys.exit(str(failed))
    publish(report, runs, arguments, measured_on)
    path.unlink(missing_ok=True)


def in_turn(
    sides: Sequence[str],
    turns: int,
    measure: Callable[[str, int], Figures],
    runs: Runs,
    keep: Callable[[], object] = lambda: None,
) -> None:
    """Measure every side and turn that `runs` lacks, A B A B …; each is added there, kept, and said."""
    for side in sides:
        runs.setdefault(side, [])
    for turn in range(1, turns + 1):
        for side in sides:
            if len(runs[side]) < turn:
                runs[side].append(measure(side, turn))
                keep()
            said = "  ".join(f"{name} {_number(value)}" for name, value in runs[side][turn - 1].items())
            print(f"turn {turn}  {side:24}  {said}", flush=True)


def own_command(arguments: argparse.Namespace, side: str, turn: int) -> list[str]:
    """The command of this process again, for one side and turn."""
    again = [sys.executable, *sys.argv, "--side", side, "--turn", str(turn)]
    return [*arguments.through.split(), *again]


def child(command: Sequence[str]) -> Figures:
    """The figures that a command prints in its last line, and `peak_gib`, the most memory that it held."""
    with tempfile.TemporaryFile("w+") as said, tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(command, stdout=said, stderr=errors, env={**os.environ, **QUIET})
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        said.seek(0)
        lines = said.read().splitlines()
        if process.returncode or not lines:
            errors.seek(0)
            raise SideFailed(command, process.returncode, errors.read().splitlines())
    unit = 1 if sys.platform == "darwin" else 1024  # of ru_maxrss, in bytes
    return {**json.loads(lines[-1]), "peak_gib": usage.ru_maxrss * unit / 2**30}


def publish(report: Report, runs: Runs, arguments: argparse.Namespace, measured_on: dict[str, Any]) -> None:
    """Print the table, the ratios and the machine; write the JSON and, where matplotlib is, the plot.

    `measured_on` is what `machine` said before the first run: by now there may be another commit.
    """
    kept = {
        "name": report.name,
        "machine": measured_on,
        # Where files lie is the machine's affair.
        "arguments": {**_settings(arguments), **_file_names(arguments)},
        "sides": runs,
        "ratios": {name: _spread(ratio.of(runs)) for name, ratio in report.ratios.items()},
        "notes": list(report.notes),
    }
    print(*text(kept), sep="\n", flush=True)
    arguments.results.mkdir(parents=True, exist_ok=True)
    path = arguments.results / f"{report.name}.json"
    path.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")
    _plot(report, runs, path.with_suffix(".png"))


def text(kept: dict[str, Any]) -> list[str]:
    """A result as lines: a table of medians with their spread, the ratios, the notes and the machine."""
    names = list(dict.fromkeys(name for turns in kept["sides"].values() for turn in turns for name in turn))
    sides = {side: {name: _figure(turns, name) for name in names} for side, turns in kept["sides"].items()}
    lines = ["", f"{kept['name']}: median (least to most)"]
    label = max(map(len, names))
    widths = {side: max(len(side), *(len(figure) for figure in figures.values())) for side, figures in sides.items()}
    lines.append("  ".join([" " * label, *(f"{side:>{widths[side]}}" for side in sides)]))
    for name in names:
        lines.append("  ".join([f"{name:{label}}", *(f"{sides[side][name]:>{widths[side]}}" for side in sides)]))
    for name, ratio in kept["ratios"].items():
        lines.append(f"{name}: {ratio['median']:.2f} ({ratio['least']:.2f} to {ratio['most']:.2f})")
    lines += kept["notes"]
    return [*lines, ", ".join(f"{name} {value}" for name, value in kept["machine"].items())]


def _settings(arguments: argparse.Namespace) -> dict[str, Any]:
    """The arguments that say what is measured."""
    own = {name: value for name, value in vars(arguments).items() if name not in ("side", "turn", "results")}
    return {name: str(value) if isinstance(value, Path) else value for name, value in own.items()}


def _file_names(arguments: argparse.Namespace) -> dict[str, str]:
    given = vars(arguments)
    return {name: given[name].name for name in _settings(arguments) if isinstance(given[name], Path)}


def machine() -> dict[str, Any]:
    """The processor, the GPU if there is one, what runs on them and the commit; not the machine's name."""
    found = {"processor": _processor(), "cores": os.cpu_count(), "memory_gib": _memory(), "os": platform.system()}
    if gpu := _gpu():
        found["gpu"] = gpu
    found["python"] = platform.python_version()
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {**found, "commit": _commit()}


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    named = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    family = [named[key] for key in ("cpu family", "model") if key in named]
    return " ".join(
        [named.get("model name", platform.machine()), *(["family/model", "/".join(family)] if family else [])]
    )


def _gpu() -> str | None:
    """As NVIDIA's driver names it; asked for there, because this process takes no memory of it."""
    try:
        command = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
        return ", ".join(subprocess.check_output(command, stderr=subprocess.DEVNULL, text=True).splitlines()) or None
    except (OSError, subprocess.CalledProcessError):
        return None


def _memory() -> int | None:
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30)
    except (ValueError, OSError):
        return None


def _commit() -> str:
    """The commit of this working copy, with a plus where the source differs from it."""
    here = ["git", "-C", str(Path(__file__).parents[1])]
    try:
        commit = subprocess.check_output(
            [*here, "rev-parse", "--short=12", "HEAD"], stderr=subprocess.DEVNULL, text=True
        )
        changed = subprocess.check_output([*here, "status", "--porcelain", "--", "src", "bench/*.py"], text=True)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return commit.strip() + ("+" if changed.strip() else "")


def _spread(values: Sequence[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "least": min(values), "most": max(values)}


def _figure(turns: Sequence[Figures], name: str) -> str:
    values = [turn[name] for turn in turns if name in turn]
    if not values:
        return "-"
    if len(set(values)) == 1 or isinstance(values[0], str):
        return "/".join(map(_number, dict.fromkeys(values)))
    spread = _spread(values)
    return f"{spread['median']:.4g} ({spread['least']:.4g} to {spread['most']:.4g})"


def _number(value: float | str) -> str:
    return value if isinstance(value, str) else f"{value:.4g}"


def _plot(report: Report, runs: Runs, path: Path) -> None:
    try:
        import matplotlib
    except ImportError:
        return
    matplotlib.use("Agg")
    from matplotlib import pyplot

    sides = [side for side, turns in runs.items() if all(report.rate in turn for turn in turns)]
    spreads = [_spread([turn[report.rate] for turn in runs[side]]) for side in sides]
    medians = [spread["median"] for spread in spreads]
    errors = [[s["median"] - s["least"] for s in spreads], [s["most"] - s["median"] for s in spreads]]
    figure, axes = pyplot.subplots(figsize=(7, 0.9 + 0.5 * len(sides)), layout="constrained")
    bars = axes.barh(range(len(sides)), medians, xerr=errors, color=["#c0762c", *["#9a9a9a"] * (len(sides) - 1)])
    axes.bar_label(bars, [f"{median:.3g}" for median in medians], padding=6)
    axes.set_yticks(range(len(sides)), sides)
    axes.invert_yaxis()
    axes.margins(x=0.15)
    axes.set_xlabel(report.rate.replace("_per_second", "/s").replace("_", " "))
    axes.set_title(report.name, loc="left")
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=120, metadata={"Software": None})
    pyplot.close(figure)
