"""The sizes that are measured on an accelerator are those of the models they are named after, and run as toys here."""

import argparse
import json
import math
import os
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest

BENCH = Path(__file__).parents[2] / "bench"
# Of meta-llama's Llama-3.2-1B, Llama-2-7b and Llama-3.1-8B
PARAMETERS = {"1B": 1_235_814_400, "7B": 6_738_415_616, "8B": 8_030_261_248}

# Runs a script to which some modules are not installed.
ALONE = """\
import runpy, sys
absent = set(sys.argv.pop(1).split(","))


class Wall:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in absent:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


sys.meta_path.insert(0, Wall())
sys.path.insert(0, sys.argv[1].rpartition("/")[0])
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def arguments(**changes) -> argparse.Namespace:
    plain = {"shapes": ["1B"], "stages": ["sft"], "lengths": [4096], "rows": [2], "remat": ["full"], "toy": True}
    plain["ranks"] = [0]
    return argparse.Namespace(**{**plain, "parameters": "float32", "moments": "float32", "profile": None, **changes})


def needed(*packages: str) -> set[str]:
    """The modules of some packages and of all that they need."""
    found, waiting = set(), list(packages)
    while waiting:
        package = waiting.pop()
        if package not in found:
            found.add(package)
            lines = [line for line in metadata.requires(package) or () if "extra ==" not in line]
            waiting += [re.split(r"[^\w.-]", line)[0] for line in lines]
    return {module for module, owners in metadata.packages_distributions().items() if found & set(owners)}


def test_shapes_are_those_of_the_models():
    import gpu

    from bactrian.model import llama

    counted = {
        name: sum(math.prod(spec.shape) for spec in gpu._leaves(llama.specs(config)))
        for name, config in gpu.SHAPES.items()
    }
    assert counted == PARAMETERS


@pytest.mark.parametrize("stage", ["sft", "dpo"])
def test_examples_fill_their_rows(stage: str):
    import gpu

    given = gpu.examples(stage, 4096, 32_000, int(0.95 * gpu.ROWS * 4096))
    plan = gpu.packed(given, 4096, 2)
    assert len(plan.updates) == 1 and plan.rows % 2 == 0 and plan.row_length == 4096
    assert all(len(each.branch(branch)[0]) <= 4096 for each in given for branch in range(len(each.starts)))
    assert np.mean([each.learn.mean() for each in given]) > 0.4


@pytest.mark.parametrize(
    ("shape", "stage", "rank"),
    [("1B", "sft", 0), pytest.param("8B", "dpo", 0, marks=pytest.mark.slow), ("7B", "dpo", 4)],
)
def test_a_toy_of_each_stage_trains(shape: str, stage: str, rank: int):
    import gpu

    figures = gpu.bactrian(arguments(shapes=[shape], stages=[stage], ranks=[rank]))
    # Of random weights an answer is as likely as any, and the policy is the reference.
    expected = math.log(2) if stage == "dpo" else math.log(gpu.toy(gpu.SHAPES[shape]).vocab_size)
    assert figures["first_loss"] == pytest.approx(expected, rel=0.02)
    assert figures["tokens"] >= 0.95 * gpu.ROWS * 4096 // gpu.TOY
    assert figures["tokens_per_second"] == pytest.approx(figures["tokens"] / figures["seconds"])
    assert ("pairs_per_second" in figures) == (stage == "dpo")


def test_it_runs_where_jax_is_and_little_else():
    absent = set(metadata.packages_distributions()) - needed("jax", "numpy", "optax") - {"bactrian"}
    assert absent > {"pydantic", "pyarrow", "tokenizers", "safetensors", "orbax", "torch", "matplotlib"}
    script = [str(BENCH / "gpu.py"), "--side", "bactrian", "--toy", "--shapes", "7B", "--stages", "dpo"]
    more = ["--lengths", "2048", "--rows", "1", "--remat", "dots", "--parameters", "bfloat16", "--moments", "int8"]
    command = [sys.executable, "-c", ALONE, ",".join(sorted(absent)), *script, *more]
    quick = {**os.environ, "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=quick)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1])["tokens_per_second"] > 0


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 4])
@pytest.mark.parametrize("stage", ["sft", "dpo"])
def test_trl_takes_the_same_examples(stage: str, rank: int):
    import gpu

    ours, theirs = (side(arguments(stages=[stage], rows=[1], ranks=[rank])) for side in (gpu.bactrian, gpu.trl))
    assert theirs["tokens"] == pytest.approx(ours["tokens"], rel=0.2)  # its packing leaves the warm-up row out
    assert theirs["tokens_per_second"] > 0
