"""What a compiled step must not send: over the axes data and fsdp nothing but weights, their gradients and sums.

With parameters sharded and activations left to it, XLA may add up activations where it should gather weights: the same
numbers, many times the traffic. So every collective over data or fsdp has to carry a parameter, or a part of one, or be
small; and of each layer's weights there is one gather forward and one backward for every microbatch, no more. Where
there is not one for each layer that lies split, the text was misread, and nothing found in it counts.
"""

import math
from collections import Counter, defaultdict
from typing import Any, NamedTuple

import jax
from jax.sharding import AbstractMesh

from bactrian.model import llama, shards
from bactrian.plan import collectives, hlo
from bactrian.plan.collectives import Collective
from bactrian.plan.planning import Planned
from bactrian.plan.steps import Kind

_WHOLE_NUMBERS = ("s32", "u32", "s8", "u8", "pred")
_FETCH = ("model/shards.py", "Share.fetch")  # of weights, and of their gradients on the way back
_HARDLY_ANY = 5e6  # bytes: what is said in hundredths of a GB would be 0.00
_PASSES: dict[Kind, int] = {"train": 2, "reference": 1}  # a backward pass computes from what it gathers again


class _Weight(NamedTuple):
    """How many elements a matrix has, in one layer where it is a layer's, and in how many layers it is.

    whole: in all; fetched: as a device computes with it; held: as a device keeps it.
    """

    whole: int
    fetched: int
    held: int
    layers: int

    @property
    def parts(self) -> tuple[int, int, int]:
        return self.whole, self.fetched, self.held

    @property
    def is_split(self) -> bool:
        return self.held < self.fetched


def violations(planned: Planned) -> list[str]:
    """What is not as it should be in an update and in the reference pass, one line each."""
    return [
        f"the {kind} step: {said}"
        for kind in _PASSES
        if kind in planned.steps
        for said in (*_strangers(planned, kind), *_gathers(planned, kind))
    ]


def remarks(planned: Planned) -> list[str]:
    """What costs more than it has to by the compiler's choice, one line each.

    A step says that gradients are to be scattered. Over groups of chips that lie along several dimensions of the torus
    XLA's compiler for TPUs mostly adds them up whole, at twice the traffic, and each device then keeps its part; and it
    gathers small weights by adding up what is zero but for each device's part.
    """
    weights = [weight for weight in _weights(planned, "train").values() if weight.is_split]
    whole = {count for weight in weights for count in (weight.fetched, weight.fetched * weight.layers)}
    in_vain = 0.0
    for each in planned.train.collectives:
        if each.kind == "all-reduce" and set(shards.TABLE["embed"]) & set(each.axes):
            size = sum(hlo.size(array) for array in each.arrays if collectives.elements(array) in whole)
            in_vain += size * (1 - 1 / len(each.group)) * each.times
    if in_vain < _HARDLY_ANY:
        return []
    return [f"{in_vain / 1e9:.2f} GB of it in vain: weights and gradients that the compiler adds up whole"]


def _strangers(planned: Planned, kind: Kind) -> list[str]:
    weights = _weights(planned, kind).values()
    counts = {count * many for weight in weights for count in weight.parts for many in (1, weight.layers)}
    found = []
    for each in filter(_is_over_rows, planned.steps[kind].collectives):
        strange = [array for array in each.arrays if _is_strange(planned, each, array, counts)]
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
    return count not in weights or (count in _of_rows(planned) and not _is_fetch(each))


def _is_fetch(each: Collective) -> bool:
    """Whether weights are fetched, or their gradients sent back, for all that is known."""
    return each.frame is None or each.frame[:2] == _FETCH


def _of_rows(planned: Planned) -> set[int]:
    """How many elements there are in a microbatch's hidden states, all of them or as many as a device computes with."""
    work, sizes = planned.workload, planned.sizes
    places = work.microbatch_rows * work.plan.row_length * work.config.hidden_size
    rows = sizes["data"] * sizes["fsdp"]
    parts = {1, sizes["sequence"], sizes["tensor"], sizes["sequence"] * sizes["tensor"]}
    return {places // (over * part) for over in (1, rows) for part in parts}


def _gathers(planned: Planned, kind: Kind) -> list[str]:
    """Layers' weights that are gathered more often than they should be, or not even once forward."""
    microbatches = planned.workload.microbatches if kind == "train" else 1
    layers: Counter[int] = Counter()
    split: set[int] = set()
    for (first, *_), weight in _weights(planned, kind).items():
        if first in ("layers", "adapters"):
            layers[weight.fetched] += weight.layers
            split |= {weight.fetched} if weight.is_split else set()
    gathered: defaultdict[int, float] = defaultdict(float)
    perhaps: defaultdict[int, float] = defaultdict(float)
    for each in planned.steps[kind].collectives:
        # The compiler may write one as an all-reduce, of parts that are zero where they are another's, and not say so;
        # and put several together under the name of one of them.
        is_gather = each.kind == "all-gather" or each.op_name.endswith("/all_gather")
        is_of_weights = is_gather and (_is_over_rows(each) or ("sequence" in each.axes and _is_fetch(each)))
        if is_gather or (not each.op_name and set(shards.TABLE["embed"]) & set(each.axes)):
            for array in each.arrays:
                (gathered if is_of_weights else perhaps)[collectives.elements(array)] += each.times
    found = []
    for count, once in layers.items():
        most = once * _PASSES[kind] * microbatches
        said, read = f"weights of {count:,} elements are gathered", gathered[count] + perhaps[count]
        if gathered[count] > most + 0.5:
            found.append(f"{said} {gathered[count]:,.0f} times; {most:,.0f} are enough")
        elif count in split and read < once - 0.5:
            found.append(f"{said} {read:,.0f} times; {once:,} are needed at least: the compiled text was misread")
    return found


def _is_over_rows(each: Collective) -> bool:
    return bool(set(shards.TABLE["batch"]) & set(each.axes))


def _small(planned: Planned) -> int:
    """As many elements as all vectors of the model have, or a few numbers for each place of a row, or one for each
    answer."""
    work, specs = planned.workload, _specs(planned.workload.config).values()
    vectors = (spec.shape for spec in specs if spec.axes[-1:] == spec.axes[spec.axes[0] == "layers" :])
    answers = work.microbatch_rows * work.plan.segments * work.plan.branches
    return max(sum(map(math.prod, vectors)) + 1024, 4 * work.plan.row_length, answers)


def _specs(config: llama.Config) -> dict[tuple[str, ...], llama.Spec]:
    flat = jax.tree_util.tree_leaves_with_path(llama.specs(config), is_leaf=lambda node: isinstance(node, llama.Spec))
    return {tuple(str(key.key) for key in path): spec for path, spec in flat}


def _weights(planned: Planned, kind: Kind) -> dict[tuple[str, ...], _Weight]:
    """The matrices over the plan's mesh, which are what is split over its rows; vectors are not. Adapters are of an
    update alone."""
    config = planned.workload.trained if kind == "train" else planned.workload.config
    mesh: Any = AbstractMesh(tuple(planned.sizes.values()), tuple(planned.sizes))
    found = {}
    for name, spec in _specs(config).items():
        if not {"embed", "rank"} & set(spec.axes):
            continue
        splits = shards.splits(mesh, spec.axes, llama.share(config, None).counts)
        parts = {axis: shards.size(mesh, over) for axis, over in zip(spec.axes, splits, strict=True)}
        layers = spec.shape[0] if spec.axes[0] == "layers" else 1
        whole = math.prod(spec.shape) // layers
        held = whole // math.prod(parts.values())
        found[name] = _Weight(whole, held * parts.get("embed", 1), held, layers)
    return found
