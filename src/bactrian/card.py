"""The model card, `export/README.md`: what was done and measured, from the files of the run's folder alone.

A number is printed where one of those files holds it, or the rows of metrics.jsonl or of a stage's sources add up to
it; what has no data has no row and no section. Of a path only its last name is shown.
"""

import json
import re
import shutil
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

import jinja2

from bactrian import lineage, report
from bactrian.files.atomic import replacing
from bactrian.markdown import code, harmless, number, quote, table
from bactrian.masking import mask
from bactrian.recipe import DPO, SFT, Evaluation, Recipe, Rule, Stage, StageName
from bactrian.report import TITLES
from bactrian.run import Run

_CURVES = {
    "loss": "Loss of each stage, in training and held out",
    "accuracy": "DPO: share of pairs whose margin is positive",
    "margin": "DPO: reward margin of chosen over rejected",
    "scores": "Scores of the base model and of each stage",
}
_SAMPLES = 4

# Which of the counts in evaluation.json a score is the mean over; rules are over the prompts.
_COUNTED = {
    "sft_loss": "heldout_conversations",
    "preference_accuracy": "heldout_pairs",
    "preference_margin": "heldout_pairs",
}
_NAMES = {
    "sft_loss": "loss ↓",
    "preference_accuracy": "preference accuracy ↑",
    "preference_margin": "preference margin (nats) ↑",
}
_MEANINGS = {
    "sft_loss": "**loss**: mean negative log-likelihood of the learnt tokens of held-out conversations, in nats.",
    "preference_accuracy": "**preference accuracy**: share of held-out pairs in which the log-probability of the "
    "chosen answer rose more over the base model's than that of the rejected one; for the base model itself, in which "
    "the chosen answer's is the higher.",
    "preference_margin": "**preference margin**: by how much, on average; for the base model itself, the difference "
    "of the plain log-probabilities. A longer answer has a lower one.",
}


class Score(NamedTuple):
    """One row of the evaluation; `count` is what it is the mean over."""

    name: str
    by_label: dict[str, float]
    count: int | None


class Trained(NamedTuple):
    """One stage that the model went through, in this run or in one before; `title` tells them apart."""

    title: str
    name: StageName
    settings: Stage
    ledger: dict[str, Any]
    measured: dict[str, float]


def write(run: Run) -> Path:
    """Write the card to the run's `export/README.md`, with the pictures it shows beside it; returns its path."""
    path = run.export / "README.md"
    pictures = [name for name in _CURVES if (run.plots / f"{name}.png").is_file()]
    for name in pictures:
        with replacing(run.export / "plots" / f"{name}.png") as temporary:
            shutil.copyfile(run.plots / f"{name}.png", temporary)
    text = mask(_render(run, pictures))
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return path


def _render(run: Run, pictures: list[str]) -> str:
    recipe, ledger, evaluation = run.recipe(), run.evidence("ledger"), run.evidence("evaluation")
    base = ledger.get("base") or lineage.named(recipe.model.source)
    labels = ["base", *recipe.stages()]
    titles = {label: report.titles(ledger)[label] for label in labels}
    trained = _trained(base, recipe, ledger, run.metrics())
    scores = _scores(evaluation, labels)
    benchmarks = run.benchmarks()
    template = resources.files("bactrian").joinpath("templates/card.md.jinja").read_text(encoding="utf-8")
    environment = jinja2.Environment(
        undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True
    )
    return environment.from_string(template).render(
        metadata=_metadata(base, trained, recipe, scores, benchmarks),
        title=harmless(recipe.export.name or recipe.name),
        base=harmless(base["model"]),
        stored=_stored(base),
        stages=[stage.title for stage in trained],
        kinds={stage.name for stage in trained},
        start=titles["base"] if base["runs"] else None,
        data=_data(trained),
        tokens=_tokens(trained),
        training=_training(trained),
        recipe=recipe,
        versions=[harmless(f"{name} {version}") for name, version in ledger.get("versions", {}).items()],
        curves=[{"file": f"{name}.png", "title": _CURVES[name]} for name in pictures],
        scores=_score_table(scores, titles),
        meanings=_meanings(scores, recipe.evaluation),
        benchmarks=_benchmark_table(benchmarks),
        samples=_samples(run.samples(), titles),
        learnt=_learnt(trained),
        longest=[f"{number(stage.settings.max_length)} tokens ({stage.title})" for stage in trained],
        counts={name.replace("_", " "): number(count) for name, count in evaluation.get("counts", {}).items()},
        rules=any(score.name not in _COUNTED for score in scores),
    )


def _trained(
    base: dict[str, Any], recipe: Recipe, ledger: dict[str, Any], metrics: list[dict[str, Any]]
) -> list[Trained]:
    kinds: dict[StageName, type[Stage]] = {"sft": SFT, "dpo": DPO}
    found = [
        Trained(
            f"{TITLES[name]} ({harmless(run['name'])})",
            name,
            kinds[name].model_validate_json(json.dumps(stage["settings"])),
            stage["ledger"],
            stage["measured"],
        )
        for run in base["runs"]
        for name, stage in run["stages"].items()
    ]
    return found + [
        Trained(TITLES[name], name, stage, ledger.get(name, {}), lineage.measured(name, metrics))
        for name, stage in recipe.stages().items()
    ]


def _stored(base: dict[str, Any]) -> str | None:
    """From which numbers the base model was read, where not from its own."""
    if not base["file"]:
        return None
    as_what = (
        f", quantized as {base['quantization']}, which are its weights to a few bits each"
        if base["quantization"]
        else ""
    )
    return f"the file {code(base['file'])}{as_what}"


# Front matter


def _metadata(
    base: dict[str, Any],
    trained: list[Trained],
    recipe: Recipe,
    scores: list[Score],
    benchmarks: list[dict[str, Any]],
) -> str:
    """The Hub's YAML. https://github.com/huggingface/hub-docs/blob/main/modelcard.md"""
    from huggingface_hub import EvalResult, ModelCardData

    last = list(recipe.stages())[-1]
    results = []
    for score in scores:
        dataset = _measured_on(score.name, recipe)
        if last in score.by_label and dataset:
            shown = score.name.replace("_", " ")
            results.append(
                EvalResult(
                    task_type="text-generation",
                    dataset_type=dataset,
                    dataset_name=dataset,
                    metric_type=score.name,
                    metric_value=score.by_label[last],
                    metric_name=f"held-out {shown}",
                )
            )
    for result in benchmarks:
        judged = f", judged by {result['judge']}" if result.get("judge") else ""
        judged += f" ({result['note']})" if result.get("note") else ""
        results.append(
            EvalResult(
                task_type="text-generation",
                dataset_type=re.sub(r"[^a-z0-9]+", "_", result["dataset"].lower()).strip("_"),
                dataset_name=result["dataset"],
                metric_type=result["metric"],
                metric_value=result["value"],
                metric_name=f"{result['name']}{judged}",
            )
        )
    paths = [source.path for stage in trained for source in stage.settings.data]
    hub = [_name(path) for path in paths if path.startswith("hf:")]
    return ModelCardData(
        language=recipe.export.language,
        license=recipe.export.licence,
        library_name="transformers",
        pipeline_tag="text-generation",
        base_model=base["model"],
        datasets=list(dict.fromkeys(hub)) or None,
        tags=["bactrian", *dict.fromkeys(stage.name for stage in trained)],
        model_name=recipe.export.name or recipe.name,
        eval_results=results or None,
    ).to_yaml()


def _measured_on(score: str, recipe: Recipe) -> str | None:
    """The name of the data that a score was measured on."""
    stage = recipe.sft if score == "sft_loss" else recipe.dpo if score in _COUNTED else None
    if stage is not None:
        return ", ".join(_name(source.path) for source in stage.heldout) or None
    return None if recipe.evaluation.prompts is None else _name(recipe.evaluation.prompts)


def _name(path: str) -> str:
    """A data file's name without its folders, or a Hub name without its revision."""
    return path.removeprefix("hf:").partition("@")[0] if path.startswith("hf:") else Path(path).name


# Sections


def _data(trained: list[Trained]) -> str:
    rows = []
    for stage in trained:
        entries = stage.ledger
        for use, part in (("training", entries), ("held out", entries.get("heldout", {}))):
            for source in part.get("sources", []):
                dropped = [f"{count:,} {reason}".replace("_", " ") for reason, count in source["dropped"].items()]
                shown = [stage.title, use, harmless(_name(source["path"])), source["format"]]
                counts = [number(source["read"]), number(source["kept"]), ", ".join(dropped)]
                rows.append([*shown, *counts, harmless(source.get("licence") or "")])
    return table(("stage", "use", "source", "format", "rows read", "kept", "dropped", "licence"), rows)


def _tokens(trained: list[Trained]) -> str:
    keys = ("updates", "examples", "examples_left_out", "learned", "masked", "padding", "places")
    shown = ("stage", "updates", "examples", "examples left out", "learnt", "masked", "padding", "places")
    seen = [(stage.title, stage.ledger.get("training", {})) for stage in trained]
    return table(shown, [[title, *(number(it.get(key)) for key in keys)] for title, it in seen if it])


def _training(trained: list[Trained]) -> str:
    """Settings and what was measured, a column per stage."""
    columns = [{**_settings(stage.settings), **_measured(stage.measured)} for stage in trained]
    keys = dict.fromkeys(key for column in columns for key in column)
    rows = [[key, *(column.get(key, "") for column in columns)] for key in keys]
    return table(("", *(stage.title for stage in trained)), [row for row in rows if any(row[1:])])


def _settings(stage: Stage) -> dict[str, str]:
    optimizer = stage.optimizer
    shown: dict[str, float | str | None] = {
        "beta": stage.beta if isinstance(stage, DPO) else None,
        "learning rate": optimizer.learning_rate,
        "schedule": optimizer.schedule,
        "warm-up (steps)": optimizer.warmup_steps or None,
        "warm-up (share of the steps)": optimizer.warmup_ratio or None,
        "AdamW beta1": optimizer.beta1,
        "AdamW beta2": optimizer.beta2,
        "AdamW epsilon": optimizer.epsilon,
        "AdamW moments": "8 bits" if optimizer.moments == "int8" else None,
        "weight decay": optimizer.weight_decay,
        "gradient norm clipped at": optimizer.clip_norm,
        "batch size (conversations, or pairs)": stage.batch_size,
        "epochs": stage.epochs,
        "longest example (tokens)": stage.max_length,
        "adapters alone are trained (LoRA)": _adapters(stage),
        "learnt": {"all": "every assistant turn", "last": "the last assistant turn"}[stage.learn],
        "ends with": "the step best on held-out data" if stage.keep_best else "the last step",
    }
    return {key: value if isinstance(value, str) else number(value) for key, value in shown.items()}


def _adapters(stage: Stage) -> str | None:
    lora = stage.lora
    return lora and f"rank {lora.rank}, alpha {number(lora.alpha)}, of {', '.join(lora.targets)}"


def _measured(found: dict[str, float]) -> dict[str, str]:
    shown = {
        "steps made": found.get("steps"),
        "tokens seen": found.get("tokens"),
        "tokens learnt": found.get("learned_tokens"),
        "training loss of the last step": found.get("loss"),
    }
    measured = {key: number(value) for key, value in shown.items()}
    if "best_heldout_loss" in found:
        step = number(found["best_heldout_step"])
        measured["best held-out loss"] = f"{number(found['best_heldout_loss'])} (step {step})"
    if "seconds" in found:
        measured["seconds in steps"] = f"{found['seconds']:,.1f}"
    if "tokens_per_second" in found:
        measured["tokens per second (median step)"] = f"{found['tokens_per_second']:,.1f}"
    return measured


# Scores


def _scores(evaluation: dict[str, Any], labels: Sequence[str]) -> list[Score]:
    """The scores in evaluation.json. One that misses more than one of its values says nothing, and is left out."""
    counts = evaluation.get("counts", {})
    found = [
        Score(name, by_label, counts.get(_COUNTED.get(name, "prompts")))
        for name, by_label in evaluation.items()
        if name != "counts"
    ]
    return [score for score in found if sum(label not in score.by_label for label in labels) < 2]


def _score_table(scores: list[Score], titles: dict[str, str]) -> str:
    rows = [
        [_NAMES.get(score.name, score.name.replace("_", " ")), number(score.count)]
        + [f"{score.by_label[label]:.3f}" if label in score.by_label else "" for label in titles]
        for score in scores
    ]
    return table(("score", "n", *titles.values()), rows)


def _benchmark_table(benchmarks: list[dict[str, Any]]) -> str:
    """A row per figure, with its interval where it has one."""
    rows = []
    for result in benchmarks:
        low, high = result.get("low"), result.get("high")
        between = "" if low is None or high is None else f"{low:.2f} to {high:.2f}"
        shown = [harmless(result["name"]), f"{result['value']:.2f}", between, number(result["n"])]
        rows.append([*shown, harmless(result.get("judge") or ""), harmless(result.get("note") or "")])
    return table(("benchmark", "score", "95 % interval", "n", "judge", "note"), rows)


def _meanings(scores: list[Score], evaluation: Evaluation) -> list[str]:
    rules = {rule.name: rule for rule in evaluation.rules}
    known = {**{name: _rule(rule) for name, rule in rules.items()}, **_MEANINGS}
    return [known[score.name] for score in scores if score.name in known]


def _rule(rule: Rule) -> str:
    least = f"at least {rule.at_least}" if rule.at_least > 1 else "any"
    given = f"the prompt's own patterns, in its column {code(rule.column)}" if rule.column else "the patterns "
    wanted = f"{least} of {given}{', '.join(map(code, rule.any_of))}"
    never = f", and none of {', '.join(map(code, rule.none_of))}" if rule.none_of else ""
    return f"**{rule.name.replace('_', ' ')}**: share of answers that match {wanted}{never}. Case is ignored."


def _samples(rows: list[dict[str, Any]], titles: dict[str, str]) -> list[list[dict[str, str]]]:
    """A few prompts with the answers to them. Their places are fixed: none is chosen by what it says."""
    answered = [row for row in rows if row["answers"]]
    samples = []
    for row in answered[:: max(1, -(-len(answered) // _SAMPLES))]:
        answers = [(title, row["answers"][label]) for label, title in titles.items() if label in row["answers"]]
        parts = [("Prompt", row["prompt"]), *answers]
        samples.append([{"label": label, "text": quote(text)} for label, text in parts])
    return samples


def _learnt(trained: list[Trained]) -> list[str]:
    what = {"sft": "conversations", "dpo": "pairs"}
    counts = [(stage, stage.ledger.get("examples")) for stage in trained]
    return [f"{number(n)} {what[stage.name]} ({stage.title})" for stage, n in counts if n]
