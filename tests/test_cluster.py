"""The environment says which process this is, in the words of whoever started it."""

import pytest

from bactrian import cluster
from bactrian.cluster import Place
from bactrian.errors import InputError

SLURM = {
    "SLURM_JOB_ID": "4097",
    "SLURM_STEP_NODELIST": "gpu[007-009,012],login1",
    "SLURM_STEP_NUM_NODES": "4",
    "SLURM_NTASKS": "32",
    "SLURM_PROCID": "9",
    "SLURM_LOCALID": "1",
}
GKE = {"TPU_WORKER_HOSTNAMES": "t-0.t,t-1.t", "TPU_WORKER_ID": "1"}
PLAIN = {"JAX_COORDINATOR_ADDRESS": "10.0.0.1:1234", "JAX_NUM_PROCESSES": "4"}


@pytest.mark.parametrize(
    ("environment", "place"),
    [
        ({}, None),
        ({**PLAIN, "JAX_PROCESS_ID": "3"}, Place("10.0.0.1:1234", 4, 3)),
        ({**PLAIN, "JOB_COMPLETION_INDEX": "2"}, Place("10.0.0.1:1234", 4, 2)),
        ({**PLAIN, "JAX_NUM_PROCESSES": "1", "JAX_PROCESS_ID": "0"}, None),
        (SLURM, Place("gpu007:61441", 32, 9, 1)),
        # One task on each node has all of its devices.
        ({**SLURM, "SLURM_NTASKS": "4", "SLURM_PROCID": "3", "SLURM_LOCALID": "0"}, Place("gpu007:61441", 4, 3)),
        ({**SLURM, "SLURM_STEP_NODELIST": "node-a,node-b"}, Place("node-a:61441", 32, 9, 1)),
        ({name: value for name, value in SLURM.items() if name != "SLURM_STEP_NODELIST"}, None),
        ({**SLURM, "SLURM_NTASKS": "1", "SLURM_PROCID": "0"}, None),
        (GKE, Place("t-0.t:8482", 2, 1)),
        (
            {**GKE, "MEGASCALE_NUM_SLICES": "3", "MEGASCALE_SLICE_ID": "2", "MEGASCALE_COORDINATOR_ADDRESS": "s-0:80"},
            Place("s-0:8482", 6, 5),
        ),
        ({**GKE, **PLAIN, "JAX_PROCESS_ID": "0"}, Place("10.0.0.1:1234", 4, 0)),
    ],
)
def test_the_environment_says_which_process_this_is(environment: dict[str, str], place: Place | None):
    assert cluster.place_of(environment) == place


@pytest.mark.parametrize("index", ["", "4", "-1", "two"])
def test_an_environment_that_contradicts_itself_is_refused(index: str):
    with pytest.raises(InputError, match=f"JAX_PROCESS_ID={index} name no process"):
        cluster.place_of({**PLAIN, "JAX_PROCESS_ID": index})
