"""A plan: what a recipe's steps need on a target, whether that fits, what it costs in time, and what would help."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from bactrian.errors import RecipeError
from bactrian.model import mesh as meshes
from bactrian.plan import collectives, compile, estimate, targets, versions, workload
from bactrian.plan.compile import Measured
from bactrian.plan.estimate import Times
from bactrian.plan.steps import Job, Kind
from bactrian.plan.targets import Target
from bactrian.plan.workload import Workload
from bactrian.prepare import check_places
from bactrian.recipe import DPO, Recipe, StageName

_SHOWN = 12  # buffers, the largest
_HELD = 0.9  # of the memory: where parameters and optimizer take more, what is computed hardly matters
_SAVED_IN_INT8 = 0.73  # of the moments' bytes: what stays is a quarter of them, and the blocks' scales


@dataclass(frozen=True)
class Planned:
    """One stage of a recipe on a target, its steps compiled."""

    recipe: Recipe
    target: Target
    sizes: dict[str, int]
    workload: Workload
    steps: dict[Kind, Measured]

    @property
    def train(self) -> Measured:
        return self.steps["train"]

    def is_made(self, kind: Kind) -> bool:
        """Whether the run makes a step: it decodes where its recipe has prompts to answer."""
        return kind != "decode" or self.recipe.evaluation.prompts is not None

    @property
    def fits(self) -> bool:
        """Whether every step that the run makes fits into a device's memory."""
        return self.largest[1].total <= self.target.memory

    @property
    def largest(self) -> tuple[Kind, Measured]:
        """The step that needs most memory, of those that the run makes."""
        made: list[tuple[Kind, Measured]] = [(kind, step) for kind, step in self.steps.items() if self.is_made(kind)]
        return max(made, key=lambda item: item[1].total)

    @property
    def lower(self) -> Times:
        """The lower bound of an update."""
        remat, tensor = self.recipe.model.remat, self.sizes["tensor"]
        return estimate.bounds(self.workload, remat, self.target, tensor, self.train.collectives)

    @property
    def seconds(self) -> float | None:
        """The estimate of an update; None for hardware on which no run was published."""
        return estimate.seconds(self.workload, self.target, self.lower)

    @property
    def mfu(self) -> float | None:
        """Of places that hold tokens."""
        if self.seconds is None:
            return None
        return estimate.useful_flops(self.workload) / (self.seconds * self.target.devices * self.target.chip.flops)

    @property
    def padding(self) -> float:
        """What share of the positions that an update computes hold no token."""
        return 1 - self.workload.places / self.workload.computed_places

    @property
    def hours(self) -> float | None:
        """Of all updates, and for DPO of the reference pass, which goes forward through one epoch."""
        if self.seconds is None:
            return None
        settings = self.recipe.stages()[self.workload.name]
        passes = self.workload.updates
        if isinstance(settings, DPO):
            passes += self.workload.updates / settings.epochs * estimate.forward_share(self.workload)
        return self.seconds * passes / 3600

    def to_json(self, price: float | None = None) -> dict[str, Any]:
        """All of it, for machines; `price` is of a chip for an hour."""
        hours, lower = self.hours, self.lower
        chip_hours = None if hours is None else hours * self.target.chips
        work, known = self.workload, self.lower.longest > 0
        return {
            "target": self.target.name,
            "stage": work.name,
            "devices": self.target.devices,
            "chips": self.target.chips,
            "mesh": self.sizes,
            "fits": self.fits,
            "hbm_bytes": None if self.target.chip.platform == "cpu" else self.target.memory,
            "bytes_per_device": bytes_of(self.train),
            "buffers": [buffer._asdict() for buffer in (self.train if self.fits else self.largest[1]).buffers[:_SHOWN]],
            "other_steps": {kind: bytes_of(step) for kind, step in self.steps.items() if kind != "train"},
            "flops_per_step": estimate.executed_flops(work, self.recipe.model.remat),
            "useful_flops_per_step": estimate.useful_flops(work),
            "collectives": [each._asdict() for each in collectives.summed(self.train.collectives)],
            "lower_bound": lower._asdict() if known else None,
            "bound_by": lower.bound_by if known else None,
            "seconds_per_step": self.seconds,
            "mfu": self.mfu,
            "steps": work.updates,
            "rows": work.plan.rows,
            "row_length": work.plan.row_length,
            "microbatch_rows": work.microbatch_rows,
            "microbatches": work.microbatches,
            "tokens_per_step": work.places,
            "padding": self.padding,
            "lengths": "drawn" if work.drawn else "real",
            "hours": hours,
            "device_hours": None if hours is None else hours * self.target.devices,
            "chip_hours": chip_hours,
            "cost": None if price is None or chip_hours is None else chip_hours * price,
            "compile_seconds": sum(step.seconds for step in self.steps.values()),
            "attention": self.train.attention,
            "jax": versions.installed(),
            "jax_tested": versions.is_tested(versions.installed()),
            "same_as_run": True,  # the steps are built by `Computation.of`, which a run asks for the same device
        }


def make(recipe: Recipe, name: StageName, target: Target, kinds: tuple[Kind, ...]) -> Planned:
    """Compile a stage's steps for a target. Raises `RecipeError` where model or rows do not divide over the mesh."""
    sizes = meshes.sizes(recipe.mesh, target.devices)
    work = workload.of(recipe, name, *meshes.parts(sizes))
    meshes.check(sizes, work.config)
    return extended(Planned(recipe, target, sizes, work, {}), kinds)


def extended(planned: Planned, kinds: Sequence[Kind]) -> Planned:
    """A plan with these steps too; what it has is not compiled again."""
    steps = dict(planned.steps)
    for kind in kinds:
        if kind not in steps:
            job = Job(kind, planned.recipe, planned.workload, planned.target, planned.sizes)
            steps[kind] = compile.measure(job)
    return replace(planned, steps=steps)


def kinds_of(recipe: Recipe, name: StageName) -> tuple[Kind, ...]:
    """The steps of a stage: updates, for DPO the reference pass, and answers decoded."""
    return ("train", "reference", "decode") if isinstance(recipe.stages()[name], DPO) else ("train", "decode")


def bytes_of(step: Measured) -> dict[str, float]:
    """A step's bytes on one device by what they are; they add up to `total`."""
    return {**step.arguments, "temporaries": step.total - sum(step.arguments.values()), "total": step.total}


def help_for(planned: Planned) -> str:
    """The setting that would most likely make a step fit that does not; one that a run takes."""
    kind, step = planned.largest
    recipe, name = planned.recipe, planned.workload.name
    rows, _ = meshes.parts(planned.sizes)
    if kind == "decode":
        wider = _wider(planned, "tensor")
        return wider or f"evaluation.max_tokens, which is {recipe.evaluation.max_tokens}, lower, for a smaller cache"
    held = sum(step.arguments.values())
    if held > _HELD * planned.target.memory:
        return _less_held(planned, step, held)
    if recipe.model.remat != "full":
        return "model.remat=full, which computes activations again in place of keeping them"
    if planned.workload.microbatch_rows > rows:
        return f"{name}.microbatch_rows={rows}, fewer rows at once"
    shorter = f"{name}.row_length, which is {planned.workload.plan.row_length}, lower, or a target with more memory"
    return _wider(planned, "sequence") or shorter


def _less_held(planned: Planned, step: Measured, held: float) -> str:
    """What would make parameters and optimizer smaller, which alone fill the memory."""
    recipe, stage = planned.recipe, planned.recipe.stages()[planned.workload.name]
    if planned.sizes["data"] > 1:
        return "mesh.data=1 and mesh.fsdp=-1, so that one copy of the model is spread over all devices"
    smaller = []
    if stage.optimizer.moments == "float32":
        smaller.append(
            (f"{planned.workload.name}.optimizer.moments=int8", _SAVED_IN_INT8 * step.arguments.get("optimizer", 0))
        )
    if recipe.model.parameters == "float32":
        smaller.append(("model.parameters=bfloat16", 0.5 * step.arguments.get("parameters", 0)))
    needed, settings = float(step.total), []
    for setting, saved in smaller:
        if saved:
            settings.append(setting)
            needed -= saved
        if needed <= planned.target.memory:
            return f"{' and '.join(settings)}, with which it takes about {needed / targets.GIB:.1f} GiB"
    also = f", and with {' and '.join(settings)} about {needed / targets.GIB:.1f} GiB are needed" if settings else ""
    return f"a larger target: what must stay in memory alone takes {held / targets.GIB:.1f} GiB{also}"


def _wider(planned: Planned, axis: str) -> str | None:
    """Twice as many devices along an axis, taken from fsdp, where model and rows divide over them."""
    size, mesh = 2 * planned.sizes[axis], planned.recipe.mesh
    settings = [f"mesh.{axis}={size}"]
    changed = mesh.model_copy(update={axis: size})
    if -1 not in (changed.data, changed.fsdp, changed.sequence, changed.tensor):
        changed = changed.model_copy(update={"fsdp": -1})
        settings.append("mesh.fsdp=-1")
    try:
        sizes = meshes.sizes(changed, planned.target.devices)
        meshes.check(sizes, planned.workload.config)
        check_places(planned.workload.name, planned.recipe.stages()[planned.workload.name], meshes.parts(sizes)[1])
    except RecipeError:
        return None
    what = "the places of a row" if axis == "sequence" else "heads, and with them the cache,"
    return f"{' and '.join(settings)}, which shares {what} among more devices"
