"""Which process of how many this is: what plain variables, Slurm and GKE say of it, and where a TPU VM is asked."""

import os
import re
from collections.abc import Mapping
from typing import NamedTuple

from bactrian.errors import InputError


class Place(NamedTuple):
    """Which process of how many this is, and where the first one listens; `devices` None leaves it all there are."""

    coordinator: str
    count: int
    index: int
    devices: int | None = None


def place_of(environment: Mapping[str, str]) -> Place | None:
    """The place that plain variables, Slurm or GKE's TPU variables give a process; None for one alone.

    Raises `InputError` where the plain variables contradict themselves.
    """
    found = _plain(environment) or _slurm(environment) or _gke(environment)
    return found if found and found.count > 1 else None


def _plain(environment: Mapping[str, str]) -> Place | None:
    address = environment.get("JAX_COORDINATOR_ADDRESS")
    if address is None:
        return None
    # An indexed Job of Kubernetes says which of its pods this is.
    index = environment.get("JAX_PROCESS_ID", environment.get("JOB_COMPLETION_INDEX", ""))
    count = environment.get("JAX_NUM_PROCESSES", "")
    if not (index.isdecimal() and count.isdecimal() and int(index) < int(count) and ":" in address):
        raise InputError(
            f"JAX_COORDINATOR_ADDRESS={address} JAX_NUM_PROCESSES={count} JAX_PROCESS_ID={index} name no process: give "
            f"HOST:PORT, how many processes there are, and which of them this is, counted from 0"
        )
    return Place(address, int(count), int(index))


def _slurm(environment: Mapping[str, str]) -> Place | None:
    # Of these the list of nodes is only there in what srun starts, not in the script that calls it.
    names = ("SLURM_JOB_ID", "SLURM_STEP_NODELIST", "SLURM_STEP_NUM_NODES", "SLURM_NTASKS", "SLURM_PROCID")
    values = [environment.get(name) for name in names]
    if None in values:
        return None
    job, nodes, node_count, count, index = map(str, values)
    first = re.match(r"([^,\[]+)(?:\[([^,\-\]]+))?", nodes)
    assert first is not None
    address = f"{first[1]}{first[2] or ''}:{61440 + int(job) % 4096}"
    devices = None if count == node_count else int(environment.get("SLURM_LOCALID", "0"))
    return Place(address, int(count), int(index), devices)


def _gke(environment: Mapping[str, str]) -> Place | None:
    names, worker = environment.get("TPU_WORKER_HOSTNAMES"), environment.get("TPU_WORKER_ID")
    if not names or worker is None:
        return None
    hosts, slices = names.split(","), int(environment.get("MEGASCALE_NUM_SLICES", "1"))
    first = environment.get("MEGASCALE_COORDINATOR_ADDRESS", hosts[0]).split(":")[0]
    index = int(environment.get("MEGASCALE_SLICE_ID", "0")) * len(hosts) + int(worker)
    return Place(f"{first}:8482", slices * len(hosts), index)


def is_tpu_vm() -> bool:
    """Whether a metadata server tells which worker of a TPU slice this is: JAX, once it is imported, says where not."""
    import jax

    platforms = jax.config.jax_platforms or ""  # pyright: ignore[reportAttributeAccessIssue]
    known = {"TPU_SKIP_MDS_QUERY", "TPU_WORKER_HOSTNAMES"} & os.environ.keys()
    return platforms.startswith("tpu") and not known
