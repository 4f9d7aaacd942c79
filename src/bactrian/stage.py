"""One stage of a run, SFT or DPO: reference, gates, training from the start or the last checkpoint, the end."""

import math
import os
import platform
import time
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
from jax.sharding import Mesh

from bactrian import progress
from bactrian.data import packing
from bactrian.data.records import Batch
from bactrian.errors import Diverged
from bactrian.hosts import ALONE, Hosts
from bactrian.model import attention, llama, lora
from bactrian.model import mesh as meshes
from bactrian.prepare import Examples, Prepared
from bactrian.recipe import DPO, Model, Stage
from bactrian.run import Run
from bactrian.tracking import Tracker
from bactrian.train import gates, optimizer, preference, reference, scores, sft, trainer
from bactrian.train.checkpoint import Checkpoints
from bactrian.train.scores import Score
from bactrian.train.trainer import Objective, Parameters, State, Update


@dataclass(frozen=True)
class Computation:
    """A model's shape, how and where it is computed, and its compiled score: what every stage of a run shares."""

    config: llama.Config
    compute: llama.Compute
    score: Score
    hosts: Hosts = ALONE

    @classmethod
    def of(
        cls,
        settings: Model,
        config: llama.Config,
        mesh: Mesh | None = None,
        hosts: Hosts = ALONE,
        device: Any = None,
    ) -> "Computation":
        """What a recipe asks for, over a mesh or on one device; which one it is decides how attention is computed."""
        suited = attention.suited(device or (jax.devices() if mesh is None else mesh.devices.flat)[0])
        compute = llama.Compute(settings.compute_dtype, settings.remat, suited, mesh)
        return cls(config, compute, scores.compiled(config, compute), hosts)

    def adapted(self, adapters: llama.Lora | None) -> "Computation":
        """The same with adapters, if there are any."""
        if adapters is None:
            return self
        config = replace(self.config, lora=adapters)
        return replace(self, config=config, score=scores.compiled(config, self.compute))

    def start(self, parameters: Parameters, chain: optax.GradientTransformation, key: jax.Array | None = None) -> State:
        """The state before the first update, which takes the parameters over; adapters are drawn by the key."""
        begin, mesh = partial(trainer.start, optimizer=chain), self.compute.mesh
        trained, frozen = parameters, None
        if self.config.lora is not None:
            assert key is not None, "adapters start at random"
            trained, frozen = lora.start(self.config, key, mesh), parameters
        shardings = mesh and meshes.of_state(mesh, self.config, jax.eval_shape(begin, trained))
        return jax.jit(begin, out_shardings=shardings, donate_argnums=0)(trained)._replace(frozen=frozen)

    def step(self, objective: Objective, chain: optax.GradientTransformation, state: State) -> trainer.Step:
        """The update, compiled; `state` gives shapes and dtypes."""
        step = trainer.make_step(objective, chain)
        if self.compute.mesh is None:
            return jax.jit(step, donate_argnums=0)
        shardings = meshes.of_state(self.compute.mesh, self.config, state)
        return jax.jit(step, donate_argnums=0, out_shardings=(shardings, meshes.sharding(self.compute.mesh, ())))

    def placed(self, batch: Batch) -> Batch:
        """A batch where it is computed."""
        return batch if self.compute.mesh is None else meshes.place(self.compute.mesh, batch)


def logprobs(
    computation: Computation,
    parameters: Parameters,
    examples: Examples,
    rows: int,
    weights: str,
    cache: Path,
    title: str,
) -> np.ndarray:
    """Log-probability of every branch of some examples, float32 [examples, K]; kept on disk under all it depends on.

    `weights` is the fingerprint of `parameters`.
    """
    plan, corpus = examples.plan, examples.corpus
    kept_as = str(parameters["final_norm"].dtype)
    parts = [weights, kept_as, corpus.key, plan.updates, plan.row_length, plan.segments, rows]
    # The same sums come out in other last bits on another machine, and the first step's gate wants them equal.
    machine = [jax.__version__, jax.devices()[0].device_kind, platform.machine(), os.cpu_count()]
    parts += [computation.config, computation.compute, *machine, os.environ.get("XLA_FLAGS")]
    hosts = computation.hosts
    path = cache / "references" / f"{hosts.agree('the key of the reference', lambda: reference.key(*parts))}.npy"
    with progress.bar(title, len(corpus)) as bar, hosts.in_order():

        def advance(done: int, total: int) -> None:
            bar.to(done, total)
            if hosts.should_stop():
                raise hosts.stopped(f"in the pass over {title}, which is kept so far; the same command goes on with it")

        return reference.column(path, plan, corpus, rows, computation.score, parameters, advance, hosts)


def adapters_of(settings: Stage) -> llama.Lora | None:
    """The adapters that a stage trains, if not the model."""
    return settings.lora and llama.Lora(**settings.lora.model_dump())


def objective_of(settings: Stage, computation: Computation) -> Objective:
    """What a stage minimizes."""
    if isinstance(settings, DPO):
        return preference.objective(computation.config, computation.compute, settings.beta)
    return sft.objective(computation.config, computation.compute)


@dataclass(frozen=True)
class Heldout:
    """A stage's held-out examples, and for DPO their reference log-probabilities."""

    prepared: Prepared
    computation: Computation
    references: np.ndarray | None

    def measure(self, parameters: Parameters, may_stop: bool = False) -> dict[str, float] | None:
        """The held-out loss, for DPO accuracy and margin too, and what was counted.

        With `may_stop` None where the run is told to stop before all is computed.
        """
        examples, settings = self.prepared.heldout, self.prepared.settings
        assert examples is not None
        values = np.zeros((len(examples.corpus), examples.plan.branches), np.float32)
        for update in range(len(examples.plan.updates)):
            if may_stop and self.computation.hosts.should_stop():
                return None
            microbatches = reference.microbatches(examples.plan, examples.corpus, update, self.prepared.microbatch_rows)
            for example, sums in scores.of_examples(self.computation.score, parameters, microbatches):
                values[example] = sums
        counts = {"tokens": int(examples.places.sum()), "learned_tokens": int(examples.learned.sum())}
        if not isinstance(settings, DPO):
            return {"loss": float(-values.sum() / examples.learned.sum()), **counts}
        assert self.references is not None
        losses, margins = preference.dpo(values, self.references, settings.beta)
        accuracy = float(np.mean(np.asarray(margins) > 0))
        return {"loss": float(losses.mean()), "accuracy": accuracy, "margin": float(margins.mean()), **counts}


@dataclass(frozen=True)
class Training:
    """Everything one stage's loop needs, put together; `execute` runs it.

    plain: the score of the model without adapters, by which references are computed. key: that adapters start from.
    """

    run: Run
    prepared: Prepared
    computation: Computation
    plain: Score
    references: np.ndarray | None
    heldout: Heldout | None
    trackers: list[Tracker]
    key: jax.Array

    def execute(self, parameters: Parameters) -> Parameters:
        """Train from `parameters`, or from the last checkpoint, to the stage's end; returns what it ends with.

        The parameters given are used up: the first step donates them. Adapters are among those returned. Called
        `in_order`, it ends where the run is told to stop: between two checks, or after an update, which it saves.
        """
        settings, name, hosts = self.prepared.settings, self.prepared.name, self.computation.hosts
        chain = optimizer.chain(settings.optimizer, self.prepared.steps)
        objective = objective_of(settings, self.computation)
        steps = self.run.checkpoints(name) / "steps"
        with Checkpoints(steps, settings.keep_last, settings.keep_best, hosts) as checkpoints:
            latest = checkpoints.latest()
            again = "begins it" if latest is None else f"resumes it after step {latest}"
            hosts.doing(f"before the first step of {name}; the same command {again}")
            state = self.computation.start(parameters, chain, self.key)
            step = self.computation.step(objective, chain, state)
            if latest is not None:
                state = checkpoints.restore(latest, state)
                progress.say(f"{name}: resuming after step {latest} of {self.prepared.steps}")
            self.run.cut_metrics(name, latest or 0)
            if latest is None:
                self._check_gates(state)
            hosts.ask()
            state = self._loop(step, state, checkpoints)
            best = checkpoints.best() if settings.keep_best else None
            if best is not None and best != int(state.step):
                state = checkpoints.restore(best, state)
                progress.say(f"{name}: ends with step {best}, the best on held-out data")
            return state.whole

    def _loop(self, step: trainer.Step, state: State, checkpoints: Checkpoints) -> State:
        name, steps, hosts = self.prepared.name, self.prepared.steps, self.computation.hosts
        number = int(state.step)
        # A run that was told to stop while it evaluated a step has saved that step and left its evaluation out.
        is_measured = self._is_measured(number) or self._evaluate(state, number) is not None
        if is_measured and self._is_finished(number):
            return state
        learning_rates = optimizer.learning_rates(self.prepared.settings.optimizer, steps)
        with progress.bar(name, steps, number) as bar:
            for update, paused in self._updates(step, state) if is_measured else ():
                self._record(update, learning_rates[update.number - 1], bar)
                checkpoints.check()
                if paused is None:
                    continue
                state, number = paused, update.number
                loss = None
                is_measured = not self._is_evaluated(number) or (loss := self._evaluate(state, number)) is not None
                finished = is_measured and self._is_finished(number)
                if self._is_saved(number) or (hosts.is_stopping and not finished):
                    checkpoints.save(number, state, loss)
                if finished:
                    return state
                if hosts.is_stopping:
                    break
        raise hosts.stopped(f"after step {number} of {steps} of {name}, which is saved; the same command resumes it")

    def _is_evaluated(self, number: int) -> bool:
        return self.heldout is not None and _due(number, self.prepared.settings.evaluate_every, self.prepared.steps)

    def _is_measured(self, number: int) -> bool:
        """Whether a step that is resumed from has its held-out evaluation on record, if it is to have one."""
        return (
            number == 0
            or not self._is_evaluated(number)
            or self.computation.hosts.agree(
                f"whether step {number} is evaluated", lambda: number in [row["step"] for row in self._heldout_rows()]
            )
        )

    def _evaluate(self, state: State, number: int) -> float | None:
        """The held-out loss after a step, on record; None where the run is told to stop before it is known."""
        assert self.heldout is not None
        # The best checkpoint is known by its loss: that has to be saved with it.
        measured = self.heldout.measure(state.whole, may_stop=not self.prepared.settings.keep_best)
        if measured is None:
            return None
        if not math.isfinite(measured["loss"]):
            raise Diverged(f"{self.prepared.name}: after step {number} the held-out loss is not finite", number)
        self._write("heldout", number, measured, {})
        return measured["loss"]

    def _updates(self, step: trainer.Step, state: State):
        settings, plan, corpus = self.prepared.settings, self.prepared.training.plan, self.prepared.training.corpus

        def batch_at(update: int):
            batch = packing.batch(plan, corpus, update, self.references)
            return self.computation.placed(trainer.split(batch, self.prepared.microbatch_rows))

        def pauses(number: int) -> bool:
            periods = (settings.evaluate_every, settings.checkpoint_every)
            due = any(_due(number, period, self.prepared.steps) for period in periods)
            return self.computation.hosts.should_stop() or due

        try:
            yield from trainer.train(step, state, batch_at, self.prepared.steps, pauses)
        except Diverged as error:
            rows = plan.updates[error.number - 1]
            raise Diverged(
                f"{self.prepared.name}: {error}; its rows hold the examples {list(map(list, rows))}: look at them with "
                f"`bactrian data show RECIPE --stage {self.prepared.name} --update {error.number}`, "
                f"or lower the learning rate",
                error.number,
            ) from None

    def _check_gates(self, state: State) -> None:
        training, rows = self.prepared.training, self.prepared.microbatch_rows
        rows_of = (training.plan, training.corpus, rows)
        given, hosts = (self.computation.score, state.whole, *rows_of), self.computation.hosts
        gates.check_learnt(training.learned, training.plan.examples(0))
        first = plain = gates.first_logprobs(*given)
        hosts.ask()
        mesh = self.computation.compute.mesh
        places_multiple = 1 if mesh is None else meshes.parts(dict(mesh.shape))[1]
        dtype = self.computation.compute.dtype
        gates.check_packing(first, *given, dtype, places_multiple)
        hosts.ask()
        if state.frozen is not None:
            plain = gates.first_logprobs(self.plain, state.frozen, *rows_of)
            gates.check_adapters(first, plain, dtype)
        if self.references is not None:
            gates.check_reference(plain, self.references)

    def _record(self, update: Update, learning_rate: float, bar: progress.Bar) -> None:
        if update.number == 1 and self.references is not None:
            gates.check_first_loss(update.metrics["loss"], self.computation.compute.dtype)
        counts = self.prepared.training.count(update.number - 1)
        rate = counts["tokens"] / update.seconds
        values = {**update.metrics, "learning_rate": learning_rate, **counts}
        self._write("train", update.number, values, {"seconds": update.seconds, "tokens_per_second": rate})
        note = f"loss {update.metrics['loss']:.4f} · {rate:.0f} tokens/s"
        bar.to(update.number, self.prepared.steps, note)

    def _write(self, kind: str, number: int, values: dict[str, float], timing: dict[str, float]) -> None:
        name = self.prepared.name
        row = {"stage": name, "kind": kind, "step": number, **values, "timing": {"at": time.time(), **timing}}
        self.run.append_metrics(row)
        for tracker in self.trackers:
            tracker.log(name, kind, number, {**values, **timing})

    def _is_saved(self, number: int) -> bool:
        """Whether a checkpoint is due; of the last state, which becomes the stage's model, only to be compared."""
        every = self.prepared.settings.checkpoint_every
        if number == self.prepared.steps:
            return bool(every) and self.prepared.settings.keep_best
        return bool(every) and number % every == 0

    def _is_finished(self, number: int) -> bool:
        """All updates made, or as many evaluations without a better one as the recipe's patience."""
        settings = self.prepared.settings
        if number >= self.prepared.steps:
            return True
        return bool(settings.patience) and self.computation.hosts.agree(
            "whether patience is at its end", self._is_worse
        )

    def _is_worse(self) -> bool:
        losses = [row["loss"] for row in self._heldout_rows()] or [math.inf]
        return len(losses) - 1 - int(np.argmin(losses)) >= self.prepared.settings.patience

    def _heldout_rows(self) -> list[dict[str, Any]]:
        return [row for row in self.run.metrics() if row["stage"] == self.prepared.name and row["kind"] == "heldout"]


def _due(number: int, period: int, last: int) -> bool:
    return number == last or bool(period and number % period == 0)
