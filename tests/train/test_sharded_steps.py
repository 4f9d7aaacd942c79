"""Laws: over any mesh an update is what it is on one device (loss, gradients, parameters, reference scores), and a
checkpoint of one mesh is one of any other."""

import itertools
import json
import math
import re
import subprocess
import sys
from pathlib import Path

import pytest
import tiny

PROGRAM = Path(__file__).with_name("sharded_steps.py")
TOLERANCE = 1e-5

# data × fsdp × sequence × tensor
FEW = ["1x8x1x1:none", "2x1x1x4:full", "1x2x2x2:none", "1x1x8x1:dots", "1x2x2x2:dots:lora"]
SHAPES = [shape for shape in itertools.product((1, 2, 4, 8), repeat=4) if math.prod(shape) == 8]
ALL = [f"{'x'.join(map(str, shape))}:{('none', 'dots', 'full')[index % 3]}" for index, shape in enumerate(SHAPES)]


def program(*arguments: str) -> str:
    environment = {**tiny.environment(Path()), "JAX_PLATFORMS": "cpu"}
    done = subprocess.run([sys.executable, PROGRAM, *arguments], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def assert_equal(meshes: list[str], *model: str, stages: int = 2) -> None:
    found = [json.loads(line) for line in program(*model, *meshes).splitlines()]
    assert len(found) == stages * len(meshes)
    for line in found:
        # Of SFT loss and gradient norm, 18 parameters (or 7 adapters' A and B) and their gradients; of DPO four metrics
        # more, and the scores.
        trained = 14 if line["mesh"].endswith(":lora") else 18
        assert len(line["errors"]) == 2 + 2 * trained + (5 if line["stage"] == "dpo" else 0)
        off = {name: error for name, error in line["errors"].items() if not error <= TOLERANCE}
        assert not off, f"{line['stage']} over {line['mesh']}"
        assert line["moved"], f"a checkpoint over {line['mesh']}"


@pytest.mark.parametrize("half", [pytest.param(0, marks=pytest.mark.slow), 1])
def test_an_update_over_a_mesh_is_that_of_one_device(half: int):
    assert_equal(FEW[half::2])


def test_heads_that_do_not_divide_are_no_hindrance_to_sharing_a_row():
    """Nine heads, three of keys, in two parts of the places; over tensor three of each in two parts."""
    assert_equal(["1x1x2x3:none"], "nine", "dpo", stages=1)


@pytest.mark.slow
def test_nor_are_they_over_larger_meshes():
    meshes = ["1x1x2x3:full", "1x4x2x1:dots:lora", "1x2x4x1:none", "2x1x4x1:full", "1x1x8x1:none"]
    assert_equal(meshes, "nine", "sft+dpo")


@pytest.mark.slow
@pytest.mark.parametrize("what", ["", ":lora"])
@pytest.mark.parametrize("part", range(5))
def test_over_every_mesh_of_eight(part: int, what: str):
    assert len(ALL) == 20
    assert_equal([f"{mesh}{what}" for mesh in ALL[part::5]])


# Eleven and seven divide the places of a row, and no other size of the model or the batch.
PLACES = 2 * 7 * 11
LAYER = 7  # matrices in a layer
COLLECTIVE = re.compile(r"= (.+?) (all-\w+|reduce-scatter|collective-\w+)(?:-start)?\(.*?replica_groups=([^ ]+),")


@pytest.mark.parametrize("remat", ["none", pytest.param("full", marks=pytest.mark.slow)])
def test_devices_with_rows_of_their_own_send_weights_alone_and_each_once(remat: str):
    """Read in what XLA has compiled, over a mesh of data 2 × fsdp 2 × tensor 2."""
    collectives = COLLECTIVE.findall(program("text", f"2x2x1x2:{remat}", str(PLACES)))
    tensor = [shape for shape, _, groups in collectives if groups == "{{0,1},{2,3},{4,5},{6,7}}"]
    # The devices that share every product do send each other the rows: so the reading would find them.
    assert any(map(carries_places, tensor))
    others = [(kind, shape) for shape, kind, groups in collectives if groups != "{{0,1},{2,3},{4,5},{6,7}}"]
    assert not [each for each in others if carries_places(each[1])]
    kinds = [kind for kind, _ in others]
    # The layers' are in the loop of the forward pass and in that of the backward one, the vocabulary's in none.
    assert kinds.count("all-gather") == 2 * LAYER + 2
    assert kinds.count("reduce-scatter") == LAYER + 2
    assert set(kinds) == {"all-gather", "reduce-scatter", "all-reduce"}


def carries_places(shape: str) -> bool:
    arrays = re.findall(r"\w+\[([\d,]*)\]", shape)
    return any(math.prod(int(length) for length in lengths.split(",") if length) % 77 == 0 for lengths in arrays)


@pytest.mark.slow
def test_answers_over_a_mesh_are_those_of_one_device():
    alone, over_mesh = json.loads(program("answers", "2x2x1x2:none"))
    assert over_mesh == alone
    assert len(set(map(tuple, alone))) == 6 and all(len(answer) == 12 for answer in alone)
