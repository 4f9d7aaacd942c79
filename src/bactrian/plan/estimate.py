"""How long a step takes: what it cannot be faster than, and what trainers of its kind have come to.

The lower bound is a roofline (Williams et al. 2009): the longest of the times that the arithmetic, the traffic with HBM
and the collectives would take alone, each at its vendor's peak. The estimate takes the arithmetic at the share of the
peak that published runs on the same chip reached, and is never below the lower bound.

MFU counts a model's own operations (Chowdhery et al. 2022, appendix B) of places that hold tokens: what is computed a
second time, or of padding, is not progress.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

from bactrian.model import llama
from bactrian.plan.collectives import Collective
from bactrian.plan.targets import CHIPS, Chip, Target
from bactrian.plan.workload import Workload

_COMPUTE_BYTES = 2  # of a bfloat16
_MASTER_BYTES = 4  # of a parameter, its gradient and each moment


class Times(NamedTuple):
    """Seconds that one update needs at least, of each kind."""

    compute: float
    memory: float
    interconnect: float

    @property
    def bound_by(self) -> str:
        return max(self._fields, key=lambda name: getattr(self, name))

    @property
    def longest(self) -> float:
        return max(self)


class Published(NamedTuple):
    """A run that somebody published: its model, the chip it ran on, its MFU, and where that is said.

    comparable: whether it tells what to expect: a run that its own authors have since made much faster does not.
    """

    system: str
    model: str
    chip: str
    mfu: float
    source: str
    comparable: bool = True


_MAXTEXT = "github.com/AI-Hypercomputer/maxtext, README"
_LEVANTER = "github.com/stanford-crfm/levanter, README"
_TITAN = "github.com/pytorch/torchtitan, docs/performance.md"
PUBLISHED = (
    Published("MaxText", "Llama 2 70B", "v5p", 0.654, _MAXTEXT),
    Published("MaxText", "32B", "v5p", 0.7147, _MAXTEXT),
    Published("MaxText", "Llama 2 70B", "v6e", 0.438, _MAXTEXT),
    Published("MaxText", "Llama 3.1 8B", "v6e", 0.4546, _MAXTEXT),
    Published("MaxText", "Llama 3.1 70B", "v6e", 0.5033, _MAXTEXT),
    Published("MaxText", "Llama 3.1 405B", "v6e", 0.3855, _MAXTEXT),
    Published("MaxText", "16B", "v5e", 0.611, _MAXTEXT),
    Published("MaxText", "22B", "v4", 0.567, _MAXTEXT),
    Published("Levanter", "6.7B on v3-256", "v3", 0.473, _LEVANTER),
    Published("Levanter", "13B on v3-256", "v3", 0.544, _LEVANTER),
    Published("Levanter", "20B on v3-256", "v3", 0.509, _LEVANTER),
    Published("Levanter", "65B on v3-256", "v3", 0.446, _LEVANTER),
    Published("torchtitan", "Llama 3.1 8B on 8", "h100", 0.33, _TITAN),
    Published("torchtitan", "Llama 3.1 8B on 8, compiled", "h100", 0.39, _TITAN),
    # 652 tokens per second and GPU, times 6 · 70.6e9 + 12 · 80 · 8192² operations of a token, of 989e12.
    Published("torchtitan", "Llama 3.1 70B on 256", "h100", 0.322, _TITAN),
    # The same authors say about 0.32 of a later version (#1720).
    Published("open-instruct", "7B DPO on 16", "h100", 0.2248, "github.com/allenai/open-instruct/pull/1466", False),
)


def share_of_peak(chip: Chip, without: Published | None = None) -> float | None:
    """The share of its peak that published runs on a chip reached, their geometric mean, leaving one out.

    Of a chip that nobody published a run on, what the chips of the same vendor reached, each counted once. None for a
    vendor of whom nothing is known.
    """
    known = [run for run in PUBLISHED if run.comparable and run != without]
    own = [run.mfu for run in known if run.chip == chip.name]
    if own:
        return _mean(own)
    alike = [run for run in known if CHIPS[run.chip].platform == chip.platform]
    chips = {run.chip for run in alike}
    return _mean([_mean([run.mfu for run in alike if run.chip == name]) for name in chips]) if chips else None


def model_flops(config: llama.Config, places: float, pairs: float, learnt: float) -> float:
    """Operations of one forward pass: products with weights, of queries with keys they see and their values, logits."""
    layers = config.num_layers
    attended = 4 * pairs * config.num_heads * config.head_dim * layers
    return 2 * places * _layer_weights(config) * layers + attended + 2 * learnt * config.vocab_size * config.hidden_size


def useful_flops(workload: Workload) -> float:
    """Of one update, forward and backward, over places that hold tokens."""
    return _update_flops(workload, workload.places)


def forward_share(workload: Workload) -> float:
    """What part of an update's operations a forward pass is: a third, more where most of the model is frozen."""
    forward = model_flops(workload.config, workload.places, workload.pairs, workload.places)
    return forward / useful_flops(workload)


def executed_flops(workload: Workload, remat: llama.Remat) -> float:
    """Of one update, padding and what is computed again among them."""
    done = _update_flops(workload, workload.computed_places)
    if remat == "full":
        done += model_flops(workload.config, workload.computed_places, workload.pairs, 0)
        done += 2 * workload.computed_places * _adapter_weights(workload)
    # A preference's logits are made once more for the backward pass.
    again = model_flops(workload.config, 0, 0, workload.places) if workload.branches > 1 else 0
    return done + again


def _update_flops(workload: Workload, places: float) -> float:
    """Forward, and backward: every product with what is trained twice more, with what is frozen once."""
    config = workload.config
    products, attention = model_flops(config, places, 0, workload.places), model_flops(config, 0, workload.pairs, 0)
    adapters = 2 * places * _adapter_weights(workload)
    return passes(workload) * products + 3 * (attention + adapters)


def passes(workload: Workload) -> int:
    """The products of an update with each weight of the model; of a frozen one there is no gradient."""
    return 3 if workload.adapters is None else 2


def _adapter_weights(workload: Workload) -> int:
    adapters = llama.specs(workload.trained).get("adapters", {})
    return sum(math.prod(spec.shape) for spec in adapters.values())


def bounds(workload: Workload, remat: llama.Remat, target: Target, tensor: int, sent: Sequence[Collective]) -> Times:
    """The least seconds of one update, from its operations, its traffic with HBM and its collectives.

    tensor: over how many devices a product is shared out, each holding its part of the weights while it computes.
    """
    chip, devices = target.chip, target.devices
    compute = executed_flops(workload, remat) / devices / chip.flops
    memory = _memory_bytes(workload, remat, devices, tensor) / chip.bandwidth
    interconnect = sum(_seconds(each, target) for each in sent)
    return Times(compute, memory, interconnect)


def seconds(workload: Workload, target: Target, lower: Times) -> float | None:
    """The estimate of an update: operations over all places, padding too, at the share of the peak that is reached."""
    share = share_of_peak(target.chip)
    if share is None or not math.isfinite(target.chip.flops):
        return None
    flops = _update_flops(workload, workload.computed_places)
    return max(flops / target.devices / target.chip.flops / share, lower.longest)


def _memory_bytes(workload: Workload, remat: llama.Remat, devices: int, tensor: int) -> float:
    """What one device reads and writes at least: weights for each product, inputs and results of each product once,
    gradients added up for each microbatch, and at the end parameter, gradient and two moments."""
    config = workload.config
    weights = _layer_weights(config) * config.num_layers
    products = passes(workload) + (remat == "full")
    trained = weights + 2 * config.vocab_size * config.hidden_size
    own = (trained if workload.adapters is None else _adapter_weights(workload)) / devices
    read = products * weights / tensor * _COMPUTE_BYTES * workload.microbatches
    moved = products * workload.computed_places / devices * _layer_widths(config) * config.num_layers * _COMPUTE_BYTES
    added = 3 * own * _MASTER_BYTES * workload.microbatches
    return read + moved + added + 7 * own * _MASTER_BYTES


def _seconds(collective: Collective, target: Target) -> float:
    """The least time of all runs of a collective: over the links inside a node, and the network between nodes."""
    chip, group = target.chip, collective.group
    sent = collective.sent * collective.times
    inside = sent / chip.links
    nodes = {device // target.node for device in group}
    if len(nodes) < 2:
        return inside
    # The ring crosses from node to node over the network ports of all its devices there.
    here = len(group) / len(nodes)
    across = sent * (len(nodes) - 1) / len(nodes) * len(group) / max(len(group) - 1, 1) / here
    return max(inside, across / chip.network)


def layer_bytes(config: llama.Config) -> int:
    """Bytes of one layer's weights as they are computed with."""
    return _COMPUTE_BYTES * _layer_weights(config)


def layer_results(config: llama.Config) -> int:
    """The results of one layer's products, for one place."""
    return sum(shape[1] for shape in _matrices(config))


def _layer_weights(config: llama.Config) -> int:
    """The weights of one layer's products."""
    return sum(math.prod(shape) for shape in _matrices(config))


def _layer_widths(config: llama.Config) -> int:
    """The inputs and the results of one layer's products, for one place."""
    return sum(map(sum, _matrices(config)))


def _matrices(config: llama.Config) -> list[tuple[int, ...]]:
    layer = llama.specs(config)["layers"].values()
    return [spec.shape[1:] for spec in layer if len(spec.shape) == 3]


def _mean(values: Sequence[float]) -> float:
    return math.exp(sum(map(math.log, values)) / len(values))
