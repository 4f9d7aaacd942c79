"""What hardware is: chips by their vendors' figures, and slices and nodes of them by name.

A name says what its vendor counts: `v3-512` has 512 cores (two to a chip), `v5p-256` too, `v5e-16` has 16 chips, and
`64xh100` has 64 GPUs. A device is what JAX calls one: a core of v3 and 7x, a chip of all other TPUs, a GPU.
"""

import math
import re
from dataclasses import dataclass
from typing import Literal

from bactrian.errors import InputError

Platform = Literal["tpu", "cuda", "cpu"]
GIB = 1 << 30


@dataclass(frozen=True)
class Chip:
    """One kind of chip.

    memory: bytes that XLA can use on one device, as its compiler for the chip says, or for GPUs as the driver does.
    flops, bandwidth: of one device, bfloat16 operations and bytes of HBM per second.
    links: bytes per second that leave one device over the pod's interconnect, or NVLink; all its links together.
    network: the same from one node to the next, for GPUs.
    """

    name: str
    platform: Platform
    counted: str
    devices_per_name: int  # what the vendor's number is divided by to give devices, as JAX counts them
    devices_per_chip: int
    memory: float
    flops: float
    bandwidth: float
    links: float
    network: float = math.inf
    dimensions: int = 0  # of the torus
    largest: int = 0  # what the vendor's number goes up to
    is_sold_singly: bool = False  # whether a TPU comes as one chip too


def _tpu(
    name: str, counted: str, per_name: int, per_chip: int, memory: float, chip: tuple[float, float, float], **more
):
    """A TPU; `chip` is TFLOP/s, GB/s of HBM and GB/s of all links in one direction, each for a whole chip."""
    flops, bandwidth, links = (value / per_chip for value in chip)
    figures = (flops * 1e12, bandwidth * 1e9, links * 1e9)
    return Chip(name, "tpu", counted, per_name, per_chip, memory * GIB, *figures, **more)


def _gpu(name: str, memory: int, flops: float, bandwidth: float, nvlink: float, network: float):
    """A GPU; bytes of memory, TFLOP/s without sparsity, GB/s, and GB/s in one direction."""
    figures = (flops * 1e12, bandwidth * 1e9, nvlink * 1e9, network * 1e9)
    return Chip(name, "cuda", "GPUs", 1, 1, memory, *figures, largest=4096)


# TPUs: Google Cloud's page of each version (peak compute, HBM bandwidth, half the interconnect's bidirectional one; the
# largest slice). v3's page gives no link; Jouppi et al. 2020 (A Domain Specific Supercomputer) gives 656 Gbit/s for
# each of four.
# GPUs: NVIDIA's data sheets of the SXM modules; one network port per GPU as in its DGX systems, 200 Gbit/s for A100 and
# 400 for the others.
CHIPS = {
    chip.name: chip
    for chip in (
        _tpu("v3", "cores", 1, 2, 15.48, (123, 900, 328), dimensions=2, largest=2048),
        _tpu("v4", "cores", 2, 1, 30.75, (275, 1200, 300), dimensions=3, largest=8192),
        _tpu("v5e", "chips", 1, 1, 15.75, (197, 819, 200), dimensions=2, largest=256, is_sold_singly=True),
        _tpu("v5p", "cores", 2, 1, 95.74, (459, 2765, 600), dimensions=3, largest=12288),
        _tpu("v6e", "chips", 1, 1, 31.25, (918, 1638, 400), dimensions=2, largest=256, is_sold_singly=True),
        _tpu("7x", "cores", 1, 2, 94.75, (2307, 7380, 600), dimensions=3, largest=18432),
        _gpu("a100-40", 42_331_013_120, 312, 1555, 300, 25),
        _gpu("a100-80", 85_100_068_864, 312, 2039, 300, 25),
        _gpu("h100", 84_942_979_072, 989, 3352, 450, 50),
        _gpu("h200", 151_397_597_184, 989, 4800, 450, 50),
        _gpu("b200", 191_514_411_008, 2250, 7672, 900, 50),
        Chip("cpu", "cpu", "devices", 1, 1, math.inf, math.inf, math.inf, math.inf, largest=64),
    )
}
# What JAX takes of a GPU's memory if not told otherwise (its documentation, "GPU memory allocation").
JAX_SHARE_OF_GPU = 0.75
GPUS_PER_NODE = 8
# Chips along a side of the cubes that slices of three dimensions are made of, from one cube on.
_CUBE = 4


@dataclass(frozen=True)
class Target:
    """So many devices of one chip. `devices` as JAX counts them, `chips` as one buys them."""

    name: str
    chip: Chip
    devices: int

    @property
    def chips(self) -> int:
        return self.devices // self.chip.devices_per_chip

    @property
    def memory(self) -> float:
        """Bytes of one device that a run can use."""
        return self.chip.memory * (JAX_SHARE_OF_GPU if self.chip.platform == "cuda" else 1)

    @property
    def node(self) -> int:
        """Devices that reach each other without the network."""
        return GPUS_PER_NODE if self.chip.platform == "cuda" else self.devices

    @property
    def torus(self) -> tuple[int, ...]:
        """The chips along each dimension of a TPU slice: as near to a cube, or a square, as it comes."""
        if self.chips == 4 and self.chip.dimensions == 3:
            return (2, 2, 1)
        cubes, rest = divmod(self.chips, _CUBE**3)
        if self.chip.dimensions == 3 and not rest:
            return tuple(_CUBE * side for side in _box(cubes, 3))
        return _box(self.chips, self.chip.dimensions)

    def describe(self) -> str:
        """The target in words, by its vendor's count and by JAX's."""
        if self.chip.platform != "tpu":
            return f"{self.name}: {self.devices} {self.chip.counted}"
        shape = "×".join(map(str, self.torus))
        cores = f" of {self.chip.devices_per_chip} cores" if self.chip.devices_per_chip > 1 else ""
        plural = "s" if self.chips > 1 else ""
        return f"{self.name}: {self.chips} chip{plural}{cores} ({shape}), {self.devices} JAX device{plural}"


def find(name: str) -> Target:
    """The target of a name. Raises `InputError` that lists the known ones."""
    text = name.lower().replace("v5litepod", "v5e").removeprefix("tpu")
    slice_of = re.fullmatch(r"(v3|v4|v5e|v5p|v6e|v?7x)-(\d+)", text)
    if slice_of:
        chip = CHIPS[slice_of[1].removeprefix("v") if slice_of[1].endswith("7x") else slice_of[1]]
        count = int(slice_of[2])
        if count in sizes(chip):
            return Target(f"{chip.name}-{count}", chip, count // chip.devices_per_name)
        raise InputError(f"{name}: {chip.name} slices have {_offered(chip)} {chip.counted}")
    nodes_of = re.fullmatch(r"(\d+)x(a100-40|a100-80|h100|h200|b200|cpu)", text)
    if nodes_of:
        chip, count = CHIPS[nodes_of[2]], int(nodes_of[1])
        if 0 < count <= chip.largest and (count <= GPUS_PER_NODE or count % GPUS_PER_NODE == 0):
            return Target(f"{count}x{chip.name}", chip, count)
        raise InputError(f"{name}: give 1 to {GPUS_PER_NODE} {chip.counted}, or whole nodes of {GPUS_PER_NODE}")
    raise InputError(f"{name} is not a known target; known are {known()}")


def sizes(chip: Chip) -> list[int]:
    """The numbers that slices of a TPU have in their names: those of powers of two from a host's four chips on, of any
    number of whole cubes, and of one chip where that is sold."""
    each, cube = chip.devices_per_chip * chip.devices_per_name, _CUBE**3
    most = chip.largest // each
    chips = {1} if chip.is_sold_singly else set()
    chips |= {1 << power for power in range(2, most.bit_length())}
    if chip.dimensions == 3:
        chips |= set(range(cube, most + 1, cube))
    return [count * each for count in sorted(chips)]


def known() -> str:
    """All names, in words."""
    tpus = [f"{chip.name}-{sizes(chip)[0]} … {sizes(chip)[-1]}" for chip in CHIPS.values() if chip.platform == "tpu"]
    return ", ".join([*tpus, *(f"Nx{chip.name}" for chip in CHIPS.values() if chip.platform != "tpu")])


def _offered(chip: Chip) -> str:
    """The numbers of `sizes` in words."""
    *most, last = sizes(chip)
    if chip.dimensions < 3:
        return f"{', '.join(map(str, most))} or {last}"
    cube = _CUBE**3 * chip.devices_per_chip * chip.devices_per_name
    smaller = ", ".join(str(number) for number in most if number < cube)
    return f"{smaller} or a multiple of {cube} up to {last}"


def _box(count: int, dimensions: int) -> tuple[int, ...]:
    """The sides of a box of so many that is as near to a cube as it comes, the shortest first."""
    if dimensions == 1:
        return (count,)
    sides = (side for side in range(1, count + 1) if count % side == 0)
    return min((tuple(sorted((side, *_box(count // side, dimensions - 1)))) for side in sides), key=sum)
