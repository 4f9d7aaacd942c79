"""The verbs of `bactrian evaluate`. Heavy parts load inside the verb that needs them."""

import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from bactrian import progress
from bactrian.cli import benchmarks
from bactrian.cli.options import Prefix, WithDefault, a_number, grouped
from bactrian.errors import InputError

if TYPE_CHECKING:
    from bactrian.evaluate.address import Wire
    from bactrian.evaluate.alpaca_eval_job import Files as AlpacaEvalFiles
    from bactrian.evaluate.mt_bench_job import Files as MTBenchFiles
    from bactrian.evaluating import Candidate, Judging

evaluate_app = typer.Typer(
    cls=WithDefault, help="MT-Bench, AlpacaEval and other benchmarks, and judges themselves.", no_args_is_help=True
)

ModelArgument = Annotated[
    str | None,
    typer.Argument(metavar="[MODEL]", help="Any MODEL, an address (http://…) with --model-name, or a file of answers."),
]
Data = Annotated[
    Path | None,
    typer.Option(envvar="BACTRIAN_DATA", help="A folder with the benchmark's published files; else they are fetched."),
]
Out = Annotated[
    Path | None, typer.Option(metavar="DIR", help="Where everything is kept; for a run, in it if not given.")
]
AsJson = Annotated[bool, typer.Option("--json", help="The scores as JSON.")]
Limit = Annotated[int | None, typer.Option(min=1, help="The first questions alone.")]
JudgePrompts = Annotated[Path | None, typer.Option("--judge-prompts", help="The judge's prompts, as published.")]


@dataclass(frozen=True)
class WireOptions:
    """What an address takes, where that is not the protocol's plain request."""

    max_completion: Annotated[
        int | None, typer.Option(metavar="N", help="For an address: max_completion_tokens in place of max_tokens.")
    ] = None
    no_temperature: Annotated[bool, typer.Option(help="For an address: send neither temperature nor top_p.")] = False
    reasoning: Annotated[
        str | None, typer.Option(metavar="EFFORT", help="For an address: reasoning_effort: low, medium, high, …")
    ] = None
    extra_body: Annotated[
        str | None, typer.Option(metavar="JSON", help="For an address: more fields of the body; null leaves one out.")
    ] = None
    extra_header: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=VALUE", help="For an address: one more header; may be given again."),
    ] = None
    key_header: Annotated[
        str | None, typer.Option(metavar="NAME", help="For an address: the header that takes the key, as api-key.")
    ] = None
    no_system: Annotated[bool, typer.Option(help="For an address: put a system message before the user's.")] = False

    def wire(self, option: str) -> "Wire":
        """As requests are made; `option` begins the options' names. Raises `InputError`."""
        from bactrian.evaluate.address import Wire
        from bactrian.files import documents

        body = documents.parse_json(self.extra_body or "{}", f"{option}-extra-body", InputError)
        if not isinstance(body, dict):
            raise InputError(f"{option}-extra-body: not a JSON object; write one as '{{\"top_k\": 1}}'")
        headers = {}
        for each in self.extra_header or ():
            name, sign, value = re.match(r"([^:=]*)([:=]?)(.*)", each, re.DOTALL).groups()  # pyright: ignore[reportOptionalMemberAccess]
            if not sign or not name.strip():
                raise InputError(f"{option}-extra-header: not a header; write NAME=VALUE")
            headers[name.strip()] = value.strip()
        return Wire(
            max_completion_tokens=self.max_completion,
            has_temperature=not self.no_temperature,
            reasoning_effort=self.reasoning,
            extra_body=body,
            extra_headers=headers,
            key_header=self.key_header,
            has_system=not self.no_system,
        )


@dataclass(frozen=True)
class AnswerOptions:
    """How answers are made."""

    name: Annotated[str | None, typer.Option(help="What to call the model.")] = None
    model_name: Annotated[str | None, typer.Option(help="Its name at its address.")] = None
    model_key: Annotated[str, typer.Option(help="The variable that holds its address's key.")] = "OPENAI_API_KEY"
    chat: Annotated[Literal["tulu", "model"], typer.Option(help="Chat format: Tulu's, or the model's own.")] = "model"
    dtype: Annotated[Literal["float32", "bfloat16"], typer.Option(help="Numbers to compute with.")] = "float32"
    max_tokens: Annotated[
        int | None,
        typer.Option(min=1, max=2**20, help="Most tokens in an answer; 1024 for MT-Bench, 2048 for AlpacaEval."),
    ] = None
    seed: Annotated[int, typer.Option(min=0, max=2**32 - 1, help="Of sampling.")] = 0

    def candidate(self, model: str, max_tokens: int, wire: WireOptions) -> "Candidate":
        from bactrian.evaluating import Candidate

        return Candidate(
            model=model,
            name=self.name,
            model_name=self.model_name,
            key_name=self.model_key,
            format=self.chat,
            dtype=self.dtype,
            max_tokens=self.max_tokens or max_tokens,
            seed=self.seed,
            wire=wire.wire("--model"),
        )


@dataclass(frozen=True)
class JudgeOptions:
    """Who judges, how fast and for how much."""

    judge: Annotated[
        str | None,
        typer.Option(
            envvar="BACTRIAN_JUDGE",
            metavar="JUDGE",
            help="An address (http://…), replay:FILE of kept judgments, engine:MODEL, or reward:MODULE:FUNCTION.",
        ),
    ] = None
    judge_model: Annotated[
        str | None, typer.Option(envvar="BACTRIAN_JUDGE_MODEL", help="The judge's name at its address.")
    ] = None
    judge_key: Annotated[str, typer.Option(help="The variable that holds its address's key.")] = "OPENAI_API_KEY"
    concurrency: Annotated[int, typer.Option(min=1, max=1024, help="Requests at once.")] = 8
    requests_per_minute: Annotated[int, typer.Option(min=0, max=10**9, help="Most requests a minute; 0: no limit.")] = 0
    tokens_per_minute: Annotated[int, typer.Option(min=0, max=10**12, help="Most tokens a minute; 0: no limit.")] = 0
    timeout: Annotated[
        float, typer.Option(callback=a_number, min=0.001, max=86400, help="Seconds for one request.")
    ] = 120.0
    retries: Annotated[int, typer.Option(min=0, max=1000, help="Tries after a request failed.")] = 6
    retry_wait: Annotated[
        float,
        typer.Option(callback=a_number, min=0, max=3600, help="Seconds before the first of them; then twice as long."),
    ] = 1.0
    reasks: Annotated[
        int, typer.Option(min=0, max=1000, help="Tries after a refusal or a reply without a verdict.")
    ] = 2
    max_calls: Annotated[int | None, typer.Option(min=0, max=10**12, help="Budget: most requests in all.")] = None
    max_cost: Annotated[
        float | None, typer.Option(callback=a_number, min=0, max=1e12, help="Budget: most money in all.")
    ] = None
    price_in: Annotated[
        float, typer.Option(callback=a_number, min=0, max=1e9, help="Price of a million tokens of prompt.")
    ] = 0.0
    price_out: Annotated[
        float, typer.Option(callback=a_number, min=0, max=1e9, help="Price of a million tokens of reply.")
    ] = 0.0
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Count calls and tokens; ask nobody.")] = False

    def judging(self, wire: WireOptions) -> "Judging":
        from bactrian.evaluate.pace import Budget, Limits
        from bactrian.evaluating import Judging

        limits = Limits(
            concurrency=self.concurrency,
            requests_per_minute=self.requests_per_minute,
            tokens_per_minute=self.tokens_per_minute,
            timeout=self.timeout,
            retries=self.retries,
            retry_wait=self.retry_wait,
            reasks=self.reasks,
        )
        budget = Budget(self.max_calls, self.max_cost, self.price_in, self.price_out)
        return Judging(
            self.judge,
            self.judge_model,
            self.judge_key,
            limits=limits,
            budget=budget,
            dry_run=self.dry_run,
            wire=wire.wire("--judge"),
        )


@dataclass(frozen=True)
class MTBenchOptions:
    """MT-Bench's files."""

    data: Data = None
    questions: Annotated[Path | None, typer.Option(help="Questions, in FastChat's layout.")] = None
    references: Annotated[Path | None, typer.Option(help="Reference answers, in FastChat's layout.")] = None
    judge_prompts: JudgePrompts = None
    limit: Limit = None

    def files(self) -> "MTBenchFiles":
        from bactrian.evaluate.mt_bench_job import Files

        return Files(self.questions, self.references, self.judge_prompts, self.data, self.limit)


@dataclass(frozen=True)
class AlpacaEvalOptions:
    """AlpacaEval's files."""

    data: Data = None
    reference: Annotated[Path | None, typer.Option(help="The reference model's outputs.")] = None
    judge_prompts: JudgePrompts = None
    difficulty: Annotated[Path | None, typer.Option(help="Length control: each item's difficulty, CSV.")] = None
    gamed: Annotated[Path | None, typer.Option(help="Length control: the gamed baselines' rows, CSV.")] = None
    limit: Limit = None

    def files(self, beside: Path | None = None) -> "AlpacaEvalFiles":
        from bactrian.evaluate.alpaca_eval_job import Files

        return Files(self.reference, self.judge_prompts, self.difficulty, self.gamed, self.data, self.limit, beside)


ModelWire = Annotated[WireOptions, Prefix("model")]
JudgeWire = Annotated[WireOptions, Prefix("judge")]


@evaluate_app.command("mt-bench")
@grouped
def mt_bench(
    model: ModelArgument = None,
    judgments: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Score these judgments; no MODEL then.")
    ] = None,
    against: Annotated[
        str | None, typer.Option(help="Compare with another MODEL or file of answers, in pairs.")
    ] = None,
    against_name: Annotated[str | None, typer.Option(help="What to call that one, or its name at its address.")] = None,
    baseline: Annotated[str | None, typer.Option(help="With judgments of pairs: the model that all met.")] = None,
    out: Out = None,
    as_json: AsJson = False,
    files: MTBenchOptions = MTBenchOptions(),
    answering: AnswerOptions = AnswerOptions(),
    answering_wire: ModelWire = WireOptions(),
    judging: JudgeOptions = JudgeOptions(),
    judging_wire: JudgeWire = WireOptions(),
) -> None:
    """MT-Bench: 80 questions of two turns, by FastChat's rules."""
    from bactrian import evaluating
    from bactrian.evaluate import mt_bench as rules

    if judgments is not None:
        scores = evaluating.score_judgments(judgments, files.questions, baseline, out, judging.judge_model)
    else:
        first, folder = _asked(model, out, "mt-bench", "--judgments FILE")
        candidate = answering.candidate(first, rules.MAX_TOKENS, answering_wire)
        # Asked as the first is.
        other = replace(answering, name=against_name, model_name=against_name)
        second = None if against is None else other.candidate(against, rules.MAX_TOKENS, answering_wire)
        scores = evaluating.run_mt_bench(candidate, second, files.files(), judging.judging(judging_wire), folder)
    _tell(scores, as_json, judging.dry_run, "mt_bench")


@evaluate_app.command("alpaca-eval")
@grouped
def alpaca_eval(
    model: ModelArgument = None,
    annotations: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Score these annotations; no MODEL then.")
    ] = None,
    weights: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Length-controlled win rates from published weights.")
    ] = None,
    items: Annotated[
        int | None, typer.Option(min=1, help="With weights: on how many items a model was judged.")
    ] = None,
    version: Annotated[Literal["1", "2"], typer.Option(help="AlpacaEval 1.0 or 2.0.")] = "1",
    out: Out = None,
    as_json: AsJson = False,
    files: AlpacaEvalOptions = AlpacaEvalOptions(),
    answering: AnswerOptions = AnswerOptions(),
    answering_wire: ModelWire = WireOptions(),
    judging: JudgeOptions = JudgeOptions(),
    judging_wire: JudgeWire = WireOptions(),
) -> None:
    """AlpacaEval 1.0 and 2.0: 805 instructions against a reference model's outputs."""
    from bactrian import evaluating
    from bactrian.evaluate import alpaca_eval as rules

    kind: rules.Version = 1 if version == "1" else 2
    if weights is not None:
        scores = evaluating.score_weights(weights, files.difficulty, files.data, items)
        _tell(scores, as_json, False, "controlled")
        return
    if annotations is not None:
        beside = files.files(annotations.absolute().parent)
        scores = evaluating.score_annotations(annotations, beside, kind, out, answering.name, judging.judge_model)
    else:
        first, folder = _asked(model, out, f"alpaca-eval-{version}", "--annotations FILE")
        candidate = answering.candidate(first, rules.MAX_TOKENS, answering_wire)
        scores = evaluating.run_alpaca_eval(candidate, files.files(), kind, judging.judging(judging_wire), folder)
    _tell(scores, as_json, judging.dry_run, "alpaca_eval", f"AlpacaEval {version}.0")


@evaluate_app.command("judge")
@grouped
def judge(
    pairs: Annotated[list[Path], typer.Argument(metavar="FILE...", help="Pairs that people judged: LLMBar's layout.")],
    prompt: Annotated[
        Literal["mt-bench", "alpaca-eval-1", "alpaca-eval-2"], typer.Option(help="Whose judge prompt to use.")
    ] = "mt-bench",
    samples: Annotated[int, typer.Option(min=1, max=1000, help="Verdicts on each pair in each order.")] = 1,
    temperature: Annotated[
        float, typer.Option(callback=a_number, min=0, max=1000, help="Of the judge, where there are several samples.")
    ] = 0.7,
    out: Out = None,
    as_json: AsJson = False,
    data: Data = None,
    judge_prompts: JudgePrompts = None,
    judging: JudgeOptions = JudgeOptions(),
    judging_wire: JudgeWire = WireOptions(),
) -> None:
    """How good a judge is: agreement with people, position and length bias, self-consistency."""
    from bactrian import evaluating

    if out is None:
        raise InputError("say with --out where the judgments are to be kept")
    found = evaluating.judge_prompt(prompt, judge_prompts, data)
    scores = evaluating.run_judge(pairs, found, judging.judging(judging_wire), samples, temperature, out)
    _tell(scores, as_json, judging.dry_run, "judge_quality", judging.judge_model or judging.judge or "")


@evaluate_app.command("compare")
def compare(
    first: Annotated[Path, typer.Argument(metavar="FIRST", help="An evaluation's folder, or its judgments or items.")],
    second: Annotated[Path, typer.Argument(metavar="SECOND", help="Another's, of the same items.")],
    as_json: AsJson = False,
) -> None:
    """Compare two evaluations item by item: the difference, its interval, and whether it is noise."""
    from bactrian.evaluate import compare as comparing

    _tell(comparing.run(first, second), as_json, False, "compared", str(first), str(second))


def _asked(model: str | None, out: Path | None, benchmark: str, other: str) -> tuple[str, Path]:
    """The MODEL, and the folder: the one given, or a run's own. Raises `InputError`."""
    if model is None:
        raise InputError(f"nothing to evaluate; give a MODEL, or {other}")
    if out is None and (Path(model) / "recipe.json").is_file():
        out = Path(model) / "benchmarks" / benchmark
    if out is None:
        raise InputError("say with --out where answers, judgments and scores are to be kept")
    return model, out


def _tell(scores: dict[str, Any], as_json: bool, is_plan: bool, table: str, *about: str) -> None:
    if as_json:
        progress.show_json(scores)
    elif is_plan:
        for name, value in scores.items():
            progress.show(f"{name.replace('_', ' ')}: {value:,}")
    elif scores:
        from bactrian.evaluate import tables

        getattr(tables, table)(scores, *about)


# Where no verb is named, MODEL is: `bactrian evaluate MODEL --suite tulu2`.
evaluate_app.command("benchmarks", hidden=True)(benchmarks.evaluate)
