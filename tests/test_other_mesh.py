"""Law: a run is the same run on other devices, also when it is cut over some and goes on over others."""

import signal
import subprocess
import time
from pathlib import Path

import pytest
import tiny

from bactrian.run import Run

TOLERANCE = 1e-3  # after 30 updates at a high learning rate


def devices(cache: Path, count: int) -> dict[str, str]:
    flags = f"--xla_force_host_platform_device_count={count}"
    return tiny.environment(cache, XLA_FLAGS=flags, JAX_PLATFORMS="cpu")


def cut_after(steps: int, command: list[str], folder: Path, environment: dict[str, str]) -> None:
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as process:
        while sum(row["kind"] == "train" for row in Run(folder).metrics()) < steps:
            assert process.poll() is None, f"it ended before: {process.communicate()}"
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)


@pytest.mark.slow
def test_a_run_that_is_cut_goes_on_over_another_mesh(
    tmp_path: Path, tiny_recipe: Path, tiny_run: Path, tiny_cache: Path
):
    folder = tmp_path / "run"
    command = tiny.command("run", tiny_recipe, "--run-dir", folder)
    first = [*command, "mesh.sequence=2", "mesh.tensor=2"]  # and fsdp takes the two that are left
    cut_after(8, first, folder, devices(tmp_path / "cache", 8))
    assert not (folder / "evaluation.json").exists() or "dpo" not in (folder / "evaluation.json").read_text()

    second = [*command, "mesh.data=2", "mesh.fsdp=1", "mesh.tensor=-1"]
    done = subprocess.run(second, env=devices(tmp_path / "cache", 4), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "sft: resuming after step" in done.stderr

    expected, found = Run(tiny_run).metrics(), Run(folder).metrics()
    assert [(row["stage"], row["kind"], row["step"]) for row in found] == [
        (row["stage"], row["kind"], row["step"]) for row in expected
    ]
    for row, other in zip(found, expected, strict=True):
        assert row["tokens"] == other["tokens"] and row["learned_tokens"] == other["learned_tokens"]
        assert row["loss"] == pytest.approx(other["loss"], rel=TOLERANCE)
    scores, others = (Run(each).evidence("evaluation") for each in (folder, tiny_run))
    for name in ("sft_loss", "preference_margin"):
        assert scores[name] == pytest.approx(others[name], rel=TOLERANCE, abs=TOLERANCE)


def test_a_mesh_over_which_the_model_does_not_divide_is_refused_in_one_line(
    tmp_path: Path, tiny_recipe: Path, tiny_cache: Path
):
    command = tiny.command("run", tiny_recipe, "mesh.tensor=8", "--run-dir", tmp_path / "run")
    done = subprocess.run(command, env=devices(tiny_cache, 8), capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr == "error: mesh: 4 heads do not divide over tensor = 8; it can be 1, 2 or 4\n"
