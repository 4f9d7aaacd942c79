"""The model card, `export/README.md`: what was done and measured, from the files of the run's folder alone.

A number is printed where one of those files holds it, or the rows of metrics.jsonl or of a stage's sources add up to
it; what has no data has no row and no section. Of a path only its last name is shown.
"""

import re
import shutil
import statistics
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

import jinja2

from bactrian.files.atomic import replacing
from bactrian.markdown import code, harmless, number, quote, table
from bactrian.model.hub import WHEELS
from bactrian.recipe import DPO, Evaluation, Recipe, Rule, Stage
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


def write(run: Run) -> Path:
    """Write the card to the run's `export/README.md`, with the pictures it shows beside it; returns its path."""
    path = run.export / "README.md"
    pictures = [name for name in _CURVES if (run.plots / f"{name}.png").is_file()]
    for name in pictures:
        with replacing(run.export / "plots" / f"{name}.png") as temporary:
            shutil.copyfile(run.plots / f"{name}.png", temporary)
    text = _render(run, pictures)
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return path


def _render(run: Run, pictures: list[str]) -> str:
    recipe, ledger, evaluation = run.recipe(), run.evidence("ledger"), run.evidence("evaluation")
    labels = ["base", *recipe.stages()]
    scores = _scores(evaluation, labels)
    benchmarks = run.benchmarks()
    template = resources.files("bactrian").joinpath("templates/card.md.jinja").read_text(encoding="utf-8")
    environment = jinja2.Environment(
        undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True
    )
    return environment.from_string(template).render(
        metadata=_metadata(recipe, scores, benchmarks),
        title=harmless(recipe.export.name or recipe.name),
        base=harmless(_base_model(recipe.model.source)),
        stages=[TITLES[name] for name in recipe.stages()],
        data=_data(recipe, ledger),
        tokens=_tokens(recipe, ledger),
        training=_training(recipe, run.metrics()),
        recipe=recipe,
        versions=[harmless(f"{name} {version}") for name, version in ledger.get("versions", {}).items()],
        curves=[{"file": f"{name}.png", "title": _CURVES[name]} for name in pictures],
        scores=_score_table(scores, labels),
        meanings=_meanings(scores, recipe.evaluation),
        benchmarks=_benchmark_table(benchmarks),
        samples=_samples(run.samples(), labels),
        learnt=_learnt(recipe, ledger),
        longest=[f"{number(stage.max_length)} tokens ({TITLES[name]})" for name, stage in recipe.stages().items()],
        counts={name.replace("_", " "): number(count) for name, count in evaluation.get("counts", {}).items()},
        rules=any(score.name not in _COUNTED for score in scores),
    )


# Front matter


def _metadata(recipe: Recipe, scores: list[Score], benchmarks: list[dict[str, Any]]) -> str:
    """The Hub's YAML. https://github.com/huggingface/hub-docs/blob/main/modelcard.md"""
    from huggingface_hub import EvalResult, ModelCardData

    stages = recipe.stages()
    last = list(stages)[-1]
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
    hub = [_name(source.path) for stage in stages.values() for source in stage.data if source.path.startswith("hf:")]
    return ModelCardData(
        language=recipe.export.language,
        license=recipe.export.licence,
        library_name="transformers",
        pipeline_tag="text-generation",
        base_model=_base_model(recipe.model.source),
        datasets=list(dict.fromkeys(hub)) or None,
        tags=["bactrian", *stages],
        model_name=recipe.export.name or recipe.name,
        eval_results=results or None,
    ).to_yaml()


def _measured_on(score: str, recipe: Recipe) -> str | None:
    """The name of the data that a score was measured on."""
    stage = recipe.sft if score == "sft_loss" else recipe.dpo if score in _COUNTED else None
    if stage is not None:
        return ", ".join(_name(source.path) for source in stage.heldout) or None
    return None if recipe.evaluation.prompts is None else _name(recipe.evaluation.prompts)


def _base_model(source: str) -> str:
    """The name of a base model: as on the Hub, or plain; never where it lies."""
    if source.startswith("hf:"):
        return _name(source)
    if source.startswith("pypi:"):
        return WHEELS[source.removeprefix("pypi:")].model
    path = Path(source)
    name = path.parent.name if path.name in ("export", "final") else path.name.removesuffix(".gguf")
    return re.sub(r"[^\w.-]+", "-", name).strip("-.") or "base"


def _name(path: str) -> str:
    """A data file's name without its folders, or a Hub name without its revision."""
    return path.removeprefix("hf:").partition("@")[0] if path.startswith("hf:") else Path(path).name


# Sections


def _data(recipe: Recipe, ledger: dict[str, Any]) -> str:
    rows = []
    for name in recipe.stages():
        entries = ledger.get(name, {})
        for use, part in (("training", entries), ("held out", entries.get("heldout", {}))):
            for source in part.get("sources", []):
                dropped = [f"{count:,} {reason}".replace("_", " ") for reason, count in source["dropped"].items()]
                shown = [TITLES[name], use, harmless(_name(source["path"])), source["format"]]
                counts = [number(source["read"]), number(source["kept"]), ", ".join(dropped)]
                rows.append([*shown, *counts, harmless(source.get("licence") or "")])
    return table(("stage", "use", "source", "format", "rows read", "kept", "dropped", "licence"), rows)


def _tokens(recipe: Recipe, ledger: dict[str, Any]) -> str:
    keys = ("updates", "examples", "examples_left_out", "learned", "masked", "padding", "places")
    shown = ("stage", "updates", "examples", "examples left out", "learnt", "masked", "padding", "places")
    seen = {name: ledger.get(name, {}).get("training", {}) for name in recipe.stages()}
    return table(shown, [[TITLES[name], *(number(it.get(key)) for key in keys)] for name, it in seen.items() if it])


def _training(recipe: Recipe, metrics: list[dict[str, Any]]) -> str:
    """Settings and what was measured, a column per stage."""
    columns = [{**_settings(stage), **_measured(name, metrics)} for name, stage in recipe.stages().items()]
    keys = dict.fromkeys(key for column in columns for key in column)
    rows = [[key, *(column.get(key, "") for column in columns)] for key in keys]
    return table(("", *(TITLES[name] for name in recipe.stages())), [row for row in rows if any(row[1:])])


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


def _measured(stage: str, metrics: list[dict[str, Any]]) -> dict[str, str]:
    """What the rows of the steps that were made say."""
    rows = [row for row in metrics if row["stage"] == stage and row["kind"] == "train"]
    held = [row for row in metrics if row["stage"] == stage and row["kind"] == "heldout"]
    timings = [row.get("timing", {}) for row in rows]
    seconds = [timing["seconds"] for timing in timings if "seconds" in timing]
    speeds = [timing["tokens_per_second"] for timing in timings if "tokens_per_second" in timing]
    best = min(held, key=lambda row: row["loss"], default=None)
    shown = {
        "steps made": max((row["step"] for row in rows), default=None),
        "tokens seen": sum(row.get("tokens", 0) for row in rows) or None,
        "tokens learnt": sum(row.get("learned_tokens", 0) for row in rows) or None,
        "training loss of the last step": rows[-1]["loss"] if rows else None,
    }
    measured = {key: number(value) for key, value in shown.items()}
    if best:
        measured["best held-out loss"] = f"{number(best['loss'])} (step {number(best['step'])})"
    if seconds:
        measured["seconds in steps"] = f"{sum(seconds):,.1f}"
    if speeds:
        # Of a step in the middle: the first one compiles. The lower of two is one that was measured.
        measured["tokens per second (median step)"] = f"{statistics.median_low(speeds):,.1f}"
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


def _score_table(scores: list[Score], labels: Sequence[str]) -> str:
    rows = [
        [_NAMES.get(score.name, score.name.replace("_", " ")), number(score.count)]
        + [f"{score.by_label[label]:.3f}" if label in score.by_label else "" for label in labels]
        for score in scores
    ]
    return table(("score", "n", *(TITLES[label] for label in labels)), rows)


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


def _samples(rows: list[dict[str, Any]], labels: Sequence[str]) -> list[list[dict[str, str]]]:
    """A few prompts with the answers to them. Their places are fixed: none is chosen by what it says."""
    answered = [row for row in rows if row["answers"]]
    samples = []
    for row in answered[:: max(1, -(-len(answered) // _SAMPLES))]:
        answers = [(TITLES[label], row["answers"][label]) for label in labels if label in row["answers"]]
        parts = [("Prompt", row["prompt"]), *answers]
        samples.append([{"label": label, "text": quote(text)} for label, text in parts])
    return samples


def _learnt(recipe: Recipe, ledger: dict[str, Any]) -> list[str]:
    what = {"sft": "conversations", "dpo": "pairs"}
    counts = {name: ledger.get(name, {}).get("examples") for name in recipe.stages()}
    return [f"{number(n)} {what[name]} ({TITLES[name]})" for name, n in counts.items() if n]
