"""A GPU as XLA wants it described to compile for it where there is none: the limits of its architecture.

The figures are CUDA's device attributes: those of a compute capability are in NVIDIA's programming guide, "Technical
specifications per compute capability"; clocks, caches and counts of cores in the architectures' white papers.
"""

from typing import NamedTuple

from bactrian.plan.targets import Chip


class Limits(NamedTuple):
    """compute capability, and whether its own instructions may be used (`sm_90a`); cores are multiprocessors."""

    name: str
    capability: tuple[int, int]
    own_instructions: bool
    cores: int
    units_per_core: int
    clock_ghz: float
    cache: int
    shared_per_core: int


_A100 = Limits("NVIDIA A100-SXM4-40GB", (8, 0), False, 108, 64, 1.41, 40 << 20, 164 << 10)
_H100 = Limits("NVIDIA H100 80GB HBM3", (9, 0), True, 132, 128, 1.98, 50 << 20, 228 << 10)
_LIMITS = {
    "a100-40": _A100,
    "a100-80": _A100._replace(name="NVIDIA A100-SXM4-80GB"),
    "h100": _H100,
    "h200": _H100._replace(name="NVIDIA H200"),
    "b200": Limits("NVIDIA B200", (10, 0), True, 148, 128, 1.965, 126 << 20, 228 << 10),
}


def describe(chip: Chip) -> str:
    """The text that `get_topology_desc` takes as `target_config`."""
    limits = _LIMITS[chip.name]
    major, minor = limits.capability
    feature = "ACCELERATED_FEATURES" if limits.own_instructions else "NONE"
    return f"""
gpu_device_info {{
  threads_per_block_limit: 1024
  threads_per_warp: 32
  threads_per_core_limit: 2048
  shared_memory_per_block: {48 << 10}
  shared_memory_per_block_optin: {limits.shared_per_core - 1024}
  shared_memory_per_core: {limits.shared_per_core}
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
  core_count: {limits.cores}
  fpus_per_core: {limits.units_per_core}
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  thread_dim_limit_x: 1024
  thread_dim_limit_y: 1024
  thread_dim_limit_z: 64
  memory_bandwidth: {int(chip.bandwidth)}
  l2_cache_size: {limits.cache}
  clock_rate_ghz: {limits.clock_ghz}
  device_memory_size: {int(chip.memory)}
  device_address_bits: 64
  cuda_compute_capability {{ major: {major} minor: {minor} feature_extension: {feature} }}
  device_vendor: "NVIDIA Corporation"
  name: "{limits.name}"
  driver_version: "13.0.0"
  runtime_version: "12.9.0"
  compile_time_toolkit_version: "12.9.0"
  dnn_version: "9.10.0"
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 10 }}
device_description_str: "{limits.name}"
"""
