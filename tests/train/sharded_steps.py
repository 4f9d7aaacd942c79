"""Updates over meshes of eight simulated devices, beside one device; a program, because JAX counts its devices once.

    sharded_steps.py 1x8x1x1:none 2x1x2x2:full:lora …

Each argument is a mesh, data × fsdp × sequence × tensor, a remat policy, and whether adapters are trained. For each
one and for SFT and DPO a line of JSON says how far off everything is, relative to the norm of what it should be, and
whether a checkpoint written over the mesh before (over one device at first) was restored over this one.

    sharded_steps.py nine dpo 1x1x2x3:none …

does so with a model of nine heads, for one stage, or both as `sft+dpo`; over the first devices, where a mesh has fewer.

    sharded_steps.py text 2x2x1x2:full 154

prints an update of SFT over a mesh, with rows of 154 places, as XLA has compiled it.

    sharded_steps.py answers 2x2x1x2:none

prints what the engine answers on one device and over a mesh.
"""

import dataclasses
import json
import math
import os
import sys
import tempfile
from pathlib import Path
from typing import Any, cast

os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"

import jax
import numpy as np
import optax

from bactrian.data import packing
from bactrian.data.records import Batch, Example
from bactrian.inference.engine import Engine, Settings
from bactrian.model import llama
from bactrian.model import mesh as meshes
from bactrian.recipe import Mesh, Model
from bactrian.stage import Computation
from bactrian.train import preference, sft, trainer
from bactrian.train.checkpoint import Checkpoints
from bactrian.train.trainer import State

CONFIG = llama.Config(
    vocab_size=50,  # which 4 and 8 do not divide
    hidden_size=16,
    intermediate_size=32,
    num_layers=2,
    num_heads=8,
    num_kv_heads=2,  # fewer than devices share
    head_dim=4,
    max_positions=256,
    rms_norm_eps=1e-5,
    rope_theta=10_000.0,
    qkv_bias=True,
    qk_norm=True,
    output_bias=True,
)
if sys.argv[1:2] == ["nine"]:
    CONFIG = dataclasses.replace(CONFIG, hidden_size=24, intermediate_size=36, num_heads=9, num_kv_heads=3)
LORA = llama.Lora(3, 6.0, ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"))
ROWS, PLACES = 8, 72
# The gradients as the optimizer is given them, kept beside its own state.
KEEP = optax.GradientTransformation(lambda params: params, lambda updates, state, params=None: (updates, updates))
CHAIN = optax.chain(KEEP, optax.clip_by_global_norm(1.0), optax.adamw(1e-3))


def parameters(config: llama.Config = CONFIG) -> llama.Parameters:
    """Of adapters B too, so that there is a gradient for every A."""
    random = np.random.default_rng(0)

    def start(spec: llama.Spec) -> np.ndarray:
        deviation, mean = (0.2, 0.0) if spec.init == "normal" or "rank" in spec.axes else (0.1, 1.0)
        return random.normal(mean, deviation, spec.shape).astype(np.float32)

    return jax.tree.map(start, llama.specs(config), is_leaf=lambda node: isinstance(node, llama.Spec))


def microbatches(own: tuple[int, ...], places: int = PLACES) -> Batch:
    """A batch of random examples: conversations in microbatches, of which the last is padding, or pairs all at once.

    `own` are the lengths of an example's branches.
    """
    random = np.random.default_rng(1)
    examples = []
    for _ in range(20):
        shared = int(random.integers(8, 30))
        starts = tuple(shared + sum(own[:branch]) for branch in range(len(own)))
        length = shared + sum(own)
        learn = random.random(length) < 0.5
        learn[0], learn[-1] = False, True
        examples.append(Example(random.integers(0, CONFIG.vocab_size, length).astype(np.int32), learn, starts))
    lengths = np.array([packing.places(len(each.tokens), each.starts) for each in examples])
    order, branches = [np.arange(len(examples))], max(1, len(own))
    plan = packing.plan(lengths, order, places, ROWS, branches, places)
    references = -random.random((len(examples), branches)).astype(np.float32)
    batch = packing.batch(plan, examples, 0, references)
    if own:
        return trainer.split(batch, plan.rows)
    padding = packing.empty(ROWS, places, plan.segments, branches)
    return trainer.split(Batch(*map(np.concatenate, zip(batch, padding, strict=True))), ROWS)


def started(computation: Computation) -> State:
    config, mesh = computation.config, computation.compute.mesh
    given = jax.tree.map(jax.numpy.asarray, parameters(config))
    if mesh is not None:
        given = jax.device_put(given, meshes.of_parameters(mesh, config))
    adapters = {part: given.pop(part) for part in ("adapters",) if part in given}
    state = computation.start(given, CHAIN, jax.random.key(0))
    return state._replace(parameters=adapters) if adapters else state


def measured(name: str, batch: Batch, computation: Computation) -> tuple[dict, State]:
    """What one update does, with the log-probabilities of its first rows; and the state after it."""
    config, compute = computation.config, computation.compute
    objective = sft.objective(config, compute) if name == "sft" else preference.objective(config, compute, 0.1)
    before = started(computation)
    # SFT's scores come about as DPO's do.
    scores = computation.score(before.whole, Batch(*(column[0] for column in batch))) if name == "dpo" else ()
    state, metrics = computation.step(objective, CHAIN, before)(before, computation.placed(batch))
    gradients, *_ = cast(tuple, state.optimizer)
    found = {"metrics": metrics, "gradients": gradients, "parameters": state.parameters, "scores": scores}
    return jax.tree.map(np.asarray, found), state


def error(found: np.ndarray, expected: np.ndarray) -> float:
    return float(np.linalg.norm(np.float64(found) - expected) / max(np.linalg.norm(expected), 1e-30))


def moved(state: State, number: int, folder: Path, computation: Computation) -> bool:
    """Whether a state that is saved over one mesh is the same when it is restored over another."""
    expected = jax.tree.map(np.asarray, state)
    checkpoints = Checkpoints(folder / str(number), keep_last=1, keep_best=False)
    checkpoints.save(number, state, None)
    like = started(computation)
    restored = checkpoints.restore(number, like)
    checkpoints.close()
    same = jax.tree.map(lambda one, other: np.array_equal(np.asarray(one), other), restored, expected)
    in_place = jax.tree.map(lambda one, other: one.sharding == other.sharding, restored, like)
    return all(jax.tree.leaves((same, in_place)))


def computed_over(argument: str) -> Computation:
    shape, remat, *more = argument.split(":")
    counts = list(map(int, shape.split("x")))
    sizes = meshes.sizes(Mesh(**dict(zip(meshes.AXES, counts, strict=True))), math.prod(counts))
    meshes.check(sizes, CONFIG)
    settings: dict[str, Any] = {"source": "", "compute_dtype": "float32", "remat": remat}
    mesh = meshes.make(sizes, jax.devices()[: math.prod(counts)])
    return Computation.of(Model(**settings), CONFIG, mesh).adapted(LORA if more else None)


def compiled(computation: Computation, places: int) -> str:
    mesh = computation.compute.mesh
    assert mesh is not None

    def abstract(tree: Any, shardings: Any) -> Any:
        return jax.tree.map(lambda a, where: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=where), tree, shardings)

    objective, batch = sft.objective(CONFIG, computation.compute), microbatches((), places)
    state = jax.eval_shape(lambda given: trainer.start(given, CHAIN), parameters())
    given = abstract(state, meshes.of_state(mesh, CONFIG, state)), abstract(batch, meshes.of_batch(mesh, batch))
    return cast(Any, computation.step(objective, CHAIN, state)).lower(*given).compile().as_text()


def compare(arguments: list[str], stages: str = "sft+dpo") -> None:
    jax.config.update("jax_disable_most_optimizations", True)
    batches = {name: microbatches((9, 6) if name == "dpo" else ()) for name in stages.split("+")}
    single = Computation.of(Model(source="", compute_dtype="float32"), CONFIG)
    alone, states = {}, {}
    with tempfile.TemporaryDirectory() as folder:
        for number, argument in enumerate(arguments):
            computation = computed_over(argument)
            lora = computation.config.lora
            for name, batch in batches.items():
                if (name, lora) not in alone:
                    alone[name, lora], states[name, lora] = measured(name, batch, single.adapted(lora))
            is_moved = moved(states["dpo", lora], number, Path(folder), computation)
            for name, batch in batches.items():
                found, states[name, lora] = measured(name, batch, computation)
                errors = jax.tree.map(error, found, alone[name, lora])
                named = {jax.tree_util.keystr(path): off for path, off in jax.tree_util.tree_leaves_with_path(errors)}
                print(json.dumps({"mesh": argument, "stage": name, "errors": named, "moved": is_moved}), flush=True)


def answers(argument: str) -> list[list[list[int]]]:
    """Answers of the engine, on one device and over the mesh, to prompts that partly begin alike."""
    random = np.random.default_rng(3)
    prompts = [random.integers(0, CONFIG.vocab_size, length) for length in (3, 40, 17)]
    prompts += [np.concatenate([prompts[1], prompt]) for prompt in prompts]
    mesh = computed_over(argument).compute.mesh
    assert mesh is not None
    placed = jax.device_put(parameters(), meshes.of_parameters(mesh, CONFIG))
    alone = Engine(CONFIG, jax.tree.map(jax.numpy.asarray, parameters()))
    engines = alone, Engine(CONFIG, placed, mesh=mesh, max_rows=1)  # of which the mesh makes a row for each part
    settings = Settings(max_tokens=12, temperature=1.0)  # drawn: what is likeliest of a random model hardly varies
    return [[answer.tokens.tolist() for answer in engine.generate(prompts, settings)] for engine in engines]


if __name__ == "__main__":
    if sys.argv[1] == "nine":
        compare(sys.argv[3:], sys.argv[2])
    elif sys.argv[1] == "answers":
        print(json.dumps(answers(sys.argv[2])))
    elif sys.argv[1] == "text":
        print(compiled(computed_over(sys.argv[2]), int(sys.argv[3])))
    else:
        compare(sys.argv[1:])
