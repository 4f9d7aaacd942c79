"""Law: over any mesh an update is what it is on one device: loss, gradients, parameters, and reference scores."""

import itertools
import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
import tiny

PROGRAM = Path(__file__).with_name("sharded_steps.py")
TOLERANCE = 1e-5

# data × fsdp × sequence × tensor
FEW = ["1x8x1x1:none", "2x1x1x4:full", "1x2x2x2:none", "1x1x8x1:dots"]
SHAPES = [shape for shape in itertools.product((1, 2, 4, 8), repeat=4) if math.prod(shape) == 8]
ALL = [f"{'x'.join(map(str, shape))}:{('none', 'dots', 'full')[index % 3]}" for index, shape in enumerate(SHAPES)]


def errors(meshes: list[str]) -> list[dict]:
    environment = {**tiny.environment(Path()), "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [sys.executable, PROGRAM, *meshes], env=environment, capture_output=True, text=True, timeout=280
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def assert_equal(meshes: list[str]) -> None:
    found = errors(meshes)
    assert len(found) == 2 * len(meshes)
    for line in found:
        # Of SFT loss and gradient norm, 18 parameters and their gradients; of DPO four metrics more, and the scores.
        assert len(line["errors"]) == 2 + 2 * 18 + (5 if line["stage"] == "dpo" else 0)
        off = {name: error for name, error in line["errors"].items() if not error <= TOLERANCE}
        assert not off, f"{line['stage']} over {line['mesh']}"


@pytest.mark.parametrize("half", [0, 1])
def test_an_update_over_a_mesh_is_that_of_one_device(half: int):
    assert_equal(FEW[half::2])


@pytest.mark.slow
@pytest.mark.parametrize("part", range(5))
def test_over_every_mesh_of_eight(part: int):
    assert len(ALL) == 20
    assert_equal(ALL[part::5])
