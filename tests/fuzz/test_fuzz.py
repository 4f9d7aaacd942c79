"""Whatever a command is given, it ends within 20 seconds and 4 GiB with its answer or one line; all is left or nothing.

The command runs in a child (child.py), many inputs in one, and a child that died is followed by another. BACTRIAN_FUZZ
is how many inputs there are in all, BACTRIAN_FUZZ_SEED what they are drawn from.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

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
    first, deaths = 0, []
    while first < count and len(deaths) < MOST_DEATHS:
        given = [sys.executable, CHILD, family, SEED, first, count - first, tmp_path]
        environment = tiny.environment(tmp_path / "cache", JAX_PLATFORMS="cpu")
        done = subprocess.run([*map(str, given)], env=environment, capture_output=True, text=True, errors="replace")
        at = (tmp_path / "at").read_text() if (tmp_path / "at").exists() else f"start: {done.stderr[-2000:]}"
        if at == "done":
            break
        deaths.append({"index": at, "fault": f"died with {done.returncode}: {done.stderr[-1500:]}"})
        first = int(at) + 1
    file = tmp_path / "faults.jsonl"
    faults = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    again = f"again: {sys.executable} {CHILD} {family} {SEED} INDEX 1 FOLDER"
    assert not (faults + deaths), f"{len(faults + deaths)} of {count}; {again}\n" + "\n".join(
        f"{family} {each['index']}: {each.get('arguments', '')}\n{each['fault']}" for each in (faults + deaths)[:40]
    )
