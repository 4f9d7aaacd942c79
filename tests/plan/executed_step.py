"""One update of a recipe's stage, really made on eight simulated devices; a program, because JAX counts devices once.

    executed_step.py RECIPE STAGE KEY=VALUE…

Prints as JSON what the compiled step says of its memory, and the bytes of all arrays that live on the first device.
"""

import json
import os
import sys
from pathlib import Path

os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"

import jax
import jax.numpy as jnp

from bactrian import recipe as recipes
from bactrian.data import packing
from bactrian.model import llama
from bactrian.model import mesh as meshes
from bactrian.plan import workload
from bactrian.stage import Computation, objective_of
from bactrian.train import optimizer, trainer


def main(path: str, stage: str, *overrides: str) -> None:
    recipe = recipes.load(Path(path), overrides)
    ((name, settings),) = recipes.only(recipe, [stage], path).stages().items()
    sizes = meshes.sizes(recipe.mesh, 8)
    mesh = meshes.make(sizes)
    assert mesh is not None
    work = workload.of(recipe, name, *meshes.parts(sizes))
    computation = Computation.of(recipe.model, work.config, mesh).adapted(work.adapters)
    chain = optimizer.chain(settings.optimizer, work.updates)
    given = jax.device_put(llama.init(work.config, jax.random.key(0)), meshes.of_parameters(mesh, work.config))
    state = computation.start(given, chain, jax.random.key(0))
    del given
    plan = work.plan
    rows = packing.empty(plan.rows, plan.row_length, plan.segments, plan.branches)
    batch = computation.placed(trainer.split(rows, work.microbatch_rows))
    step = computation.step(objective_of(settings, computation), chain, state).lower(state, batch).compile()
    live = [
        shard.data.nbytes for array in jax.live_arrays() for shard in array.addressable_shards if not shard.device.id
    ]
    state, metrics = step(state, batch)
    assert jnp.isfinite(metrics["loss"])
    print(json.dumps({"temporaries": step.memory_analysis().temp_size_in_bytes, "live": sum(live)}))


if __name__ == "__main__":
    main(*sys.argv[1:])
