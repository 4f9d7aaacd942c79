"""What a compiled update must not send: over the axes data and fsdp nothing but weights, their gradients and sums.

With parameters sharded and activations left to it, XLA may add up activations where it should gather weights: the same
numbers, many times the traffic. So every collective over data or fsdp has to carry a parameter, or a part of one, or be
small; and of each layer's weights there is one gather forward and one backward for every microbatch, no more.
"""

import math
from collections import Counter, defaultdict

import jax

from bactrian.model import llama, shards
from bactrian.plan import collectives
from bactrian.plan.collectives import Collective
from bactrian.plan.planning import Planned

_WHOLE_NUMBERS = ("s32", "u32", "s8", "u8", "pred")
_FETCHED_IN = "model/shards.py"  # weights, and their gradients on the way back
_PASSES = 2  # forward, and backward, which computes from what it gathers again


def violations(planned: Planned) -> list[str]:
    """What is not as it should be, one line each."""
    return [*_strangers(planned), *_repeated(planned)]


def _strangers(planned: Planned) -> list[str]:
    weights = {count for name in _specs(planned) for count in _elements(planned, name)}
    found = []
    for each in _over_rows(planned):
        strange = [array for array in each.arrays if _is_strange(planned, each, array, weights)]
        if strange:
            found.append(
                f"{each.kind} over {'+'.join(each.axes)} carries {', '.join(strange)}, no weight, in {each.op_name}"
            )
    return found


def _is_strange(planned: Planned, each: Collective, array: str, weights: set[int]) -> bool:
    count = collectives.elements(array)
    if array.startswith(_WHOLE_NUMBERS):  # tokens, places: the batch itself
        return count >= planned.workload.plan.row_length
    if count <= _small(planned):
        return False
    # A row's hidden states may have as many elements as a weight: then it counts which line of ours asked for it.
    is_fetched = each.frame is None or each.frame.file == _FETCHED_IN
    return count not in weights or (count in _of_rows(planned) and not is_fetched)


def _of_rows(planned: Planned) -> set[int]:
    """How many elements there are in a microbatch's hidden states, all of them or as many as a device computes with."""
    work, sizes = planned.workload, planned.sizes
    places = work.microbatch_rows * work.plan.row_length * work.config.hidden_size
    rows = sizes["data"] * sizes["fsdp"]
    parts = {1, sizes["sequence"], sizes["tensor"], sizes["sequence"] * sizes["tensor"]}
    return {places // (over * part) for over in (1, rows) for part in parts}


def _repeated(planned: Planned) -> list[str]:
    """Layers' weights that are gathered more often than they should be."""
    tensor = planned.sizes["tensor"]
    layers = planned.workload.config.num_layers
    expected: Counter[int] = Counter()
    for name, spec in llama.specs(planned.workload.config)["layers"].items():
        if len(spec.shape) == 3:
            expected[_whole(planned, ("layers", name), tensor)] += 1
    gathered: defaultdict[int, float] = defaultdict(float)
    for each in _over_rows(planned):
        for array in each.arrays if each.kind == "all-gather" else ():
            gathered[collectives.elements(array)] += each.times
    found = []
    for count, weights in expected.items():
        most = weights * layers * _PASSES * planned.workload.microbatches
        if gathered[count] > most + 0.5:
            times = f"{gathered[count]:,.0f} times; {most:,.0f} are enough"
            found.append(f"weights of {count:,} elements are gathered {times}")
    return found


def _over_rows(planned: Planned) -> list[Collective]:
    return [each for each in planned.train.collectives if {"data", "fsdp"} & set(each.axes)]


def _small(planned: Planned) -> int:
    """As many elements as all vectors of the model have, or a few numbers for each place of a row."""
    vectors = (
        spec.shape for spec in _specs(planned).values() if spec.axes[-1:] == spec.axes[spec.axes[0] == "layers" :]
    )
    return max(sum(map(math.prod, vectors)) + 1024, 4 * planned.workload.plan.row_length)


def _specs(planned: Planned) -> dict[tuple[str, ...], llama.Spec]:
    flat = jax.tree_util.tree_leaves_with_path(
        llama.specs(planned.workload.config), is_leaf=lambda node: isinstance(node, llama.Spec)
    )
    return {tuple(str(key.key) for key in path): spec for path, spec in flat}


def _whole(planned: Planned, name: tuple[str, ...], tensor: int) -> int:
    """The elements of a parameter, of one layer of it, that a device computes with."""
    spec = _specs(planned)[name]
    shape = spec.shape[1:] if name[0] == "layers" else spec.shape
    axes = spec.axes[-len(shape) :]
    split = any(shards.TABLE[axis] == ("tensor",) for axis in axes)
    return math.prod(shape) // (tensor if split else 1)


def _elements(planned: Planned, name: tuple[str, ...]) -> set[int]:
    """How many elements a parameter has when it is sent: whole or as much as a device computes with, of one layer or of
    all, and the part that each device holds."""
    spec = _specs(planned)[name]
    layers = planned.workload.config.num_layers if name[0] == "layers" else 1
    whole = {math.prod(spec.shape) // layers, _whole(planned, name, planned.sizes["tensor"])}
    holders = planned.target.devices // planned.sizes["data"]
    held = math.prod(spec.shape) // holders
    return {*whole, *(count * layers for count in whole), held, held // layers}
