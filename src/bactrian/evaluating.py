"""What `bactrian evaluate` puts together: whatever a MODEL or a judge stands for, the published files, and a folder."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, cast

from bactrian import masking, progress
from bactrian.assistant import ChatFormat
from bactrian.errors import InputError
from bactrian.evaluate import (
    alpaca_eval,
    alpaca_eval_job,
    answers,
    artifacts,
    judge_quality,
    length_control,
    mt_bench,
    mt_bench_job,
    mt_bench_scores,
    published,
    verdicts,
)
from bactrian.evaluate import judge as judges
from bactrian.evaluate.address import Address, Wire
from bactrian.evaluate.alpaca_eval import Version
from bactrian.evaluate.artifacts import Folder
from bactrian.evaluate.calls import Call, Store
from bactrian.evaluate.endpoint import Endpoint
from bactrian.evaluate.judge import AnyJudge
from bactrian.evaluate.pace import Budget, Limits
from bactrian.evaluate.protocol import Generator, Responder, Settings
from bactrian.model.llama import Dtype

Row = dict[str, Any]

_HOSTED = "api.openai.com"
_FILES = (".json", ".jsonl", ".json.gz", ".jsonl.gz")


@dataclass(frozen=True)
class Candidate:
    """Who answers: a model, an address or a file of answers; and how a model of ours, or an address, is asked."""

    model: str
    name: str | None = None
    model_name: str | None = None
    key_name: str = "OPENAI_API_KEY"
    format: ChatFormat = "model"
    dtype: Dtype = "float32"
    max_tokens: int = mt_bench.MAX_TOKENS
    seed: int = 0
    wire: Wire = field(default_factory=Wire)

    @property
    def file(self) -> Path | None:
        path = Path(self.model)
        return path if self.model.endswith(_FILES) and not self.is_address else None

    @property
    def is_address(self) -> bool:
        return self.model.startswith(("http://", "https://"))

    @property
    def shown(self) -> str:
        """The name of the model in files and tables; never where it lies."""
        if self.name or self.is_address:
            return self.name or self.model_name or "model"
        path = Path(self.model.removeprefix("hf:").removeprefix("pypi:").partition("@")[0].partition("==")[0])
        return (path.parent.name if path.name in ("export", "final") else path.name.removesuffix(".gguf")) or "model"


@dataclass(frozen=True)
class Judging:
    """Who judges, how it is asked, and within which limits."""

    judge: str | None
    model: str | None = None
    key_name: str = "OPENAI_API_KEY"
    format: ChatFormat = "model"
    dtype: Dtype = "float32"
    limits: Limits = field(default_factory=Limits)
    budget: Budget = field(default_factory=Budget)
    dry_run: bool = False
    wire: Wire = field(default_factory=Wire)

    @property
    def is_address(self) -> bool:
        return (self.judge or "").startswith(("http://", "https://"))


def open_judge(judging: Judging, store: Store, template: str | None = None, version: Version = 1) -> AnyJudge:
    """The judge that is meant. Raises `InputError`."""
    kind, _, rest = (judging.judge or "").partition(":")
    if judging.is_address:
        url = str(judging.judge)
        if judging.model is None:
            raise InputError(f"{url}: say which model is to judge there, with --judge-model")
        address = Address(url, judging.model, _key(url, judging.key_name), judging.key_name, judging.wire)
        return Endpoint(address, store, judging.limits, judging.budget)
    if judging.wire != Wire():
        raise InputError(f"--judge {judging.judge or ''}: no address, so there are no requests that --judge-… changes")
    if kind == "replay" and rest:
        return judges.replay(Path(rest), template, version, judging.model)
    if kind == "engine" and rest:
        name = judging.model or Path(rest).name
        return judges.Local(name, _judges_name(judging), _engine(rest, judging.format, judging.dtype), store)
    if kind == "reward" and rest:
        return judges.reward(rest)
    raise InputError(
        f"--judge {judging.judge or ''}: give an address (http://…), replay:FILE, engine:MODEL or "
        f"reward:MODULE:FUNCTION"
    )


def _key(url: str, name: str) -> str | None:
    key = masking.key(name)
    if key is None and _HOSTED in url:
        raise InputError(f"{url}: there is no key; set {name} in the environment")
    return key


def _fingerprint(model: str) -> str:
    from bactrian import assistant
    from bactrian.model import weights

    return weights.fingerprint(assistant.find(model).path)


def _judges_name(judging: Judging) -> str:
    """What judgments are kept under: a model of ours is known by its weights too, an address by how it is asked."""
    if judging.is_address:
        return Address(str(judging.judge), judging.model or "", wire=judging.wire).kept_as
    kind, _, rest = (judging.judge or "").partition(":")
    name = judging.model or Path(rest).name
    return f"{name}@{_fingerprint(rest)[:16]}" if kind == "engine" and rest else name


def _engine(model: str, format: ChatFormat, dtype: Dtype) -> Responder:
    from bactrian import assistant, respond

    return respond.Respondent(assistant.find(model), format, dtype)


@contextmanager
def _generator(candidate: Candidate, folder: Folder, limits: Limits) -> Iterator[Generator]:
    if candidate.is_address:
        key = _key(candidate.model, candidate.key_name)
        name = candidate.model_name or ""
        address = Address(candidate.model, name, key, candidate.key_name, candidate.wire, "--model")
        store = Store(folder.file("answer_calls.jsonl"))
        try:
            yield Endpoint(address, store, limits)
        finally:
            store.close()
    else:
        yield _engine(candidate.model, candidate.format, candidate.dtype)


def _settings(candidate: Candidate, questions: Path, **more: Any) -> Row:
    """What the answers depend on; of a model at an address its name stands for the weights."""
    if candidate.is_address and candidate.model_name is None:
        raise InputError(f"{candidate.model}: say which model is to answer there, with --model-name")
    return {
        "model": candidate.shown,
        "source": "address" if candidate.is_address else "engine",
        "weights": None if candidate.is_address else _fingerprint(candidate.model),
        "chat": candidate.format,
        "dtype": candidate.dtype,
        "max_tokens": candidate.max_tokens,
        "seed": candidate.seed,
        "questions": published.digest(questions),
        "wire": (candidate.wire.as_row() or None) if candidate.is_address else None,
        **more,
    }


def run_mt_bench(
    candidate: Candidate, against: Candidate | None, files: mt_bench_job.Files, judging: Judging, out: Path
) -> Row:
    """MT-Bench from answers to scores; without a judge the answers alone. Returns the scores, or a dry run's counts."""
    folder = Folder(out)
    bench, path = mt_bench_job.read(files)
    sides = [(candidate, folder)] + ([(against, Folder(out / "against"))] if against else [])
    if judging.dry_run:
        given = [_planned_mt_bench(side, own, bench) for side, own in sides]
        open_answers = sum(not answer.turns[0] for each in given for answer in each.values())
        return _plan(mt_bench_job.calls(bench, given), judging, folder, open_answers, candidate.max_tokens)
    with _opened(judging, folder) as judge:
        mt_bench_job.keep_questions(folder, path, bench.questions)
        given = [_answers_mt_bench(side, own, bench, path, judging.limits) for side, own in sides]
        if judge is None:
            return {}
        if against:
            return mt_bench_job.pairwise(folder, bench, given[0], given[1], judge)
        return mt_bench_job.single(folder, bench, given[0], judge)


@contextmanager
def _opened(
    judging: Judging, folder: Folder, template: str | None = None, version: Version = 1
) -> Iterator[AnyJudge | None]:
    """The judge, or None; opened before anything is answered, so that what is wrong with it is known at once."""
    if judging.judge is None:
        progress.say("no --judge: the answers are made, and nothing is judged")
        yield None
        return
    store = folder.store()
    try:
        yield open_judge(judging, store, template, version)
    finally:
        store.close()


def _answers_mt_bench(
    candidate: Candidate, folder: Folder, bench: mt_bench.Bench, questions: Path, limits: Limits
) -> dict[int, mt_bench.Answer]:
    if candidate.file:
        found = answers.given_mt_bench(candidate.file, candidate.name, bench.questions)
        folder.keep_given(candidate.file, answers.mt_bench_rows(found))
        return found
    settings = _settings(candidate, questions, benchmark="mt-bench", asked=len(bench.questions))
    folder.settle(settings)
    with _generator(candidate, folder, limits) as generator:
        how = Settings(max_tokens=candidate.max_tokens, seed=candidate.seed)
        return answers.answer_mt_bench(folder, generator, candidate.shown, bench.questions, how)


def _planned_mt_bench(candidate: Candidate, folder: Folder, bench: mt_bench.Bench) -> dict[int, mt_bench.Answer]:
    """The answers that are there, and empty ones in place of those that are not."""
    if candidate.file:
        return answers.given_mt_bench(candidate.file, candidate.name, bench.questions)
    unmade = {each.id: mt_bench.Answer(candidate.shown, ("",) * len(each.turns)) for each in bench.questions}
    made = answers.made_mt_bench(folder, candidate.shown)
    return {key: made.get(key, answer) for key, answer in unmade.items()}


def run_alpaca_eval(
    candidate: Candidate, files: alpaca_eval_job.Files, version: Version, judging: Judging, out: Path
) -> Row:
    """AlpacaEval from answers to scores; without a judge the answers alone. Returns the scores, or the counts."""
    folder = Folder(out)
    references = alpaca_eval_job.references(files, version)
    if judging.dry_run:
        outputs = _planned_alpaca_eval(candidate, folder, references)
        pairs = alpaca_eval.pair(references, outputs)
        open_answers = sum(not output.output for output in outputs)
        calls = alpaca_eval_job.calls(pairs, files, version)
        return _plan(calls, judging, folder, open_answers, candidate.max_tokens)
    asks = judging.judge is not None and not judging.judge.startswith("reward:")
    text = alpaca_eval_job.template(files, version) if asks else None
    with _opened(judging, folder, text, version) as judge:
        outputs = _outputs_alpaca_eval(candidate, folder, references, version, judging.limits)
        pairs = alpaca_eval.pair(references, outputs)
        if judge is None:
            return {}
        return alpaca_eval_job.run(folder, pairs, judge, files, version)


def _outputs_alpaca_eval(
    candidate: Candidate, folder: Folder, references: list[alpaca_eval.Output], version: Version, limits: Limits
) -> list[alpaca_eval.Output]:
    if candidate.file:
        outputs = answers.given_alpaca_eval(candidate.file, candidate.name)
        alpaca_eval.pair(references, outputs)  # or they are of another question set
        alpaca_eval_job.keep(folder, references)
        folder.keep_given(candidate.file, [asdict(output) for output in outputs])
        return outputs
    alpaca_eval_job.keep(folder, references)
    questions = folder.file("questions.jsonl")
    folder.settle(_settings(candidate, questions, benchmark=f"alpaca-eval {version}", asked=len(references)))
    with _generator(candidate, folder, limits) as generator:
        how = Settings(max_tokens=candidate.max_tokens, seed=candidate.seed)
        return answers.answer_alpaca_eval(folder, generator, candidate.shown, references, how)


def _planned_alpaca_eval(
    candidate: Candidate, folder: Folder, references: list[alpaca_eval.Output]
) -> list[alpaca_eval.Output]:
    if candidate.file:
        return answers.given_alpaca_eval(candidate.file, candidate.name)
    made = {each.instruction: each.output for each in answers.made_alpaca_eval(folder, candidate.shown)}
    return [
        alpaca_eval.Output(each.instruction, made.get(each.instruction, ""), candidate.shown, each.dataset)
        for each in references
    ]


def run_judge(
    paths: list[Path], prompt: judge_quality.Prompt, judging: Judging, samples: int, temperature: float, out: Path
) -> Row:
    """A judge's quality on pairs that people judged. Returns the scores, or a dry run's counts."""
    folder = Folder(out)
    items = judge_quality.read(paths)
    if judging.dry_run:
        return _plan(judge_quality.calls(items, prompt, samples, temperature), judging, folder, 0, 0)
    template, version = (None, 1) if isinstance(prompt, mt_bench.Template) else prompt
    with _opened(judging, folder, template, cast(Version, version)) as judge:
        if judge is None:
            raise InputError("say with --judge who is to be measured")
        found = judge_quality.judge(items, prompt, judge, samples, temperature)
    rows = judge_quality.verdict_rows(items, found)
    folder.write_rows("judgments.jsonl", rows)
    verdicts.check(rows, folder, judge)
    scores = judge_quality.measure(items, found)
    folder.write_scores(scores, [], benchmark="judge", judge=judge.name)
    verdicts.tell_of_failures(rows, judge)
    return scores


def judge_prompt(which: str, given: Path | None, data: Path | None) -> judge_quality.Prompt:
    """The prompt of a benchmark that a judge's quality is measured with: mt-bench, alpaca-eval-1 or alpaca-eval-2."""
    if which == "mt-bench":
        templates = mt_bench.read_templates(published.locate(published.MT_BENCH_PROMPTS, given, data))
        if "pair-v2" not in templates:
            raise InputError(f"{given}: there is no prompt pair-v2; give FastChat's judge_prompts.jsonl")
        return templates["pair-v2"]
    version: Version = 1 if which.endswith("1") else 2
    return alpaca_eval_job.template(alpaca_eval_job.Files(prompt=given, data=data), version), version


def _plan(calls: list[Call], judging: Judging, folder: Folder, answers_to_make: int, answer_tokens: int) -> Row:
    """How much a judge would be asked, and what it would cost at most."""
    asked = len(calls)
    if folder.file("calls.jsonl").exists():
        name, store = _judges_name(judging), folder.store()
        calls = [call for call in calls if store.find(call.key(name), judging.limits.reasks) is None]
        store.close()
    tokens_in = sum(call.tokens_about for call in calls)
    tokens_out = sum(judging.wire.fit(call).max_tokens for call in calls)
    plan: Row = {
        "answers_to_make": answers_to_make,
        "judge_calls": len(calls),
        "judge_calls_kept": asked - len(calls),
        "judge_tokens_in_about": tokens_in,
        "judge_tokens_out_at_most": tokens_out,
        "answers_not_counted_tokens_at_most": answers_to_make * answer_tokens,
    }
    if judging.budget.price_in or judging.budget.price_out:
        plan["judge_cost_at_most_about"] = judging.budget.cost(tokens_in, tokens_out)
    return plan


def score_judgments(
    path: Path, questions: Path | None, baseline: str | None, out: Path | None = None, judge: str | None = None
) -> Row:
    """MT-Bench's figures from judgments, rated or in pairs; with a folder, its files too.

    Raises `DataError`, also for several judges of which none is named, and `JudgeError` where too many failed.
    """
    rows = published.rows(path)
    rows = published.of_one(
        rows, published.judge_of, "judges", judge, "say with --judge-model whose judgments to count"
    )
    if mt_bench_scores.is_pairwise(rows):
        scores = mt_bench_scores.pairwise(rows, baseline)
    else:
        repeated, wrong = mt_bench_scores.repeated(rows), mt_bench_scores.disagreements(rows)
        if repeated:
            progress.say(f"warning: {repeated} judgments are repeated; like FastChat, each counts")
        if wrong:
            progress.say(
                f"warning: {len(wrong)} recorded scores are not what the judgment says, the first at {wrong[0]}"
            )
        categories = None
        if questions is not None:
            categories = {each.id: each.category for each in mt_bench.read_questions(questions)}
        scores = mt_bench_scores.single(rows, categories)
    for model, failed in mt_bench_scores.failures(rows).items():
        if model in scores:
            verdicts.enough(failed, scores[model]["n"] + len(failed), "", f"{path}: of {model}, ")
    if out is not None:
        mt_bench_job.write_scores(Folder(out), [row for _, row in rows], scores)
    return scores


def score_annotations(
    path: Path,
    files: alpaca_eval_job.Files,
    version: Version,
    out: Path | None,
    name: str | None = None,
    judge: str | None = None,
) -> Row:
    """AlpacaEval's figures from annotations; with a folder, its files too.

    Raises `DataError`, also for several models or judges of which none is named; `JudgeError` where too many failed.
    """
    rows = alpaca_eval.annotations(alpaca_eval.of_one(published.rows(path), name, judge))
    verdicts.enough(alpaca_eval.failures(rows), len(rows), "", f"{path}: ")
    scores = alpaca_eval_job.score(rows, files)
    if out is not None:
        folder = artifacts.Folder(out)
        folder.write_rows("judgments.jsonl", rows)
        alpaca_eval_job.write(folder, rows, scores, str(rows[0].get("annotator") or path.stem), version)
    return scores


def score_weights(path: Path, difficulty: Path | None, data: Path | None, items: int | None = None) -> Row:
    """Length-controlled win rates of every model whose weights a file holds. Raises `DataError`."""
    found = difficulty or published.beside(data or path.parent, alpaca_eval_job.DIFFICULTIES)
    if found is None:
        raise InputError(f"{path}: weights need the items' difficulties; give them with --difficulty")
    difficulties = length_control.read_difficulties(found)
    return {
        model: length_control.from_weights(weights, difficulties, items).as_row()
        for model, weights in length_control.read_weights(path).items()
    }
