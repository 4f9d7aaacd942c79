"""The verb as a whole, on the CPU's simulated devices: what it says is what a step that runs is found to need."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import tiny

HERE = Path(__file__).parent
MESH = ["mesh.fsdp=2", "mesh.sequence=2", "mesh.tensor=2", "model.remat=full"]


def executed(*arguments: object) -> dict[str, int]:
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(tiny.SOURCE)}
    command = [sys.executable, str(HERE / "executed_step.py"), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize(
    ("stage", "more"),
    [
        ("dpo", ()),
        pytest.param("sft", (), marks=pytest.mark.slow),
        pytest.param("dpo", ("dpo.lora.rank=4",), marks=pytest.mark.slow),
        # A of a query's matrix is as large as a device's part of a key's.
        pytest.param("sft", ("sft.lora.rank=8",), marks=pytest.mark.slow),
    ],
)
def test_memory_is_what_the_executed_step_needs(
    tiny_recipe: Path, in_tiny_cache: None, stage: str, more: tuple[str, ...]
):
    settings = [tiny_recipe, *MESH, *more]
    done = tiny.call("plan", *settings, "--target", "8xcpu", "--stage", stage, "--json", "--check")
    assert done.code == 0, done.err
    said = json.loads(done.out)
    found = executed(tiny_recipe, stage, *MESH, *more)
    assert said["bytes_per_device"]["total"] == pytest.approx(found["temporaries"] + found["live"], rel=0.05)
    parts = {name: value for name, value in said["bytes_per_device"].items() if name != "total"}
    assert sum(parts.values()) == said["bytes_per_device"]["total"]
    assert sum(value for name, value in parts.items() if name != "temporaries") == pytest.approx(
        found["live"], rel=0.05
    )


def test_a_plan_says_all_of_it(tiny_recipe: Path, in_tiny_cache: None):
    done = tiny.call("plan", tiny_recipe, "sft.microbatch_rows=2", "--target", "8xcpu", "--json", "--price", "2")
    assert done.code == 0, done.err
    said = json.loads(done.out)
    keys = {"target", "devices", "fits", "hbm_bytes", "bytes_per_device", "buffers", "flops_per_step", "collectives"}
    keys |= {
        "seconds_per_step",
        "bound_by",
        "mfu",
        "steps",
        "device_hours",
        "compile_seconds",
        "attention",
        "same_as_run",
    }
    assert keys <= set(said)
    assert (said["target"], said["devices"], said["steps"], said["lengths"]) == ("8xcpu", 8, 18, "real")
    # A row for each device at least: that is what the mesh asks for.
    assert said["microbatch_rows"] == 8
    assert {(each["kind"], tuple(each["axes"])) for each in said["collectives"]} >= {("all-gather", ("fsdp",))}
    sources = [buffer["source"] for buffer in said["buffers"]]
    assert any("model/" in source for source in sources), sources


def test_a_wrong_target_lists_the_known_ones(tiny_recipe: Path):
    done = tiny.call("plan", tiny_recipe, "--target", "v9-8")
    assert done.code == 2
    assert "known are v3-8" in done.err


def test_a_mesh_that_does_not_divide_is_refused(tiny_recipe: Path, in_tiny_cache: None):
    done = tiny.call("plan", tiny_recipe, "mesh.tensor=3", "--target", "8xcpu")
    assert done.code == 2
    assert "does not divide" in done.err
