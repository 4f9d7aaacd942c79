"""Other settings for the same target: meshes, microbatches and what is computed again, the best that fit.

Compiling takes most of a minute each, so candidates are put in order by what can be worked out without, and compiled
from the best on until enough fit.
"""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice, product

from bactrian.errors import DataError, RecipeError, RunFailed
from bactrian.model import llama
from bactrian.model import mesh as meshes
from bactrian.plan import estimate, expected, planning, workload
from bactrian.plan.hlo_text import Misread
from bactrian.plan.planning import Planned
from bactrian.plan.steps import Kind
from bactrian.plan.targets import Target
from bactrian.plan.workload import Workload
from bactrian.recipe import Mesh, Recipe, StageName

_WANTED = 3
_COMPILED = 8  # at most
_SAMPLED = 200  # updates by which candidates are put in order
_REMATS: tuple[llama.Remat, ...] = ("none", "dots", "full")
_FULL = 0.9  # of the memory: with more in it before anything is computed a candidate is not tried


@dataclass(frozen=True)
class Candidate:
    """A recipe changed in mesh, microbatch and remat, and the seconds of an update that can be worked out.

    alone: those of its arithmetic, memory and interconnect one after the other, which tell equally fast ones apart.
    """

    recipe: Recipe
    seconds: float
    alone: float


def best(recipe: Recipe, name: StageName, target: Target) -> Iterator[Planned]:
    """The best candidates that fit, up to three, each as soon as it is compiled."""
    return islice(_fitting(recipe, name, target), _WANTED)


def _fitting(recipe: Recipe, name: StageName, target: Target) -> Iterator[Planned]:
    found: list[tuple[Mesh, int]] = []
    tried = 0
    for candidate in candidates(recipe, name, target):
        rows = candidate.recipe.stages()[name].microbatch_rows
        if tried == _COMPILED:
            return
        if (candidate.recipe.mesh, rows) in found:
            continue
        tried += 1
        try:
            planned = planning.make(candidate.recipe, name, target, ("train",))
            if planned.fits:
                made: list[Kind] = [kind for kind in planning.kinds_of(recipe, name) if planned.is_made(kind)]
                planned = planning.extended(planned, made)
        except Misread:
            raise  # the others would be as well
        except RunFailed:
            continue
        if planned.fits:
            # What computes more again on the same mesh is no better.
            found.append((candidate.recipe.mesh, rows))
            yield planned


def candidates(recipe: Recipe, name: StageName, target: Target) -> list[Candidate]:
    """All that could fit, in order: the fastest first, of about equally fast ones that with the least to do."""
    whole = workload.lengths(recipe, name)
    some = whole._replace(order=whole.order[:: max(1, len(whole.order) // _SAMPLED)])
    found = [
        candidate for mesh in _meshes(whole.config, target) for candidate in _of_mesh(recipe, name, target, mesh, some)
    ]
    # Three digits: what differs by less does not differ.
    return sorted(found, key=lambda candidate: (float(f"{candidate.seconds:.2e}"), candidate.alone))


def _meshes(config: llama.Config, target: Target) -> Iterator[Mesh]:
    """Meshes over which the model divides, with one copy of it, or as many as leave a power of two for each: powers of
    two along every other axis."""
    powers = [1 << power for power in range(target.devices.bit_length())]
    odd = target.devices // (target.devices & -target.devices)
    for data, sequence, tensor in product(sorted({1, odd}), powers, powers):
        if target.devices % (data * sequence * tensor) == 0:
            mesh = Mesh(data=data, fsdp=-1, sequence=sequence, tensor=tensor)
            with contextlib.suppress(RecipeError):
                meshes.check(meshes.sizes(mesh, target.devices), config)
                yield mesh


def _of_mesh(
    recipe: Recipe, name: StageName, target: Target, mesh: Mesh, given: workload.Lengths
) -> Iterator[Candidate]:
    sizes = meshes.sizes(mesh, target.devices)
    rows, places = meshes.parts(sizes)
    for multiple in (1, 2, 4):
        settings = recipe.stages()[name].model_copy(update={"microbatch_rows": rows * multiple})
        try:
            work = workload.packed(given, name, settings, rows, places)
        except DataError:
            return
        if _held(work, target.devices // sizes["data"]) > _FULL * target.memory or rows * multiple > max(
            work.plan.rows, rows
        ):
            return
        for remat in _REMATS:
            if remat == "full" or _kept(work, remat, target.devices) < target.memory:
                model = recipe.model.model_copy(update={"remat": remat})
                changed = recipe.model_copy(update={"mesh": mesh, "model": model, name: settings})
                lower = _lower(work, remat, target, sizes)
                yield Candidate(changed, estimate.seconds(work, target, lower) or lower.longest, sum(lower))


def _lower(work: Workload, remat: llama.Remat, target: Target, sizes: dict[str, int]) -> estimate.Times:
    """The lower bound of an update, with the collectives that its mesh makes necessary."""
    return estimate.bounds(work, remat, target, sizes["tensor"], list(expected.collectives(work, sizes)))


def _held(work: Workload, devices: int) -> float:
    """Bytes of parameters, moments and gradients on a device; of frozen parameters at the least."""
    weights, bytes_each = estimate.layer_bytes(work.config) / 2 * work.config.num_layers, 2 if work.adapters else 16
    return bytes_each * (weights + 2 * work.config.vocab_size * work.config.hidden_size) / devices


def _kept(work: Workload, remat: llama.Remat, devices: int) -> float:
    """Bytes of the products that are kept from the forward pass, at the least."""
    places = work.microbatch_rows * work.plan.row_length / devices
    return places * 2 * estimate.layer_results(work.config) * work.config.num_layers
