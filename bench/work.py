"""What a training step has to compute, and how fast this machine multiplies matrices: the two halves of MFU.

    FLOPs = 6 · (matrices of the layers · tokens + unembedding · learnt tokens)
          + 12 · layers · heads · head width · seen

That is 6ND for what is needed: a token that two answers share counts once, logits count where something is learnt,
`seen` are the pairs of a token and one that it attends to, padding counts nowhere, and so does whatever is computed a
second time. A weight that is frozen has no gradient and counts 4, adapters beside it 6. The reference pass is not in
it. MFU is FLOPs / seconds / the rate of a large matrix product in the same process.
"""

import math
import time
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from bactrian.data import packing
from bactrian.data.records import Example

if TYPE_CHECKING:  # a peer's process does without jax while its memory is measured
    from bactrian.model import llama

FORMULA = (
    "MFU counts 6 · (layers · tokens + unembedding · learnt), 4 where they are frozen, + 12 · attention's seen pairs; "
    "no padding, no reference"
)
_REPEATS = 5
_SECONDS = 0.5  # of products one after the other, at least: a GPU's clock falls when it is kept busy


class Work(NamedTuple):
    """Counts over some examples: places of a row, learnt ones, and pairs of places that see each other."""

    tokens: int
    learned: int
    seen: int

    def flops(self, config: "llama.Config") -> float:
        """Of one forward and backward pass."""
        from bactrian.model import llama

        specs = llama.specs(config)
        matrices = sum(np.prod(spec.shape, dtype=float) for spec in specs["layers"].values() if len(spec.shape) == 3)
        unembedding = config.vocab_size * config.hidden_size
        attention = config.num_layers * config.num_heads * config.head_dim * self.seen
        adapters = sum(np.prod(spec.shape, dtype=float) for spec in specs.get("adapters", {}).values())
        each = 4 if config.lora else 6
        products = each * (matrices * self.tokens + unembedding * self.learned) + 6 * adapters * self.tokens
        return float(products + 12 * attention)


def of_examples(examples: Iterable[Example]) -> Work:
    """What some examples take, each prompt once however many answers share it."""
    total = np.zeros(3, np.int64)
    for example in examples:
        laid = packing.lay_out(example)
        shared, *own = np.bincount(laid.branches, minlength=1).tolist()
        seen = shared * (shared + 1) // 2 + sum(shared * length + length * (length + 1) // 2 for length in own)
        total += [len(laid.tokens), int(laid.learn.sum()), seen]
    return Work(*total.tolist())


def utilization(flops: float, seconds: float, rate: float) -> dict[str, float]:
    """MFU, and the rate that it is a share of, which is that of a side's own library: the slower flatters its MFU."""
    return {"mfu": flops / seconds / rate, "matmul_gflops": rate / 1e9}


def jax_rate(dtype: str, size: int) -> float:
    """FLOP/s of a product of two square matrices, the best of a few."""
    import jax
    import jax.numpy as jnp

    left = jnp.asarray(np.random.default_rng(0).normal(size=(size, size)), dtype)
    multiply = jax.jit(jnp.matmul)
    return _rate(size, lambda: multiply(left, left), jax.block_until_ready)


def torch_rate(dtype: str, size: int, device: str = "cpu") -> float:
    """The same in PyTorch."""
    import torch

    left = torch.randn(size, size, device=device, dtype=getattr(torch, dtype))
    return _rate(size, lambda: left @ left, lambda _: torch.cuda.synchronize() if device != "cpu" else None)


def _rate(size: int, multiply: Callable[[], Any], wait: Callable[[Any], object]) -> float:
    def seconds(products: int) -> float:
        start = time.perf_counter()
        for _ in range(products):
            product = multiply()
        wait(product)
        return time.perf_counter() - start

    seconds(1)
    products = math.ceil(_SECONDS / seconds(1))
    return products * 2 * size**3 / min(seconds(products) for _ in range(_REPEATS))
