"""Names of hardware: what their vendors count, what JAX counts, what a slice looks like."""

import pytest

from bactrian.errors import InputError
from bactrian.plan import targets


@pytest.mark.parametrize(
    ("name", "chips", "devices", "torus"),
    [
        ("v3-512", 256, 512, (16, 16)),
        ("v3-256", 128, 256, (8, 16)),
        ("v3-8", 4, 8, (2, 2)),
        ("v4-128", 64, 64, (4, 4, 4)),
        ("v5p-256", 128, 128, (4, 4, 8)),
        ("v5p-8", 4, 4, (2, 2, 1)),
        ("v5e-16", 16, 16, (4, 4)),
        ("v5litepod-8", 8, 8, (2, 4)),
        ("v6e-256", 256, 256, (16, 16)),
        ("tpu7x-16", 8, 16, (2, 2, 2)),
        ("v5litepod-1", 1, 1, (1, 1)),
        ("v6e-1", 1, 1, (1, 1)),
        ("v4-1536", 768, 768, (8, 8, 12)),
        ("v5p-384", 192, 192, (4, 4, 12)),
        ("v5p-640", 320, 320, (4, 4, 20)),
        ("v5p-768", 384, 384, (4, 8, 12)),
        ("v5p-1152", 576, 576, (4, 12, 12)),
        ("v5p-1536", 768, 768, (8, 8, 12)),
        ("v5p-12288", 6144, 6144, (16, 16, 24)),
        ("7x-18432", 9216, 18432, (16, 24, 24)),
    ],
)
def test_slices_count_as_their_vendor_does(name: str, chips: int, devices: int, torus: tuple[int, ...]):
    found = targets.find(name)
    assert (found.chips, found.devices, found.torus) == (chips, devices, torus)


def test_one_chip_is_one_device():
    assert targets.find("v5e-1").describe() == "v5e-1: 1 chip (1×1), 1 JAX device"
    assert targets.find("v3-8").describe() == "v3-8: 4 chips of 2 cores (2×2), 8 JAX devices"


def test_gpus_come_in_nodes():
    assert targets.find("64xh100").devices == 64
    assert targets.find("64xH100").node == 8
    with pytest.raises(InputError, match="whole nodes of 8"):
        targets.find("12xh100")


def test_a_v3_core_has_half_a_chip():
    core = targets.find("v3-512").chip
    assert core.flops == pytest.approx(123e12 / 2)
    assert core.memory < 16 * targets.GIB


@pytest.mark.parametrize(
    "name", ["v3-500", "v3-384", "v5p-4", "v5p-12416", "v5e-2", "v6e-12", "v9-8", "8xh300", "", "v5e"]
)
def test_unknown_names_are_told_the_known_ones(name: str):
    with pytest.raises(InputError, match=r"slices have|known are v3-8 … 2048, .*Nxh100"):
        targets.find(name)


def test_slices_from_a_cube_of_64_chips_on_are_of_whole_cubes():
    with pytest.raises(InputError, match="v5p slices have 8, 16, 32, 64 or a multiple of 128 up to 12288 cores"):
        targets.find("v5p-320")
    for name in ("v4", "v5p", "7x"):
        chip = targets.CHIPS[name]
        large = [targets.find(f"{name}-{size}") for size in targets.sizes(chip) if size >= 128]
        assert [target.chips for target in large] == list(range(64, large[-1].chips + 1, 64))
        assert all(side % 4 == 0 for target in large for side in target.torus)


def test_every_name_offered_is_found():
    for chip in targets.CHIPS.values():
        for size in targets.sizes(chip) if chip.platform == "tpu" else ():
            found = targets.find(f"{chip.name}-{size}")
            product = 1
            for length in found.torus:
                product *= length
            assert product == found.chips
