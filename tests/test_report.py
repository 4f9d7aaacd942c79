"""Laws: a picture for what has data and for nothing else, from the run's files, each whole or not at all."""

import math
import struct
from pathlib import Path
from typing import Any

import pytest

from bactrian import report
from bactrian.files.atomic import write_json, write_jsonl
from bactrian.run import Run


def rows(stage: str, steps: int, **series: float) -> list[dict[str, Any]]:
    """Metrics of a stage: a line per step, and held-out values at the end."""
    made = [
        {"stage": stage, "kind": "train", "step": step, **{name: value / step for name, value in series.items()}}
        for step in range(1, steps + 1)
    ]
    return [*made, {"stage": stage, "kind": "heldout", "step": steps, **series}]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run(tmp_path)


def size(path: Path) -> tuple[int, int]:
    """Width and height that a PNG's header states."""
    content = path.read_bytes()
    assert content.startswith(b"\x89PNG\r\n\x1a\n") and content.endswith(b"IEND\xaeB`\x82")
    return struct.unpack(">II", content[16:24])


def test_every_picture_of_a_whole_run(run: Run):
    write_jsonl(run.metrics_path, [*rows("sft", 100, loss=2.0), *rows("dpo", 3, loss=0.6, accuracy=0.7, margin=0.4)])
    shares = {"base": 0.1, "sft": 0.5, "dpo": 0.9}
    write_json(run.folder / "evaluation.json", {"sft_loss": shares, "polite": shares, "counts": {"prompts": 5}})
    paths = report.plot(run)
    assert [path.name for path in paths] == ["loss.png", "margin.png", "accuracy.png", "scores.png"]
    assert [size(path) for path in paths] == [(1200, 700)] * 4
    assert all(path.stat().st_size > 10_000 for path in paths)
    assert sorted(run.plots.iterdir()) == sorted(paths)  # and nothing temporary


def test_no_data_no_picture(run: Run):
    assert report.plot(run) == []
    assert not run.plots.exists()
    write_jsonl(run.metrics_path, rows("sft", 3, loss=2.0))
    # Neither a loss nor a margin is a share.
    write_json(run.folder / "evaluation.json", {"sft_loss": {"base": 3.0}, "preference_margin": {"base": 7.0}})
    assert [path.name for path in report.plot(run)] == ["loss.png"]


def test_scores_that_are_partly_measured(run: Run):
    write_json(run.folder / "evaluation.json", {"polite": {"base": 0.2}, "short": {"base": 0.1, "dpo": 1.0}})
    assert [path.name for path in report.plot(run)] == ["scores.png"]


def test_the_same_files_give_the_same_picture(run: Run):
    write_jsonl(run.metrics_path, rows("dpo", 4, loss=0.6))
    (path,) = report.plot(run)
    first = path.read_bytes()
    report.plot(run)
    assert path.read_bytes() == first


def drawn(draw: Any, *given: Any) -> Any:
    from matplotlib.figure import Figure

    figure = Figure()
    assert draw(figure, *given)
    return figure


def test_lines_hold_the_numbers_of_the_file():
    metrics = [*rows("sft", 4, loss=2.0), *rows("dpo", 3, loss=0.6)]
    sft, dpo = drawn(report._losses, metrics).axes
    training, heldout = sft.lines
    assert list(training.get_xdata()) == [1, 2, 3, 4]
    assert list(training.get_ydata()) == [row["loss"] for row in metrics[:4]]
    assert (list(heldout.get_xdata()), list(heldout.get_ydata())) == ([4], [2.0])
    assert [list(line.get_ydata()) for line in dpo.lines][-1] == [math.log(2)] * 2
    assert all(axes.get_xlabel() and axes.get_ylabel() for axes in (sft, dpo))


def test_a_running_mean_never_looks_ahead():
    steps = 100
    metrics = [{"stage": "sft", "kind": "train", "step": i, "loss": float(i)} for i in range(1, steps + 1)]
    _, mean = drawn(report._losses, metrics).axes[0].lines
    assert list(mean.get_xdata()) == list(range(5, steps + 1))
    assert mean.get_ydata()[0] == pytest.approx((1 + 2 + 3 + 4 + 5) / 5)


def test_bars_hold_the_numbers_of_the_file():
    (axes,) = drawn(report._scores, {"polite": {"base": 0.25, "dpo": 0.75}, "counts": {"prompts": 4}}).axes
    assert [bar.get_height() for bar in axes.patches] == [0.25, 0.75]
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["Base model", "DPO"]
