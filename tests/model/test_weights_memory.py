"""A model of any size is written, and read back the same, beside little more memory than its arrays take.

On one device and spread over many; the numbers are compared in the process that `large_model.py` is.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from Linux's /proc")

GIGABYTE = ("float32", 1024, 4096, 18, 8192)
# As wide as a Llama of 70B, and as shallow as is enough for 8 GB.
WIDE = ("bfloat16", 8192, 28672, 5, 32000)


def extra_memory(folder: Path, devices: int, arguments: tuple) -> tuple[int, int]:
    """The bytes of a model's arrays, and the most of anonymous memory beside them while it was written and read."""
    program = [sys.executable, str(Path(__file__).with_name("large_model.py")), str(folder), *map(str, arguments)]
    flags = f"--xla_force_host_platform_device_count={devices}"
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags}
    done = subprocess.run(program, env=environment, stdout=subprocess.PIPE, text=True)
    assert done.returncode == 0
    size, extra = map(int, done.stdout.split())
    print(f"{devices} devices: {size / 1e9:.2f} GB, beside it {extra / 2**20:.0f} MiB")
    return size, extra


def test_a_model_spread_over_devices_is_the_same_model(tmp_path: Path):
    extra_memory(tmp_path / "model", 8, ("float32", 1024, 512, 2, 256))


@pytest.mark.parametrize("devices", [1, pytest.param(8, marks=pytest.mark.slow)])
def test_a_gigabyte_beside_256_mebibytes(tmp_path: Path, devices: int):
    size, extra = extra_memory(tmp_path / "model", devices, GIGABYTE)
    assert size > 1e9
    assert extra < 256 * 2**20


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("devices", [1, 8])
def test_layers_of_70b_beside_two_gibibytes(tmp_path: Path, devices: int):
    size, extra = extra_memory(tmp_path / "model", devices, WIDE)
    assert size > 8e9
    assert extra < 2 * 2**30
