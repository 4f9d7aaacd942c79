"""What a program sends and computes is read alike from every version of XLA's text that plans are tested with.

`compiled/` has one program as versions of jax write it for GPUs and TPUs, without words of its source. On a mesh of
data 2 × fsdp 4, five layers of two weights [256, 512] and [512, 256] in bfloat16, 1,024 rows: weights are gathered
forward and, with every layer checkpointed, backward; their gradients are scattered over fsdp and added up over data.
"""

import re
from importlib.metadata import version
from pathlib import Path

import pytest

from bactrian.errors import RunFailed
from bactrian.plan import collectives, hlo, products, versions

COMPILED = sorted((Path(__file__).parent / "compiled").glob("jax-*.txt"))
SIZES = {"data": 2, "fsdp": 4}
WEIGHTS = 5 * 2 * 256 * 512  # elements
ROWS = 1024 // 8  # of a device


def test_every_tested_version_has_its_text():
    assert {path.name.split("-")[1] for path in COMPILED} == set(versions.TESTED)


@pytest.mark.parametrize("path", COMPILED, ids=lambda path: path.stem)
def test_all_versions_write_the_same_program(path: Path):
    program = hlo.parse(path.read_text())
    sent = {(each.kind, each.axes): each.bytes for each in collectives.summed(collectives.of(program, SIZES))}
    assert sent == {
        ("all-gather", ("fsdp",)): 2 * (3 / 4) * 2 * WEIGHTS,
        ("reduce-scatter", ("fsdp",)): 3 / 4 * 2 * WEIGHTS,
        ("all-reduce", ("data",)): 2 * (1 / 2) * 2 * WEIGHTS / 4,
    }
    # Forward both products, backward the first again and two for each.
    assert products.operations(program) == (2 + 1 + 4) * 2 * ROWS * WEIGHTS / 2


@pytest.mark.parametrize("path", [path for path in COMPILED if "#" in path.read_text()], ids=lambda path: path.stem)
def test_a_tuple_taken_for_one_of_its_elements_is_refused(path: Path):
    # As a reader would have it that does not know `%name#3`: the operand is all that stands before the mark.
    text = path.read_text()
    wrong = re.sub(r"(all-gather|reduce-scatter|all-reduce|async-start)(\(%[\w.\-]+)#\d+", r"\1\2", text)
    with pytest.raises(RunFailed, match="misread"):
        list(collectives.of(hlo.parse(wrong), SIZES))


def test_the_installed_jax_is_one_that_was_tested():
    assert versions.is_tested(version("jax")) and versions.warning(version("jax")) is None


def test_another_jax_is_said():
    assert versions.is_tested("0.12.0.1") and not versions.is_tested("0.13.0") and not versions.is_tested("0.12.1")
    said = versions.warning("0.13.0")
    assert said is not None and "0.13.0" in said and "pip install jax==0.10.2" in said
