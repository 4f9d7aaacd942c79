"""Laws: a mesh uses every device, what does not divide is refused with the arithmetic, what can be split is."""

import dataclasses
import re
from typing import Any, cast

import jax
import numpy as np
import pytest
from jax.sharding import AbstractMesh
from jax.sharding import PartitionSpec as P

from bactrian.data import packing
from bactrian.errors import RecipeError
from bactrian.model import attention, llama, shards
from bactrian.model import mesh as meshes
from bactrian.recipe import Mesh, Optimizer
from bactrian.train import optimizer, trainer

# SmolLM2-135M's sizes
SMALL = llama.Config(
    vocab_size=49_152,
    hidden_size=576,
    intermediate_size=1536,
    num_layers=2,
    num_heads=9,
    num_kv_heads=3,
    head_dim=64,
    max_positions=2048,
    rms_norm_eps=1e-5,
    rope_theta=1e5,
    tied_embeddings=True,
)
# Llama 2 70B's, in two layers, and with the token that Tulu adds
LARGE = dataclasses.replace(
    SMALL,
    vocab_size=32_001,
    hidden_size=8192,
    intermediate_size=28_672,
    num_heads=64,
    num_kv_heads=8,
    head_dim=128,
    tied_embeddings=False,
)


def abstract(**sizes: int) -> jax.sharding.Mesh:
    """As good as a mesh of devices, and needs none."""
    return cast(Any, AbstractMesh(tuple(sizes.get(axis, 1) for axis in meshes.AXES), meshes.AXES))


def test_the_open_axis_takes_what_the_others_leave():
    assert meshes.sizes(Mesh(), 8) == {"data": 1, "fsdp": 8, "sequence": 1, "tensor": 1}
    assert meshes.sizes(Mesh(data=-1, fsdp=4, tensor=2), 512)["data"] == 64
    assert meshes.sizes(Mesh(data=2, fsdp=2, sequence=2, tensor=2), 16)["tensor"] == 2
    assert meshes.make(meshes.sizes(Mesh(), 1), jax.devices()[:1]) is None


@pytest.mark.parametrize(
    ("settings", "devices", "said"),
    [
        (Mesh(tensor=3), 8, "mesh: data 1 × sequence 1 × tensor 3 = 3 does not divide the 8 devices"),
        (Mesh(fsdp=4), 8, "mesh: data 1 × fsdp 4 × sequence 1 × tensor 1 = 4, and there are 8 devices"),
        (Mesh(fsdp=16), 8, "= 16, and there are 8 devices; give one of them as -1"),
    ],
)
def test_sizes_that_do_not_multiply_to_the_devices_are_refused(settings: Mesh, devices: int, said: str):
    with pytest.raises(RecipeError) as caught:
        meshes.sizes(settings, devices)
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("config", "settings", "said"),
    [
        (SMALL, Mesh(tensor=2), "9 heads do not divide over tensor = 2; it can be 1, 3 or 9"),
        (SMALL, Mesh(tensor=4, sequence=2), "9 heads do not divide over tensor = 4"),
        (
            SMALL,
            Mesh(fsdp=7),
            "576 features of the residual stream do not divide over fsdp × sequence = 7; it can be 1, 2, 3, 4, 6",
        ),
        (
            dataclasses.replace(SMALL, num_heads=12),
            Mesh(tensor=4),
            "3 key/value heads over tensor = 4: neither divides",
        ),
        (
            dataclasses.replace(SMALL, intermediate_size=5),
            Mesh(tensor=3),
            "5 features of the MLP do not divide over tensor",
        ),
    ],
)
def test_a_model_that_does_not_divide_is_refused(config: llama.Config, settings: Mesh, said: str):
    sizes = {axis: max(getattr(settings, axis), 1) for axis in meshes.AXES}
    with pytest.raises(RecipeError) as caught:
        meshes.check(sizes, config)
    assert said in str(caught.value) and "\n" not in str(caught.value)


def test_models_that_divide_are_let_by():
    for sequence, tensor in ((1, 1), (1, 3), (2, 1), (4, 1), (8, 1), (2, 3), (6, 3)):
        meshes.check({"data": 1, "fsdp": 8, "sequence": sequence, "tensor": tensor}, SMALL)
    for sequence, tensor in ((1, 16), (4, 16), (8, 8), (16, 1)):
        meshes.check({"data": 1, "fsdp": 32, "sequence": sequence, "tensor": tensor}, LARGE)


@pytest.mark.parametrize(
    ("config", "sequence", "tensor", "gathers"),
    [
        (SMALL, 1, 1, False),
        (SMALL, 3, 1, False),
        (SMALL, 9, 1, False),  # three devices share the keys of each head
        (SMALL, 3, 3, False),
        (SMALL, 2, 1, True),
        (SMALL, 6, 1, True),
        (SMALL, 3, 9, True),
        (dataclasses.replace(SMALL, num_heads=6, num_kv_heads=2), 3, 1, True),  # heads divide, those of keys do not
        (LARGE, 4, 16, False),
        (LARGE, 8, 16, True),
    ],
)
def test_keys_are_gathered_where_places_cannot_be_traded_for_heads(
    config: llama.Config, sequence: int, tensor: int, gathers: bool
):
    share = llama.share(config, abstract(sequence=sequence, tensor=tensor))
    assert share.gathers_keys == gathers
    assert not llama.share(config, None).gathers_keys


@pytest.mark.parametrize("remat", ["none", "dots", "full"])
def test_gathered_keys_are_kept_of_no_layer(remat: llama.Remat):
    """In the program of a gradient, where what is not kept from the forward pass is gathered once more."""
    config = dataclasses.replace(SMALL, hidden_size=18, head_dim=2, vocab_size=8, intermediate_size=6)
    compute = llama.Compute(remat=remat, attention="blocked", mesh=abstract(sequence=2))
    integers: Any = jax.ShapeDtypeStruct((1, 600), np.int32)
    parameters = jax.eval_shape(lambda: llama.init(config, jax.random.PRNGKey(0)))

    def total(parameters: llama.Parameters, tokens: jax.Array, places: attention.Places) -> jax.Array:
        return llama.forward(parameters, config, tokens, places, compute).sum()

    program = jax.make_jaxpr(jax.grad(total))(parameters, integers, attention.Places(*[integers] * 3))
    gathered = re.findall(r"f32\[1,600,3,2\] = all_gather\[", str(program))
    assert len(gathered) == 4, "keys and values, forward and backward"


def test_every_name_of_a_parameters_axis_is_in_the_table():
    every = dataclasses.replace(SMALL, qkv_bias=True, output_bias=True, qk_norm=True, tied_embeddings=False)
    names = {name for axes in jax.tree.leaves(llama.axes(every), is_leaf=shards.is_axes) for name in axes}
    assert names <= set(shards.TABLE)
    assert set(packing.empty(1, 8, 1, 1).axes) <= {
        ("batch", *rest) for rest in (("places",), ("segments",), ("segments", "branches"))
    }


def test_what_does_not_divide_is_split_along_the_hidden_width():
    shardings = meshes.of_parameters(abstract(fsdp=4, sequence=2, tensor=16), LARGE)
    everywhere = ("fsdp", "sequence", "tensor")
    # 32,001 tokens do not divide over 16, nor do 8 key/value heads.
    assert shardings["embedding"].spec == shardings["unembedding"].spec == P(None, everywhere)
    assert shardings["layers"]["k_proj"].spec == P(None, everywhere, None)
    assert shardings["layers"]["q_proj"].spec == P(None, ("fsdp", "sequence"), "tensor")
    assert shardings["layers"]["down_proj"].spec == P(None, "tensor", ("fsdp", "sequence"))
    assert shardings["layers"]["input_norm"].spec == P(None, None)
    # In 7 parts the hidden width cannot be split either: there each holds it all.
    assert meshes.of_parameters(abstract(tensor=7), LARGE)["embedding"].spec == P(None, ("fsdp", "sequence"))


@pytest.mark.parametrize("clip_norm", [None, 1.0])
def test_an_optimizers_moments_lie_as_their_parameters_do(clip_norm: float | None):
    mesh = abstract(data=2, fsdp=4, tensor=2)
    chain = optimizer.chain(Optimizer(learning_rate=1e-5, clip_norm=clip_norm), 10)
    config = dataclasses.replace(LARGE, vocab_size=32_000)
    state = jax.eval_shape(lambda: trainer.start(llama.init(config, jax.random.PRNGKey(0)), chain))
    shardings = meshes.of_state(mesh, config, state)
    assert shardings.parameters == meshes.of_parameters(mesh, config)
    assert shardings.step.spec == P()
    held = jax.tree.leaves(shardings.optimizer)
    for sharding in jax.tree.leaves(shardings.parameters):
        assert held.count(sharding) >= 2
    assert len(held) == 2 * len(jax.tree.leaves(shardings.parameters)) + 2  # and two counts


def test_a_batch_is_split_by_rows_and_places():
    mesh = abstract(data=2, fsdp=2, sequence=2)
    batch = packing.empty(8, 16, 2, 2)
    placed = meshes.of_batch(mesh, trainer.split(batch, 4))
    assert placed.tokens.spec == placed.branches.spec == P(None, ("data", "fsdp"), "sequence")
    assert placed.references.spec == P(None, ("data", "fsdp"), None, None)
    assert meshes.of_batch(mesh, batch).weights.spec == P(("data", "fsdp"), "sequence")


@dataclasses.dataclass(frozen=True)
class Chip:
    """As much of a TPU chip as laying out a mesh asks for."""

    id: int
    slice_index: int
    platform: str = "cpu"
    device_kind: str = "cpu"
    process_index: int = 0


@pytest.mark.parametrize(
    ("sizes", "outer"),
    [
        ({"data": 2, "fsdp": 4, "sequence": 1, "tensor": 1}, 0),
        ({"data": 1, "fsdp": 4, "sequence": 1, "tensor": 2}, 1),
        ({"data": 1, "fsdp": 2, "sequence": 2, "tensor": 2}, 1),
    ],
)
def test_slices_between_which_the_network_is_slow_are_parts_of_one_axis(
    sizes: dict[str, int], outer: int, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(meshes, "Mesh", lambda grid, axes: grid)
    chips = [Chip(id, id // 4) for id in range(8)]
    grid: Any = meshes.make(sizes, chips)
    slices = np.vectorize(lambda chip: chip.slice_index, otypes=[int])(grid)
    along = np.moveaxis(slices, outer, 0)
    assert all(len(set(part.ravel())) == 1 for part in along), "a slice is whole within its part of the axis"
    assert sorted(set(slices.ravel())) == [0, 1]


def test_an_axis_that_does_not_divide_over_the_slices_is_refused():
    chips = [Chip(id, id // 4) for id in range(8)]
    with pytest.raises(RecipeError, match="neither data 1 nor fsdp 1 divides over 2 TPU slices"):
        meshes.make({"data": 1, "fsdp": 1, "sequence": 4, "tensor": 2}, chips)
