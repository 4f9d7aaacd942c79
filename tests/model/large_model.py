"""Writes a model and reads it back, spread over this process's devices, and watches its own memory meanwhile.

Arguments: a folder, a dtype, then width, MLP width, layers and vocabulary. Prints the bytes of the model's arrays, and
the most of anonymous memory that there was beside them and beside what there was before, while it was written and read.
"""

import re
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import jax
import jax.numpy as jnp

from bactrian.model import llama, weights

_EVERY = 0.002  # seconds between two looks at the memory


def anonymous_bytes() -> int:
    found = re.search(r"RssAnon:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return 1024 * int(found[1])


@contextmanager
def watched() -> Iterator[list[int]]:
    """The most of anonymous memory while this lasts, when it is over."""
    seen, over = [0], threading.Event()

    def look() -> None:
        while not over.wait(_EVERY):
            seen[0] = max(seen[0], anonymous_bytes())

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield seen
    finally:
        over.set()
        thread.join()


def shardings(config: llama.Config):
    """Every parameter split on its last two axes, where there are devices enough."""
    count = jax.device_count()
    mesh = jax.make_mesh((max(1, count // 2), min(2, count)), ("fsdp", "tensor"))

    def one(spec: llama.Spec) -> jax.sharding.NamedSharding:
        axes = {"embed": "fsdp", "heads": "tensor", "kv_heads": "tensor", "mlp": "tensor"}
        return jax.sharding.NamedSharding(mesh, jax.P(*(axes.get(axis) for axis in spec.axes)))

    return jax.tree.map(one, llama.specs(config), is_leaf=lambda node: isinstance(node, llama.Spec))


def pattern(shape: tuple[int, ...], dtype) -> jax.Array:
    """Numbers that differ from their neighbours, and are the same in every dtype."""
    places: Any = sum(
        step * jax.lax.broadcasted_iota(jnp.int32, shape, axis) for axis, step in enumerate((7, 13, 31)[: len(shape)])
    )
    return ((places % 251 - 125) / 64).astype(dtype)


def main(folder: Path, dtype: llama.Dtype, width: int, mlp_width: int, layers: int, vocab_size: int) -> None:
    heads = width // 128
    config = llama.Config(vocab_size, width, mlp_width, layers, heads, heads // 8, 128, 4096, 1e-5, 10_000.0)
    placed = shardings(config)
    jnp.zeros(8).block_until_ready()
    before = anonymous_bytes()
    specs = llama.specs(config)
    is_spec = lambda node: isinstance(node, llama.Spec)  # noqa: E731
    parameters = jax.tree.map(
        lambda spec, sharding: jax.jit(pattern, static_argnums=(0, 1), out_shardings=sharding)(spec.shape, dtype),
        specs,
        placed,
        is_leaf=is_spec,
    )
    # What several devices hold alike counts for each of them.
    size = sum(shard.data.nbytes for leaf in jax.tree.leaves(parameters) for shard in leaf.addressable_shards)
    with watched() as peak:
        weights.save(folder, config, parameters, dtype, (2,), 1, shard_bytes=size / 3)
        del parameters
        parameters = weights.load(folder, dtype, placed if jax.device_count() > 1 else None)
    for (keys, leaf), sharding in zip(
        jax.tree_util.tree_leaves_with_path(parameters), jax.tree.leaves(placed), strict=True
    ):
        assert leaf.sharding.is_equivalent_to(sharding, leaf.ndim) or jax.device_count() == 1
        assert jax.jit(lambda read: jnp.all(read == pattern(read.shape, read.dtype)))(leaf), keys
    print(size, peak[0] - before - size)


if __name__ == "__main__":
    main(Path(sys.argv[1]), cast(llama.Dtype, sys.argv[2]), *map(int, sys.argv[3:]))
