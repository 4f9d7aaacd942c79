"""Composes a recipe into a run: base model → SFT → DPO, each measured → export → card.

Every part is skipped where its result is already in the run's folder, so running a recipe again resumes it.
"""

import platform
from contextlib import closing
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

import bactrian
from bactrian import assistant as assistants
from bactrian import card, evidence, lineage, progress, report
from bactrian import recipe as recipes
from bactrian.assistant import Assistant
from bactrian.data.chat import Chat
from bactrian.errors import RecipeError, RunError
from bactrian.evidence import Prompt
from bactrian.files.cache import cache_root
from bactrian.hosts import ALONE, Hosts
from bactrian.inference.engine import Engine
from bactrian.model import hf_config, llama, lora, weights
from bactrian.model import mesh as meshes
from bactrian.model.llama import Dtype
from bactrian.prepare import Parts, Prepared, check_positions, prepare, refuse_faults
from bactrian.recipe import DPO, Recipe, Stage, StageName
from bactrian.run import Run
from bactrian.stage import Computation, Heldout, Training, adapters_of, logprobs
from bactrian.tracking import Tracker, check_trackers, open_trackers, replay
from bactrian.train.trainer import Parameters


def versions() -> dict[str, str]:
    """What the numbers of a run were computed with."""
    return {"bactrian": bactrian.__version__, "jax": jax.__version__, "python": platform.python_version()}


class Opened(NamedTuple):
    """One stage's settings, with the base model found and the chat format that the stage learns in."""

    name: StageName
    settings: Stage
    base: Assistant
    chat: Chat


def open_stage(recipe: Recipe, name: StageName | None) -> Opened:
    """One stage of a recipe, its first if `name` is None, before its data is read."""
    stages = recipe.stages()
    name = name or next(iter(stages))
    if name not in stages:
        raise RecipeError(f"the recipe has no section [{name}]")
    base = _find(recipe)
    return Opened(name, stages[name], base, base.chat(recipe.model.chat, stages[name].learn))


def prepare_stage(recipe: Recipe, name: StageName | None) -> tuple[Assistant, Prepared]:
    """The base model and one stage made ready, the recipe's first if `name` is None."""
    opened = open_stage(recipe, name)
    return opened.base, prepare(opened.name, opened.settings, opened.chat, recipe.seed, cache_root())


@dataclass
class Model:
    """Parameters somewhere along the run, under the fingerprint of the file that holds them.

    published: where others load the model from, a folder, or its name on the Hub with a revision.
    """

    label: str
    parameters: Parameters
    published: tuple[str, str | None]
    fingerprint: str


@dataclass(frozen=True)
class Pipeline:
    """One recipe with its base model found and its data made ready: all that can fail cheaply is behind it."""

    recipe: Recipe
    run: Run
    base: Assistant
    prepared: dict[StageName, Prepared]
    prompts: list[Prompt]
    computation: Computation
    trackers: list[Tracker] = field(default_factory=list)

    @classmethod
    def open(
        cls, recipe: Recipe, folder: Path, hosts: Hosts = ALONE, back_to: tuple[StageName, int] | None = None
    ) -> "Pipeline":
        """Find the model, tokenize and plan the data, take up the run's folder. Raises what is wrong with any.

        `back_to` is a stage and the step of a checkpoint that it goes on from, whatever came after.
        """
        hosts.doing("while the model and the data were made ready; the same command goes on with it")
        hosts.agree("the run's folder", lambda: Run.check(folder, recipe))
        # A chat template that writes the time writes that of the run's beginning, also when the run is resumed.
        run_began = Run(folder, writes=False).began
        began = hosts.agree("when the run began", lambda: (run_began() or datetime.now()).isoformat())
        base = replace(_find(recipe), now=datetime.fromisoformat(began))
        for name, stage in recipe.stages().items():
            check_positions(name, stage, recipe.model.source, base.config.max_positions)
        sizes = meshes.sizes(recipe.mesh, jax.device_count())
        meshes.check(sizes, base.config)
        mesh = meshes.make(sizes)
        parts = Parts(*meshes.parts(sizes), meshes.own_parts(mesh))
        chat = base.chat(recipe.model.chat)
        prompts = evidence.read_prompts(recipe.evaluation, chat, base.config.max_positions)
        prepared: dict[StageName, Prepared] = {
            name: prepare(name, stage, base.chat(recipe.model.chat, stage.learn), recipe.seed, cache_root(), parts)
            for name, stage in recipe.stages().items()
        }
        for name, stage in prepared.items():
            refuse_faults(stage, base.chat(recipe.model.chat, recipe.stages()[name].learn))
        _refuse_unlearnt_tokens(base, next(iter(recipe.stages().items())))
        hosts.wait("the data is ready")
        account = {"weights": _fingerprint(base.path, hosts), "prompts": evidence.fingerprint(prompts)}
        account |= {name: stage.ledger() for name, stage in prepared.items()}
        run, before = Run(folder, writes=False), recipe
        if hosts.is_first:
            _refuse_changed_inputs(run, account)
            check_trackers(recipe)
            assistants.check_export(base, chat, recipe.model.source)
            begun_with = run.evidence("ledger").get("base") or lineage.of(recipe.model.source, base.path)
            account["base"] = begun_with
            before = run.recipe() if run.recipe_path.exists() else recipe
            run = Run.open(folder, recipe, base.now)
            if back_to is not None:
                run.go_back(*back_to)
            run.record("ledger", lambda ledger: ledger.update({"versions": versions(), **ledger, **account}))
        computation = Computation.of(recipe.model, base.config, mesh, hosts)
        pipeline = cls(recipe, run, base, prepared, prompts, computation)
        is_done = pipeline._is_done()
        is_newly_tracked = hosts.is_first and before.tracking != recipe.tracking
        if hosts.is_first and (is_newly_tracked or not is_done):
            pipeline.trackers.extend(open_trackers(recipe, folder))
        if is_newly_tracked:
            replay(run.metrics(), pipeline.trackers)
        return pipeline

    @property
    def chat(self) -> Chat:
        """The chat format in which the models are asked and exported."""
        return self.base.chat(self.recipe.model.chat)

    def execute(self) -> None:
        """Run every stage that is not done yet, then export and write the card."""
        with closing(self.run):
            try:
                if not self._is_done():
                    self._train()
            finally:
                for tracker in self.trackers:
                    tracker.close()
            if self.hosts.is_first:
                report.plot(self.run)
            self.export()

    def export(self) -> None:
        """Write `export/`: the last stage's model as a Hugging Face folder, with its card."""
        last, dtype = self._final(list(self.prepared)[-1]), self.recipe.export.dtype
        self.hosts.doing("while the last stage's model was exported; the same command exports it")
        if not self.hosts.agree("whether the export is there", lambda: self.run.is_exported(dtype)):
            assistants.save(self.run.export, self.base, self._load(last, dtype), self.chat, dtype)
        if self.hosts.is_first:
            card.write(self.run)

    def _train(self) -> None:
        self.hosts.doing("while the base model was loaded; the same command takes up the run")
        parameters = self.base.parameters(self.recipe.model.parameters, self.computation.compute.mesh)
        published = lineage.published(self.recipe.model.source, self.base.path)
        model = Model("base", parameters, published, _fingerprint(self.base.path, self.hosts))
        base_pairs = self._pair_logprobs(model)
        self._measure(model, base_pairs)
        for name in self.prepared:
            model = self._stage(name, model)
            self._measure(model, base_pairs)

    def _stage(self, name: StageName, start: Model) -> Model:
        self.hosts.doing(f"before {name}; the same command takes up the run there")
        prepared, final, kept_as = self.prepared[name], self._final(name), self.recipe.model.parameters
        if not self.hosts.agree(f"whether {name} is done", lambda: self._is_trained(name)):
            rows = prepared.microbatch_rows
            references = held_references = None
            if isinstance(prepared.settings, DPO):
                given = (self.computation, start.parameters)
                known = (rows, start.fingerprint, self._kept)
                references = logprobs(*given, prepared.training, *known, "reference")
                if prepared.heldout is not None:
                    held_references = logprobs(*given, prepared.heldout, *known, "reference, held out")
            adapters = adapters_of(prepared.settings)
            computation = self.computation.adapted(adapters)
            heldout = None if prepared.heldout is None else Heldout(prepared, computation, held_references)
            # Of another seed in each stage: the same adapters would be drawn again.
            start_key, merge_key = jax.random.split(
                jax.random.fold_in(jax.random.key(self.recipe.seed), recipes.STAGES.index(name))
            )
            training = Training(
                self.run,
                prepared,
                computation,
                self.computation.score,
                references,
                heldout,
                self.trackers,
                start_key,
            )
            # The last steps are in no checkpoint: told to stop after them, it saves what the stage ends with.
            with self.hosts.in_order():
                parameters = training.execute(start.parameters)
                if adapters is not None:
                    folder = self.run.checkpoints(name) / "adapter"
                    weights.save_adapters(folder, computation.config, parameters, *start.published)
                    parameters = lora.merged(computation.config, parameters, merge_key)
                assistants.save(final, self.base, parameters, self.chat, kept_as)
        else:
            parameters = self._load(final, kept_as)
        return Model(name, parameters, (str(final.resolve()), None), _fingerprint(final, self.hosts))

    def _load(self, folder: Path, dtype: Dtype) -> Parameters:
        mesh = self.computation.compute.mesh
        return weights.load(folder, dtype, None if mesh is None else meshes.of_parameters(mesh, self.base.config))

    def _measure(self, model: Model, base_pairs: np.ndarray | None) -> None:
        """Score a model on held-out data and prompts, unless that is on disk."""
        self.hosts.doing(f"while the model {model.label} was measured; the same command goes on there")
        if self.hosts.agree(f"whether {model.label} is measured", lambda: evidence.is_recorded(self.run, model.label)):
            return
        scores: dict[str, float] = {}
        counts: dict[str, int] = {}
        sft = self.prepared.get("sft")
        if sft is not None and sft.heldout is not None:
            scores["sft_loss"] = evidence.sft_loss(sft, self._heldout_logprobs(sft, model))
            counts["heldout_conversations"] = len(sft.heldout.corpus)
        if base_pairs is not None:
            pairs = base_pairs if model.label == "base" else self._pair_logprobs(model)
            assert pairs is not None
            scores |= evidence.preference(pairs, None if model.label == "base" else base_pairs)
            counts["heldout_pairs"] = len(base_pairs)
        if self.prompts:
            mesh = self.computation.compute.mesh
            engine = Engine(self.base.config, model.parameters, dtype=self.recipe.model.compute_dtype, mesh=mesh)
            settings = self.recipe.evaluation
            answers = evidence.answer(engine, self.chat, self.prompts, settings.max_tokens, self.recipe.seed)
            scores |= evidence.record_answers(self.run, model.label, settings, self.prompts, answers)
            counts["prompts"] = len(self.prompts)
        evidence.record_scores(self.run, model.label, scores, counts)
        if scores:
            progress.say(evidence.line(model.label, scores))

    def _pair_logprobs(self, model: Model) -> np.ndarray | None:
        dpo = self.prepared.get("dpo")
        return None if dpo is None or dpo.heldout is None else self._heldout_logprobs(dpo, model)

    def _heldout_logprobs(self, prepared: Prepared, model: Model) -> np.ndarray:
        assert prepared.heldout is not None
        title = f"{model.label}: held-out {prepared.name}"
        rows = prepared.microbatch_rows
        return logprobs(
            self.computation, model.parameters, prepared.heldout, rows, model.fingerprint, self._kept, title
        )

    @property
    def hosts(self) -> Hosts:
        return self.computation.hosts

    @property
    def _kept(self) -> Path:
        """Where reference log-probabilities are kept: with the run where hosts share them, else for any run."""
        return cache_root() if self.hosts.count == 1 else self.run.folder

    def _final(self, name: StageName) -> Path:
        return self.run.checkpoints(name) / "final"

    def _is_trained(self, name: StageName) -> bool:
        """Whether a stage's model is there. Raises `RunError` where it was damaged."""
        folder = self.run.checkpoints(name)
        otherwise = "restore it from a copy, or remove it, and the stage goes on from its last checkpoint"
        if (folder / "adapter").exists() and (folder / "final").exists():
            self.run.has_model(folder / "adapter", otherwise)
        return self.run.has_model(folder / "final", otherwise)

    def _is_done(self) -> bool:
        def is_done() -> bool:
            recorded = all(evidence.is_recorded(self.run, label) for label in ("base", *self.prepared))
            return all([self._is_trained(name) for name in self.prepared]) and recorded

        return self.hosts.agree("whether the run is done", is_done)


def _fingerprint(path: Path, hosts: Hosts) -> str:
    """Of a model's files, which the first of the hosts reads for all."""
    return hosts.agree(f"the fingerprint of {path}", lambda: weights.fingerprint(path))


def _find(recipe: Recipe) -> Assistant:
    """The recipe's base model, which has to be of the shape that the recipe states, if it does."""
    model = recipe.model
    base = assistants.find(model.source, model.add_tokens, model.max_positions)
    if model.config is not None:
        stated = replace(hf_config.read_file(Path(model.config)), vocab_size=base.config.vocab_size)
        if llama.specs(stated) != llama.specs(base.config):
            raise RecipeError(
                f"model.config: {model.config} describes a model of another shape than {model.source} has; "
                f"give the config.json of that model"
            )
    return base


def _refuse_unlearnt_tokens(base: Assistant, first: tuple[StageName, Stage]) -> None:
    """A stage that trains adapters alone learns no embeddings: the model that it begins with has to have them all."""
    (name, stage), stored = first, weights.read_config(base.path).vocab_size
    if stage.lora is not None and base.config.vocab_size > stored:
        raise RecipeError(
            f"{name}.lora learns no embeddings, and the tokenizer has {base.config.vocab_size} tokens where the model "
            f"has {stored}; train the whole model first, or take a tokenizer of its own"
        )


def _refuse_changed_inputs(run: Run, account: dict[str, Any]) -> None:
    """A run goes on with the model and the data that it began with, not with what has since taken their place."""
    before = run.evidence("ledger")
    named = {"weights": "the base model", "prompts": "the held-out prompts"}
    changed = [what for name, what in named.items() if before and before[name] != account[name]]
    for name in recipes.STAGES:
        if before and name in account and _corpora(before[name]) != _corpora(account[name]):
            changed.append(f"the data of {name}")
    if changed:
        what = " and ".join(changed)
        raise RunError(f"{run.folder}: {what} changed since this run began; restore it or choose another --run-dir")


def _corpora(ledger: dict[str, Any]) -> list[str]:
    return [part["corpus"] for part in (ledger, ledger.get("heldout")) if part]
