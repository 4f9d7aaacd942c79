"""What is read of a compiled step is held against what any such step must come to."""

import pickle
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from bactrian import recipe as recipes
from bactrian.data import mixture, packing
from bactrian.model import hf_config
from bactrian.plan import compile, expected, planning, show, targets, versions
from bactrian.plan.compile import Measured
from bactrian.plan.hlo_text import Misread
from bactrian.plan.planning import Planned
from bactrian.plan.steps import Job
from bactrian.plan.workload import Workload

RECIPES = Path(__file__).parents[2] / "recipes" / "tulu2"
SIZES = {"data": 1, "fsdp": 8, "sequence": 1, "tensor": 1}
GIB = targets.GIB


def workload_of(rows_filled: float) -> Workload:
    """Of 7B: 128 examples in an update of 64 rows, over 8 devices, each row filled to a share."""
    config = hf_config.read_file(RECIPES / "llama-2-7b.json")
    plan = packing.plan(np.full(128, 4096), mixture.order(128, 128, 2, 0), 8192, 8, 1)
    return Workload("sft", config, plan, 8, 128 * 4096 * rows_filled, 64 * 4096.0**2, True)


WORK = workload_of(1.0)
NEEDED = tuple(expected.collectives(WORK, SIZES))
PRODUCTS = 4 * 2 * 6.5e9 * 64 * 8192 / 8  # forward, again and twice backward, of a device


def test_what_an_update_needs_can_be():
    assert expected.broken(WORK, "full", SIZES, True, NEEDED, PRODUCTS) is None


@pytest.mark.parametrize(
    ("changes", "products", "named"),
    [
        ({"sent": 60 * NEEDED[0].sent}, PRODUCTS, "GB, all-gather over fsdp+sequence"),
        ({"sent": NEEDED[0].sent / 10}, PRODUCTS, "of weights are gathered, where less"),
        ({"times": 0.0}, PRODUCTS, "0.00 GB of weights are gathered"),
        ({}, PRODUCTS / 32, "products of "),  # a loop over layers that was taken to run once
        ({}, PRODUCTS * 32, "products of "),
        ({}, float("nan"), "products of "),
    ],
)
def test_what_no_update_can_come_to_is_named(changes: dict[str, float], products: float, named: str):
    said = expected.broken(WORK, "full", SIZES, True, [NEEDED[0]._replace(**changes)], products)
    assert said is not None and named in said


def test_a_step_that_cannot_be_is_no_plan(monkeypatch: pytest.MonkeyPatch):
    job = Job("train", recipes.load(RECIPES / "sft-7b.toml"), WORK, targets.find("8xh100"), SIZES)
    step = Measured(20.0 * GIB, {"parameters": 4 * GIB}, (), NEEDED, "flash", 1.0, PRODUCTS)
    compile.check(job, step)
    for wrong in (step._replace(collectives=()), step._replace(total=2.0 * GIB), step._replace(products=0.0)):
        with pytest.raises(compile.RunFailed, match="8xh100: the compiled text of the train step was misread"):
            compile.check(job, wrong)
    monkeypatch.setattr(versions, "installed", lambda: "0.13.0")
    with pytest.raises(compile.RunFailed, match=r"not with 0\.13\.0; tested: pip install"):
        compile.check(job, step._replace(products=0.0))


def test_what_the_compiling_process_refuses_is_said_by_this_one(monkeypatch: pytest.MonkeyPatch):
    def run(command: list[str], **_: object) -> subprocess.CompletedProcess[bytes]:
        Path(command[-1], "refused").write_bytes(pickle.dumps((Misread, "no type in 'x'")))
        return subprocess.CompletedProcess(command, 0, b"", b"")

    monkeypatch.setattr(subprocess, "run", run)
    job = Job("train", recipes.load(RECIPES / "sft-7b.toml"), WORK, targets.find("8xcpu"), SIZES)
    with pytest.raises(Misread, match="8xcpu: the train step: no type in 'x'"):
        compile.measure(job)


def planned(work: Workload) -> Planned:
    step = Measured(20.0 * GIB, {"parameters": 4 * GIB}, (), NEEDED, "flash", 1.0, PRODUCTS)
    return Planned(recipes.load(RECIPES / "sft-7b.toml"), targets.find("8xh100"), SIZES, work, {"train": step})


def test_a_price_is_said_in_dollars():
    found = planned(WORK)
    hours = found.hours
    assert hours is not None
    said = show.lines(found, 1.2)
    assert any(f"${hours * 8 * 1.2:,.2f} at $1.20 per chip-hour" in line for line in said), said
    assert f"${hours * 8 * 1.2:,.2f} at $1.20 per chip-hour" in show.summary(found, 1.2)
    assert "$" not in "".join(show.lines(found)) + show.summary(found)
    dear = replace(found, workload=replace(WORK, plan=WORK.plan))
    assert any(f"${hours * 8 * 5000:,.0f} at $5,000.00 per" in line for line in show.lines(dear, 5000.0))


def test_padding_is_said_and_most_of_it_has_a_way_out():
    full = show.lines(planned(WORK))
    assert any(line.split() == ["padding", "0%", "of", "the", "positions", "computed"] for line in full)
    assert not any("less padding" in line for line in full)
    empty = planned(workload_of(0.1))
    said = " ".join(show.lines(empty))
    assert "padding     90% of the positions computed" in said
    assert "examples fill 7 of the 64 rows; less padding: a mesh of fewer than 8 rows" in said
    assert "sft.batch_size" in said and "sft.row_length=896" in said
    assert empty.to_json()["padding"] == pytest.approx(0.9)
    assert planning.bytes_of(empty.train)["total"] == 20.0 * GIB
