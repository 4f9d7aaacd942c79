"""The very steps of a run, compiled for a target with abstract arrays, each in a process of its own.

A process of its own, because the memory report is asked for by an environment variable that XLA reads once, because a
compiler without its device may end the process that calls it, and to give the memory back.
"""

import math
import os
import pickle
import shutil
import subprocess
import sys
import tempfile
import time
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import jax
from jax.experimental import topologies

from bactrian import children
from bactrian.errors import BactrianError, InputError, RunFailed
from bactrian.plan import collectives, expected, gpus, hlo, memory, products, steps, versions
from bactrian.plan.collectives import Collective
from bactrian.plan.hlo import Instruction
from bactrian.plan.hlo_text import Misread
from bactrian.plan.memory import Buffer
from bactrian.plan.steps import KEPT, Job
from bactrian.plan.targets import GIB, Target

_TOPOLOGIES = {"7x": "tpu7x"}
_INSTALL = "it is not installed; install it with: pip install 'bactrian[plan]'"


class Measured(NamedTuple):
    """What a compiled step needs on one device.

    arguments: bytes by what they are. total: all that it needs, which may be more than there is.
    attention: the implementation compiled, which is the one that a run on the target chooses.
    products: operations of the matrix products that its text has.
    """

    total: float
    arguments: dict[str, int]
    buffers: tuple[Buffer, ...]
    collectives: tuple[Collective, ...]
    attention: str
    seconds: float
    products: float = math.nan


def measure(job: Job) -> Measured:
    """Compile a step in a process of its own. Raises `InputError` where a compiler is missing, and `RunFailed`."""
    _check_installed(job.target)
    with tempfile.TemporaryDirectory(prefix="bactrian-plan-") as name:
        folder = Path(name)
        command = children.command("-c", "from bactrian.plan import compile; compile.run_job()", str(folder))
        done = subprocess.run(
            command, input=pickle.dumps(job), env=_environment(job.target, folder), capture_output=True
        )
        if (folder / "refused").is_file():
            kind, said = pickle.loads((folder / "refused").read_bytes())
            raise kind(f"{job.target.name}: the {job.kind} step: {said}")
        if done.returncode:
            raise RunFailed(f"{job.target.name}: the {job.kind} step does not compile: {_reason(done.stderr)}")
        step: Measured = pickle.loads((folder / "measured").read_bytes())
    check(job, step)
    return step


def check(job: Job, step: Measured) -> None:
    """Raise `Misread` where what was read of a step cannot be true."""
    if sum(step.arguments.values()) > step.total:
        wrong = f"{step.total / GIB:.2f} GiB in all, less than its arguments take"
    elif job.kind == "decode":
        return
    else:
        measured = step.collectives, step.products
        wrong = expected.broken(job.workload, job.recipe.model.remat, job.sizes, job.kind == "train", *measured)
    if wrong:
        said = versions.warning(versions.installed()) or f"jax {versions.installed()}"
        raise Misread(f"{job.target.name}: the compiled text of the {job.kind} step was misread: {wrong}; {said}")


def run_job() -> None:
    """The job on the standard input, measured into the folder that is named: what the process does."""
    folder = Path(sys.argv[1])
    job: Job = pickle.load(sys.stdin.buffer)
    try:
        (folder / "measured").write_bytes(pickle.dumps(_measure(job, folder / "xla")))
    except BactrianError as error:
        (folder / "refused").write_bytes(pickle.dumps((type(error), str(error))))


def _measure(job: Job, dump: Path) -> Measured:
    step = steps.lower(job, devices(job.target))
    began = time.monotonic()
    try:
        compiled = step.lowered.compile()
        code = compiled.memory_analysis().generated_code_size_in_bytes
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        code = 0
    took = time.monotonic() - began
    report = memory.read(dump)
    trips = partial(_trips, job)
    found = tuple(collectives.of(report.program, job.sizes, trips))
    made = products.operations(report.program, trips)
    kept = step.arguments.get(KEPT, 0)
    held = (report.total + code + kept, step.arguments, report.buffers)
    return Measured(*held, found, step.attention, took, made)


def _trips(job: Job, loop: Instruction) -> float:
    """How often a loop runs whose length comes with the batch: over microbatches, over chunks of learnt places.

    Nothing is sent inside of attention's loops.
    """
    frame = hlo.own_frame(loop)
    if frame is not None and frame.file == "train/trainer.py":
        return job.workload.microbatches
    return 1.0


def devices(target: Target) -> Any:
    """The target's devices as JAX describes them: all that a compiler needs to know."""
    if target.chip.platform == "cpu":
        return jax.devices()[: target.devices]
    if target.chip.platform == "cuda":
        nodes = max(1, target.devices // target.node)
        shape = f"1x{nodes}x{target.devices // nodes}"
        described = {"target_config": gpus.describe(target.chip), "topology": shape}
        return topologies.get_topology_desc(platform="cuda", topology_name="", **described).devices
    name = f"{_TOPOLOGIES.get(target.chip.name, target.chip.name)}:{'x'.join(map(str, target.torus))}"
    # As JAX runs a v4: both cores of a chip as one device. A chip alone has a host of its own, which is not the rule.
    config: dict[str, Any] = {"chip_config_name": "megacore"} if target.chip.name == "v4" else {}
    if math.prod(target.torus) == 1:
        config["chips_per_host_bounds"] = (1, 1, 1)
    return topologies.get_topology_desc(platform="tpu", topology_name=name, **config).devices


def _check_installed(target: Target) -> None:
    platform = target.chip.platform
    if platform == "tpu" and find_spec("libtpu") is None:
        raise InputError(f"{target.name}: XLA's compiler for TPUs is in libtpu, and {_INSTALL}")
    if platform == "cuda" and (find_spec("jax_plugins") is None or find_spec("jax_plugins.xla_cuda12") is None):
        raise InputError(f"{target.name}: XLA's compiler for GPUs is in jax-cuda12-plugin, and {_INSTALL}")
    if platform == "cuda" and _ptxas() is None:
        raise InputError(f"{target.name}: the assembler ptxas comes with nvidia-cuda-nvcc-cu12, and {_INSTALL}")


def _ptxas() -> Path | None:
    """The folder of ptxas: that of the nvidia wheel, or of a toolkit on the path."""
    spec = find_spec("nvidia")
    for root in spec.submodule_search_locations or () if spec else ():
        folder = Path(root) / "cuda_nvcc" / "bin"
        if (folder / "ptxas").is_file():
            return folder
    found = shutil.which("ptxas")
    return Path(found).parent if found else None


def _environment(target: Target, folder: Path) -> dict[str, str]:
    flags = [os.environ.get("XLA_FLAGS", ""), f"--xla_dump_to={folder / 'xla'}"]
    if target.chip.platform == "cpu":
        flags.append(f"--xla_force_host_platform_device_count={target.devices}")
    folders = [os.environ.get("PATH", "")]
    if target.chip.platform == "cuda":
        folders.insert(0, str(_ptxas()))
    return {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        # Nobody answers questions about a TPU machine where there is none; asking takes a quarter of a minute.
        "TPU_SKIP_MDS_QUERY": "1",
        # Where there is no TPU none is taken from another process.
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
        "JAX_ENABLE_COMPILATION_CACHE": "false",
        "XLA_FLAGS": " ".join(flags).strip(),
        "PATH": os.pathsep.join(folders),
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
    }


def _reason(stderr: bytes) -> str:
    """The last line of what a process said, which names the error."""
    lines = [line for line in stderr.decode(errors="replace").splitlines() if line.strip()]
    errors = [line for line in lines if "Error" in line or "ERROR" in line]
    return (errors or lines or ["it ended without a word"])[-1].strip()[:500]
