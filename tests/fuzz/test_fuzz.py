"""Whatever a command is given, it ends within 20 seconds and 4 GiB with its answer or one line; all is left or nothing.

The command runs in a child (child.py), many inputs in one, and a child that died is followed by another. BACTRIAN_FUZZ
is how many inputs there are in all, BACTRIAN_FUZZ_SEED what they are drawn from.
"""

import itertools
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import inputs
import pytest
import tiny

TOTAL = int(os.environ.get("BACTRIAN_FUZZ", "10000"))
SEED = os.environ.get("BACTRIAN_FUZZ_SEED", "1")
CHILD = Path(__file__).with_name("child.py")
MOST_DEATHS = 20  # of children, before the rest is given up

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]


@pytest.mark.parametrize("family", inputs.FAMILIES)
def test_a_command_ends_with_its_answer_or_a_line(family: str, tmp_path: Path):
    count = round(TOTAL * inputs.FAMILIES[family][1])
    side_by_side = os.cpu_count() or 1
    bounds = [count * part // side_by_side for part in range(side_by_side + 1)]
    with ThreadPoolExecutor(side_by_side) as pool:
        parts = [
            pool.submit(_faults, family, first, last, tmp_path / str(first))
            for first, last in itertools.pairwise(bounds)
        ]
    faults = [fault for part in parts for fault in part.result()]
    again = f"again: {sys.executable} {CHILD} {family} {SEED} INDEX 1 FOLDER"
    assert not faults, f"{len(faults)} of {count}; {again}\n" + "\n".join(
        f"{family} {each['index']}: {each.get('arguments', '')}\n{each['fault']}" for each in faults[:40]
    )


def _faults(family: str, first: int, last: int, folder: Path) -> list[dict[str, Any]]:
    """What went wrong with a family's inputs `first` … `last` - 1, in children that come one after the other."""
    folder.mkdir()
    deaths: list[dict[str, Any]] = []
    while first < last and len(deaths) < MOST_DEATHS:
        (folder / "at").write_text("start")
        given = [sys.executable, CHILD, family, SEED, first, last - first, folder]
        environment = tiny.environment(folder / "cache", JAX_PLATFORMS="cpu")
        done = subprocess.run([*map(str, given)], env=environment, capture_output=True, text=True, errors="replace")
        at = (folder / "at").read_text()
        if at == "done":
            break
        deaths.append({"index": at, "fault": f"died with {done.returncode}: {done.stderr[-1500:]}"})
        first = last if at == "start" else int(at) + 1
    file = folder / "faults.jsonl"
    return deaths + ([json.loads(line) for line in file.read_text().splitlines()] if file.exists() else [])
