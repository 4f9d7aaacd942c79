"""What an update has to send and to compute, worked out from its model and mesh alone; and the laws that what was read
from compiled text is held against.

A version of XLA may write something that is read as another number, and a plan would then be wrong without a word. So
every compiled step is compared with what any such step must come to, within bounds that no mesh or compiler leaves.
"""

import math
from collections.abc import Iterator, Mapping, Sequence

from bactrian.model import llama, shards
from bactrian.plan import estimate
from bactrian.plan.collectives import Collective
from bactrian.plan.workload import Workload

_MOST_SENT = 4.0  # times what is expected; compiled for all kinds of devices: 1.0 to 1.3
_LEAST_GATHERED = 0.5  # of the layers' weights, once forward
_PRODUCTS = (0.5, 2.0)  # times what is expected; compiled for all kinds of devices: 0.94 to 1.1
_SMALL = 64e6  # bytes that leave a device: sums, vectors, what a tiny model pads


def broken(
    work: Workload,
    remat: llama.Remat,
    sizes: Mapping[str, int],
    is_update: bool,
    found: Sequence[Collective],
    products: float,
) -> str | None:
    """What cannot be true of an update, or else of one forward pass of a microbatch, as it was read; None if all can.

    products: operations of matrix products on one device, as `products.operations` counts them.
    """
    microbatches = work.microbatches if is_update else 1.0
    needed = list(collectives(work, sizes))
    sent = sum(each.sent * each.times for each in found)
    most = sum(each.sent * each.times for each in needed) + _rows_bytes(work, sizes) + _vocabulary_bytes(work, sizes)
    most = _MOST_SENT * most + _SMALL
    if sent > most:
        largest = max(found, key=lambda each: each.sent * each.times)
        return (
            f"a device sends {sent / 1e9:,.1f} GB, {largest.kind} over {'+'.join(largest.axes)} "
            f"{largest.sent * largest.times / 1e9:,.1f} of them, where {most / 1e9:,.1f} is more than it could"
        )
    holders = sizes["fsdp"] * sizes["sequence"]
    weights = estimate.layer_bytes(work.config) * work.config.num_layers / sizes["tensor"]
    least = _LEAST_GATHERED * weights * (holders - 1) / holders * microbatches
    over = [each for each in found if {"fsdp", "sequence"} & set(each.axes)]
    gathered = sum(each.sent * each.times for each in over if each.kind in ("all-gather", "all-reduce"))
    if gathered < least:
        return f"{gathered / 1e9:,.2f} GB of weights are gathered, where less than {least / 1e9:,.2f} cannot do"
    low, high = _products(work, remat, math.prod(sizes.values()), is_update)
    if not low <= products <= high:
        return f"products of {products:.3g} operations, where {low:.3g} to {high:.3g} can be"
    return None


def collectives(work: Workload, sizes: Mapping[str, int]) -> Iterator[Collective]:
    """Weights fetched forward and backward, their gradients scattered, and added up over the copies once; activations
    traded over tensor and sequence."""
    config, group = work.config, tuple(range(math.prod(sizes.values())))
    tensor, sequence, copies = sizes["tensor"], sizes["sequence"], sizes["data"]
    holders = len(group) // tensor // copies
    weights = estimate.layer_bytes(config) * config.num_layers / tensor
    if holders > 1:
        sent = estimate.passes(work) * weights * (holders - 1) / holders
        over = group[: holders * tensor : tensor]
        yield Collective("all-gather", ("fsdp", "sequence"), over, (), sent, work.microbatches, "", None)
    if copies > 1 and work.adapters is None:
        # In float32, twice as wide as what is computed with.
        sent = 2 * 2 * weights / holders * (copies - 1) / copies
        yield Collective("all-reduce", ("data",), group[:: holders * tensor], (), sent, 1.0, "", None)
    hidden = 2 * work.computed_places / work.microbatches / holders / copies * config.hidden_size
    if tensor > 1:
        # Twice a layer places are fetched and results added up, forward, again and backward.
        sent = 12 * config.num_layers * hidden * (tensor - 1) / tensor
        yield Collective("all-gather", ("tensor",), group[:tensor], (), sent, work.microbatches, "", None)
    if sequence > 1:
        # Forward, again and backward: keys and values to all, or a part of them, of queries and of results to each.
        gathers = shards.gathers_keys(sizes, llama.share(config, None).counts)
        keys = 2 * max(config.num_kv_heads / tensor, 1)
        heads = keys if gathers else (keys + 2 * config.num_heads / tensor) / sequence
        sent = 3 * config.num_layers * hidden * heads / config.num_heads * (sequence - 1)
        over, kind = group[: tensor * sequence : tensor], "all-gather" if gathers else "all-to-all"
        yield Collective(kind, ("sequence",), over, (), sent, work.microbatches, "", None)


def _rows_bytes(work: Workload, sizes: Mapping[str, int]) -> float:
    """The hidden states that a device computes of all microbatches, through every layer, in float32."""
    holders = math.prod(sizes.values()) // sizes["tensor"]
    return 4 * work.computed_places / holders * work.config.hidden_size * work.config.num_layers


def _vocabulary_bytes(work: Workload, sizes: Mapping[str, int]) -> float:
    """Embedding and head fetched twice and their gradients scattered, for each microbatch, in float32."""
    return 3 * 4 * 2 * work.config.vocab_size * work.config.hidden_size * work.microbatches / sizes["tensor"]


def _products(work: Workload, remat: llama.Remat, devices: int, is_update: bool) -> tuple[float, float]:
    """The least and the most operations of products with weights, keys and the vocabulary on one device."""
    config = work.config
    places = work.computed_places if is_update else work.microbatch_rows * work.plan.row_length
    passes = estimate.passes(work) + (remat == "full") if is_update else 1
    least = passes * estimate.model_flops(config, places, 0, 0)
    # Kernels of our own are not counted, nor all chunks of the vocabulary; where they are, this is all there can be.
    most = (passes + 2) * estimate.model_flops(work.trained, places, places * work.plan.row_length, places)
    return _PRODUCTS[0] * least / devices, _PRODUCTS[1] * most / devices
