"""Sides run in turn, each in a process of its own, and what is published follows from what they said."""

import json
import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

BENCH = Path(__file__).parents[2] / "bench"
SCRIPT = """\
import os
import sys
from pathlib import Path

sys.path.insert(0, BENCH)
import alternate
from alternate import Ratio, Report


def said(arguments, side, rate, mebibytes):
    held = bytearray(os.urandom(1)) * (mebibytes << 20)
    with Path(arguments.log).open("a") as log:
        print(side, arguments.turn, os.getpid(), file=log)
    return {"rate": rate * arguments.turn, "words": "alike", "held": len(held)}


def broken(arguments):
    if str(arguments.turn) == os.environ["BROKEN"]:
        raise RuntimeError("no such device")
    return said(arguments, "broken", 1.0, 1)


SIDES = {"ours": lambda a: said(a, "ours", 6.0, 400), "theirs": lambda a: said(a, "theirs", 2.0, 1)}
parser = alternate.parser("two sides", SIDES | {"broken": broken})
parser.add_argument("--log")
arguments = parser.parse_args()
sides = SIDES | ({"broken": broken} if "BROKEN" in os.environ else {})
alternate.run(arguments, sides, Report("made", "rate", {"ours / theirs": Ratio("rate", "theirs", "rate")}, ["a note"]))
"""


def call(folder: Path, *more: str, **environment: str) -> subprocess.CompletedProcess[str]:
    script = folder / "script.py"
    script.write_text(f"BENCH = {str(BENCH)!r}\n{SCRIPT}")
    command = [sys.executable, str(script), "--log", str(folder / "log"), "--results", str(folder / "results"), *more]
    return subprocess.run(command, capture_output=True, text=True, env={**os.environ, **environment})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("alternate")
    done = call(made, "--turns", "2")
    assert done.returncode == 0, done.stderr
    (made / "said").write_text(done.stdout)
    return made


def test_sides_run_in_turn_in_processes_of_their_own(folder: Path):
    lines = [line.split() for line in (folder / "log").read_text().splitlines()]
    assert [line[:2] for line in lines] == [["ours", "1"], ["theirs", "1"], ["ours", "2"], ["theirs", "2"]]
    assert len({process for _, _, process in lines}) == 4


def test_the_figures_and_their_ratio_are_kept(folder: Path):
    kept = json.loads((folder / "results" / "made.json").read_text())
    assert [turn["rate"] for turn in kept["sides"]["ours"]] == [6.0, 12.0]
    assert kept["ratios"]["ours / theirs"] == {"median": 3.0, "least": 3.0, "most": 3.0}
    assert kept["arguments"]["turns"] == 2 and kept["notes"] == ["a note"]
    assert (folder / "results" / "made.png").read_bytes().startswith(b"\x89PNG")


def test_peak_memory_is_that_of_the_side(folder: Path):
    sides = json.loads((folder / "results" / "made.json").read_text())["sides"]
    for ours, theirs in zip(sides["ours"], sides["theirs"], strict=True):
        assert 0.35 < ours["peak_gib"] - theirs["peak_gib"] < 0.45


def test_a_result_tells_the_machine_but_not_its_name(folder: Path):
    machine = json.loads((folder / "results" / "made.json").read_text())["machine"]
    assert {"processor", "cores", "memory_gib", "jax", "commit"} <= set(machine)
    assert platform.node() not in machine.values()


def test_the_table_says_it_all(folder: Path):
    said = (folder / "said").read_text()
    assert "9 (6 to 12)" in said and "3 (2 to 4)" in said  # medians of the two sides
    assert "ours / theirs: 3.00 (3.00 to 3.00)" in said
    assert "alike" in said and "a note" in said


def test_a_side_that_fails_is_told_and_the_rest_is_kept(tmp_path: Path):
    done = call(tmp_path, "--turns", "2", BROKEN="2")
    assert done.returncode == 1
    assert "--side broken --turn 2" in done.stderr and "no such device" in done.stderr
    assert [path.name for path in (tmp_path / "results").iterdir()] == ["made.partial.json"]
    done = call(tmp_path, "--turns", "2", BROKEN="3")
    assert done.returncode == 0, done.stderr
    log = [line.rpartition(" ")[0] for line in (tmp_path / "log").read_text().splitlines()]
    assert log == ["ours 1", "theirs 1", "broken 1", "ours 2", "theirs 2", "broken 2"]  # none of them twice
    assert sorted(path.name for path in (tmp_path / "results").iterdir()) == ["made.json", "made.png"]
