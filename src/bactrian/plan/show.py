"""A plan as a person reads it."""

import math

from bactrian.plan import check, collectives, estimate, planning
from bactrian.plan.planning import Planned
from bactrian.plan.targets import GIB

_BUFFERS = 6
_MOSTLY = 0.5  # of what is computed: more padding than that has a way out named
_FIND = "--search finds one"


def lines(planned: Planned, price: float | None = None) -> list[str]:
    """The plan, line by line."""
    return [*_header(planned), *_padding(planned), *_memory(planned), *_work(planned), *_time(planned, price)]


def summary(planned: Planned, price: float | None = None) -> str:
    """One line of a search: the mesh, how long a step and the stage take, what it costs, what it leaves."""
    shape = " × ".join(f"{axis} {size}" for axis, size in planned.sizes.items() if size > 1) or "one device"
    free = (planned.target.memory - planned.train.total) / GIB
    rows = f"{planned.workload.name}.microbatch_rows={planned.workload.microbatch_rows}"
    seconds = "unknown" if planned.seconds is None else f"{planned.seconds:.2f} s a step"
    if planned.hours is not None:
        seconds += f", {planned.hours:,.1f} hours{_cost(planned.hours * planned.target.chips, price)}"
    return f"{shape}, {rows}, model.remat={planned.recipe.model.remat}: {seconds}, {free:.1f} GiB free"


def misfit(planned: Planned) -> str:
    """Why a plan does not fit: by how much, the three largest buffers, and what would help."""
    kind, step = planned.largest
    largest = "; ".join(_buffer(buffer) for buffer in step.buffers[:3])
    over = (step.total - planned.target.memory) / GIB
    return (
        f"{planned.target.name}: the {kind} step needs {step.total / GIB:.2f} GiB of a device that has "
        f"{planned.target.memory / GIB:.2f}, {over:.2f} too many; the largest: {largest}; "
        f"what would help: {planning.help_for(planned)}"
    )


def _header(planned: Planned) -> list[str]:
    work, model = planned.workload, planned.recipe.model
    mesh = " × ".join(f"{axis} {size}" for axis, size in planned.sizes.items())
    whence = "lengths drawn: the data is not here" if work.drawn else "of the run's own data"
    rows = f"{work.plan.rows} rows of {work.plan.row_length:,} places, {work.microbatch_rows} at once"
    return [
        f"{planned.recipe.name}, {work.name} on {planned.target.describe()}",
        f"  mesh        {mesh}",
        f"  batch       {rows}; {work.places:,.0f} tokens in an update ({whence})",
        f"  computed    {model.compute_dtype}, remat {model.remat}, attention {planned.train.attention}",
    ]


def _padding(planned: Planned) -> list[str]:
    """How much of what is computed is padding, and a way out where most is: rows that examples do not fill."""
    work, share = planned.workload, planned.padding
    said = [f"  padding     {share:.0%} of the positions computed"]
    if share > _MOSTLY:
        filled, name = math.ceil(work.places / work.plan.row_length), work.name
        parts = planned.sizes["data"] * planned.sizes["fsdp"]
        ways = [f"a larger {name}.batch_size", f"{name}.row_length={_shorter(planned)} where no example is longer"]
        if parts > filled:
            ways.insert(0, f"a mesh of fewer than {parts} rows, as with mesh.sequence or mesh.tensor ({_FIND})")
        said.append(
            f"              examples fill {filled} of the {work.plan.rows} rows; less padding: {', '.join(ways)}"
        )
    return said


def _shorter(planned: Planned) -> int:
    """The length of rows that an update's tokens would fill, a multiple of 128."""
    work = planned.workload
    return min(work.plan.row_length, max(128, 128 * math.ceil(work.places / work.plan.rows / 128)))


def _memory(planned: Planned) -> list[str]:
    found = ["", f"memory of a device: {planned.target.memory / GIB:.2f} GiB"]
    for kind, step in planned.steps.items():
        parts = planning.bytes_of(step)
        total = parts.pop("total")
        each = ", ".join(f"{name} {value / GIB:.2f}" for name, value in parts.items())
        verdict = "fits" if total <= planned.target.memory else "does not fit"
        verdict += "" if planned.is_made(kind) else "; the recipe has no prompts to answer"
        found.append(f"  {kind:10}  {total / GIB:6.2f} GiB, {verdict} ({each})")
    found += [f"    {_buffer(buffer)}" for buffer in planned.train.buffers[:_BUFFERS]]
    return found


def _work(planned: Planned) -> list[str]:
    remat = planned.recipe.model.remat
    executed, useful = estimate.executed_flops(planned.workload, remat), estimate.useful_flops(planned.workload)
    found = ["", f"an update: {executed:.3g} operations, {useful:.3g} of them for tokens and not made twice"]
    for each in collectives.summed(planned.train.collectives):
        found.append(f"  {each.kind:18} over {'+'.join(each.axes):16} {each.count:8,.0f} × {each.bytes / 1e9:9.2f} GB")
    return [*found, *(f"  {said}" for said in check.remarks(planned))]


def _time(planned: Planned, price: float | None) -> list[str]:
    lower, seconds, hours = planned.lower, planned.seconds, planned.hours
    if seconds is None or hours is None:
        return ["", f"{planned.workload.updates:,} updates; nothing is known of how fast this hardware is"]
    chip_hours = hours * planned.target.chips
    cost = _cost(chip_hours, price)
    each = ", ".join(f"{name} {value:.2f} s" for name, value in lower._asdict().items())
    return [
        "",
        f"at least    {lower.longest:.2f} s a step, bound by {lower.bound_by} ({each})",
        f"estimated   {seconds:.2f} s a step, MFU {planned.mfu or 0:.1%}; "
        f"{planned.workload.updates:,} updates in {hours:,.1f} hours: "
        f"{hours * planned.target.devices:,.0f} device-hours, {chip_hours:,.0f} chip-hours{cost}",
        f"compiled in {sum(step.seconds for step in planned.steps.values()):.0f} s",
    ]


def _cost(chip_hours: float, price: float | None) -> str:
    return "" if price is None else f", {_dollars(chip_hours * price)} at ${price:,.2f} per chip-hour"


def _dollars(amount: float) -> str:
    return f"${amount:,.0f}" if amount >= 10 else f"${amount:,.2f}"


def _buffer(buffer) -> str:
    count = f"{buffer.count} × " if buffer.count > 1 else ""
    made = f" at {buffer.source}" if buffer.source else ""
    return f"{buffer.bytes / GIB:.2f} GiB {count}{buffer.shape} {buffer.name}{made}"
