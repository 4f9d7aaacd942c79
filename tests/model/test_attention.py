"""Laws: every implementation of attention equals the dense one, in value and gradient; the rule is what it says; no
pair of blocks in which somebody is seen is left out; kernels compile for the devices they are made for.

Shapes: B rows, T places, H query heads, G key/value heads, K head width.
"""

import os
from functools import partial
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bactrian.model import attention
from bactrian.model.attention import Places, blocks, sparsity
from bactrian.model.attention.rule import Part, sides, visible

LENGTH = 300


def packed(cuts: list[tuple[int, ...]], branches: int, length: int = LENGTH) -> Places:
    """Rows of segments between these cuts, each half a shared prompt and then so many branches, the rest padding."""
    segments, branch, positions = np.zeros((3, len(cuts), length), np.int32)
    for row, ends in enumerate(cuts):
        for number, (start, stop) in enumerate(pairwise(ends), 1):
            segments[row, start:stop] = number
            shared = (stop - start) // 2 if branches else stop - start
            positions[row, start : start + shared] = np.arange(shared)
            own = np.array_split(np.arange(start + shared, stop), branches) if branches else []
            for index, places in enumerate(own, 1):
                branch[row, places] = index
                # Each begins with its own copy of the prompt's last token, at that token's position.
                positions[row, places] = shared - 1 + np.arange(len(places))
    return Places(*map(jnp.asarray, (segments, branch, positions)))


PAIRS = packed([(0, 110, 250, 290), (0, 31, 200, LENGTH)], branches=2)
CONVERSATIONS = packed([(0, 40, 41, 180, 299), (0, LENGTH)], branches=0)
RANKINGS = packed([(0, 250)], branches=5)
WITH_AN_EMPTY_ROW = packed([(0, 110, 250), (0,)], branches=2)


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks so small that rows of a few hundred places hold many; splash has none below 128."""
    from bactrian.model.attention import flash, splash

    monkeypatch.setattr(blocks, "_BLOCK", 32)
    monkeypatch.setattr(flash, "_BLOCK", 16)
    monkeypatch.setattr(splash, "_LARGEST_BLOCK", 128)


def run(
    implementation: attention.Implementation,
    places: Places,
    window: int | None,
    heads: int,
    dtype=jnp.float32,
    parts: int = 1,
):
    """Attention of random numbers and its gradients; as devices that have so many parts of the places make it."""
    rows, length = places.segments.shape
    random = np.random.default_rng(3)
    queries_BTHK, keys_BTGK, values_BTGK, cotangent = (
        jnp.asarray(random.normal(size=(rows, length, count, 8)), dtype) for count in (heads, 2, 2, heads)
    )

    @jax.jit
    def both(first, queries, cotangent, keys, values):
        part = attention.Part(first, length // parts) if parts > 1 else None
        output, pull = jax.vjp(attention.over(places, window, implementation, part), queries, keys, values)
        return output, *pull(cotangent)

    count = length // parts
    slices = [slice(first, first + count) for first in range(0, length, count)]
    made = [both(here.start, queries_BTHK[:, here], cotangent[:, here], keys_BTGK, values_BTGK) for here in slices]
    output, to_queries, to_keys, to_values = zip(*jax.device_get(made), strict=True)
    return (
        *(np.concatenate(each, axis=1) for each in (output, to_queries)),
        np.sum(to_keys, axis=0),
        np.sum(to_values, axis=0),
    )


@pytest.mark.parametrize("implementation", ["blocked", "flash", "splash"])
@pytest.mark.parametrize(
    ("places", "window", "heads"),
    [
        (PAIRS, None, 4),
        (PAIRS, 40, 4),
        (PAIRS, None, 2),
        (CONVERSATIONS, None, 2),
        (RANKINGS, 60, 6),
        (WITH_AN_EMPTY_ROW, None, 6),
    ],
    ids=["pairs", "pairs, window", "pairs, a head to a key", "conversations", "rankings, window", "an empty row"],
)
def test_every_implementation_equals_the_dense_one(implementation, places: Places, window: int | None, heads: int):
    for found, dense in zip(
        run(implementation, places, window, heads), run("dense", places, window, heads), strict=True
    ):
        assert np.linalg.norm(found - dense) <= 1e-5 * np.linalg.norm(dense)
        assert np.abs(found - dense).max() <= 1e-5 * np.abs(dense).max()


@pytest.mark.parametrize("implementation", ["dense", "blocked", "flash", "splash"])
@pytest.mark.parametrize(
    ("places", "window", "parts"),
    [
        pytest.param(PAIRS, 40, 3, id="pairs, window"),
        pytest.param(PAIRS, None, 2, id="pairs", marks=pytest.mark.slow),
        pytest.param(RANKINGS, 60, 12, id="rankings, window", marks=pytest.mark.slow),
        pytest.param(WITH_AN_EMPTY_ROW, None, 2, id="an empty row", marks=pytest.mark.slow),
    ],
)
def test_parts_of_the_queries_are_together_what_all_are(implementation, places: Places, window: int | None, parts: int):
    """Parts of 100, 150 and 25 places: no multiples of a block, and fewer than one."""
    for found, dense in zip(
        run(implementation, places, window, 4, parts=parts), run("dense", places, window, 4), strict=True
    ):
        assert np.linalg.norm(found - dense) <= 1e-5 * np.linalg.norm(dense)
        assert np.abs(found - dense).max() <= 1e-5 * np.abs(dense).max()


@pytest.mark.parametrize("implementation", ["blocked", "flash", "splash"])
def test_in_bfloat16_they_are_as_near_as_it_is_fine(implementation: attention.Implementation):
    for found, dense in zip(
        run(implementation, PAIRS, None, 4, jnp.bfloat16), run("dense", PAIRS, None, 4), strict=True
    ):
        assert found.dtype == jnp.bfloat16
        assert np.linalg.norm(found.astype(np.float32) - dense) <= 2e-2 * np.linalg.norm(dense)


@pytest.mark.parametrize("implementation", ["blocked", "flash", "splash"])
def test_padding_sees_nothing_and_gives_no_gradient(implementation: attention.Implementation):
    padding = np.asarray(PAIRS.segments == 0)
    assert padding.any()
    for found in run(implementation, PAIRS, None, 4):
        assert not found[padding].any() and np.isfinite(found).all()


@pytest.mark.parametrize("window", [None, 20])
@pytest.mark.parametrize("places", [PAIRS, CONVERSATIONS, RANKINGS], ids=["pairs", "conversations", "rankings"])
def test_blocks_that_are_skipped_are_those_that_nobody_sees_into(places: Places, window: int | None):
    exact = np.asarray(visible(places, places, window))
    query_block, key_block = 20, 10
    by_block = exact.reshape(len(exact), -1, query_block, LENGTH // key_block, key_block).any((2, 4))
    parts = (sparsity.seen, sparsity.seen_within_branches, sparsity.seen_shared)
    compiled = jax.jit(lambda both: [part(both, window, query_block, key_block) for part in parts])
    seen, within, shared = jax.device_get(compiled(sides(places, Part(0, LENGTH))))
    assert not (by_block & ~seen).any(), "somebody sees into a block that is skipped"
    assert seen.sum() <= 1.2 * by_block.sum(), "hardly a block too many"
    assert np.array_equal(within | shared, seen)
    assert shared.any() == bool(np.asarray(places.branches).any())


@pytest.mark.parametrize("window", [None, 20])
@pytest.mark.parametrize("places", [PAIRS, CONVERSATIONS, RANKINGS], ids=["pairs", "conversations", "rankings"])
def test_a_part_of_the_queries_needs_no_block_but_its_own(places: Places, window: int | None):
    query_block, key_block = 20, 10

    @partial(jax.jit, static_argnums=1)
    def seen(first: int, count: int) -> jax.Array:
        return sparsity.seen(sides(places, Part(first, count), query_block, key_block), window, query_block, key_block)

    whole = np.asarray(seen(0, LENGTH))
    parts = [np.asarray(seen(first, 60)) for first in range(0, LENGTH, 60)]
    assert np.array_equal(np.concatenate(parts, axis=1), whole)

    # Its last block is half padding, and none begins where a block of the row does.
    exact = np.asarray(visible(places, places, window))[:, 125 : 125 + 50]
    by_block = np.pad(exact, ((0, 0), (0, 10), (0, 0))).reshape(len(exact), 3, query_block, -1, key_block).any((2, 4))
    found = np.asarray(seen(125, 50))
    assert not (by_block & ~found).any(), "somebody sees into a block that is skipped"
    assert found.sum() <= 1.2 * by_block.sum(), "hardly a block too many"
    assert not found[:, :, 18:].any(), "none after the part"


def test_rows_in_any_order_are_no_worse_than_slow():
    """Packing lays rows out in order; nothing wrong comes of it where somebody does not."""
    order = np.random.default_rng(0).permutation(LENGTH)
    mixed = Places(*(field[:, order] for field in PAIRS))
    exact = np.asarray(visible(mixed, mixed, 30)).reshape(2, 15, 20, 30, 10).any((2, 4))
    seen = jax.jit(lambda both: sparsity.seen(both, 30, 20, 10))(sides(mixed, Part(0, LENGTH)))
    assert not (exact & ~np.asarray(seen)).any()


@pytest.mark.parametrize(
    ("platform", "kind", "expected"),
    [
        ("cpu", "cpu", "blocked"),
        ("gpu", "NVIDIA H100 80GB HBM3", "flash"),
        ("tpu", "TPU v3", "blocked"),
        ("tpu", "TPU v4", "splash"),
        ("tpu", "TPU v5 lite", "splash"),
    ],
)
def test_each_device_has_what_compiles_there(platform: str, kind: str, expected: attention.Implementation):
    device: Any = SimpleNamespace(platform=platform, device_kind=kind)
    assert attention.suited(device) == expected


def compiled_for(device, implementation: attention.Implementation, parts: int) -> str:
    """The text of attention's forward and backward pass of one of so many parts of the places, compiled for a device
    that need not be here."""
    sharding = jax.sharding.SingleDeviceSharding(device)

    def shaped(*shape: int, dtype=jnp.bfloat16) -> Any:
        return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)

    @jax.jit
    def both(given, cotangent, places, first):
        part = Part(first, 1024 // parts) if parts > 1 else None
        output, pull = jax.vjp(attention.over(places, None, implementation, part), *given)
        return output, *pull(cotangent)

    queries, keys = shaped(2, 1024 // parts, 8, 128), shaped(2, 1024, 2, 128)
    places = Places(*[shaped(2, 1024, dtype=jnp.int32)] * 3)
    return both.lower((queries, keys, keys), queries, places, shaped(dtype=jnp.int32)).compile().as_text() or ""


@pytest.mark.slow
@pytest.mark.parametrize("parts", [1, 3])
@pytest.mark.parametrize("slice_name", ["v5p:2x2x1", "v5e:2x2", "v4:2x2x1"])
def test_splash_compiles_for_tpus(slice_name: str, parts: int, monkeypatch: pytest.MonkeyPatch):
    pytest.importorskip("libtpu", reason="libtpu, the compiler of TPUs, is not installed (extra: plan)")
    from jax.experimental import topologies

    from bactrian.model.attention import splash

    monkeypatch.setenv("TPU_SKIP_MDS_QUERY", "1")
    monkeypatch.setattr(splash, "_LARGEST_BLOCK", 512)
    device = topologies.get_topology_desc(platform="tpu", topology_name=slice_name).devices[0]
    assert attention.suited(device) == "splash"
    assert compiled_for(device, "splash", parts).count("tpu_custom_call") >= 3 * 2  # three kernels, twice


# What the compiler asks about a GPU that is not here; the numbers are those of an H100.
H100 = """
gpu_device_info {
  threads_per_block_limit: 1024 threads_per_warp: 32 threads_per_core_limit: 2048
  shared_memory_per_block: 49152 shared_memory_per_block_optin: 232448 shared_memory_per_core: 233472
  core_count: 132 fpus_per_core: 128 clock_rate_ghz: 1.98 memory_bandwidth: 3352320000000 l2_cache_size: 52428800
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535 device_memory_size: 84942979072
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
  cuda_compute_capability { major: 9 feature_extension: ACCELERATED_FEATURES }
}
platform_name: "CUDA"
device_description_str: "NVIDIA H100 80GB HBM3"
"""


@pytest.mark.slow
@pytest.mark.parametrize("parts", [1, 3])
def test_flash_compiles_for_gpus(parts: int, monkeypatch: pytest.MonkeyPatch):
    pytest.importorskip("jax_cuda12_plugin", reason="CUDA's compiler is not installed (extra: plan)")
    nvcc = pytest.importorskip("nvidia.cuda_nvcc", reason="ptxas is not installed (extra: plan)")
    from jax.experimental import topologies

    from bactrian.model.attention import flash

    monkeypatch.setenv("PATH", f"{nvcc.__path__[0]}/bin:{os.environ['PATH']}")
    monkeypatch.setattr(flash, "_BLOCK", 64)
    described = {"target_config": H100, "topology": "1x1x1"}
    device = topologies.get_topology_desc(platform="cuda", topology_name="", **described).devices[0]
    assert attention.suited(device) == "flash"
    text = compiled_for(device, "flash", parts)
    kernels = ("branch_attention_forward", "branch_attention_to_queries", "branch_attention_to_keys")
    assert all(name in text for name in kernels)
