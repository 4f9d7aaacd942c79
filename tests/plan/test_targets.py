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
    ],
)
def test_slices_count_as_their_vendor_does(name: str, chips: int, devices: int, torus: tuple[int, ...]):
    found = targets.find(name)
    assert (found.chips, found.devices, found.torus) == (chips, devices, torus)


def test_gpus_come_in_nodes():
    assert targets.find("64xh100").devices == 64
    assert targets.find("64xH100").node == 8
    with pytest.raises(InputError, match="whole nodes of 8"):
        targets.find("12xh100")


def test_a_v3_core_has_half_a_chip():
    core = targets.find("v3-512").chip
    assert core.flops == pytest.approx(123e12 / 2)
    assert core.memory < 16 * targets.GIB


@pytest.mark.parametrize("name", ["v3-500", "v5p-4", "v9-8", "8xh300", "", "v5e"])
def test_unknown_names_are_told_the_known_ones(name: str):
    with pytest.raises(InputError, match=r"slices have|known are v3-8 … 2048, .*Nxh100"):
        targets.find(name)


def test_every_name_offered_is_found():
    for chip in targets.CHIPS.values():
        for size in targets.sizes(chip) if chip.platform == "tpu" else ():
            found = targets.find(f"{chip.name}-{size}")
            product = 1
            for length in found.torus:
                product *= length
            assert product == found.chips
