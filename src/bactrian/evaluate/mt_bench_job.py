"""MT-Bench from questions to scores, in one folder."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bactrian.data.records import Message, Messages
from bactrian.errors import DataError, InputError
from bactrian.evaluate import answers, mt_bench, mt_bench_scores, page, pictures, published, verdicts
from bactrian.evaluate.artifacts import Folder, Result
from bactrian.evaluate.calls import Call
from bactrian.evaluate.judge import AnyJudge, Reward
from bactrian.evaluate.mt_bench import Answer, Bench, Question

Row = dict[str, Any]


@dataclass(frozen=True)
class Files:
    """The user's own files, each in place of the published one; `data` is a folder that holds some of them."""

    questions: Path | None = None
    references: Path | None = None
    prompts: Path | None = None
    data: Path | None = None
    limit: int | None = None


def read(files: Files) -> tuple[Bench, Path]:
    """The bench, and where its questions lie. Raises `DataError`."""
    path = published.locate(published.MT_BENCH_QUESTIONS, files.questions, files.data)
    questions = mt_bench.read_questions(path)[: files.limit]
    templates = mt_bench.read_templates(published.locate(published.MT_BENCH_PROMPTS, files.prompts, files.data))
    references: dict[int, tuple[str, ...]] = {}
    if any(question.category in mt_bench.WITH_REFERENCE for question in questions):
        found = published.locate(published.MT_BENCH_REFERENCES, files.references, files.data)
        by_model = mt_bench.read_answers(found)
        if len(by_model) > 1:
            raise DataError(f"{found}: reference answers of {', '.join(by_model)}; give those of one")
        references = {key: answer.turns for said in by_model.values() for key, answer in said.items()}
    return Bench(questions, templates, references, files.limit), path


def keep_questions(folder: Folder, path: Path, questions: Sequence[Question]) -> None:
    """Copy the questions into the folder. Raises `RunError` where answers to others are there."""
    wanted = {question.id for question in questions}
    folder.keep_questions([row for row in answers.question_rows(path) if row["question_id"] in wanted])


def single(folder: Folder, bench: Bench, given: dict[int, Answer], judge: AnyJudge) -> Row:
    """Rate one model's answers; writes judgments.jsonl, scores.json, page and picture. Returns the scores."""
    if isinstance(judge, Reward):
        raise InputError(f"{judge.name}: a reward rates on no scale of 1 to 10; compare two models, with --against")
    rows = mt_bench.judge_single(bench, given, judge)
    folder.write_rows("judgments.jsonl", rows)
    verdicts.check(rows, folder, judge)
    placed = [(f"{folder.file('judgments.jsonl')}:{n}", row) for n, row in enumerate(rows, start=1)]
    scores = mt_bench_scores.single(placed, {question.id: question.category for question in bench.questions})
    _write(folder, scores, judge.name, bench.limit)
    page.write_mt_bench(folder.file("page.html"), rows, bench.questions, [given])
    verdicts.tell_of_failures(rows, judge)
    return scores


def _write(folder: Folder, scores: dict[str, Row], judge: str, limit: int | None = None) -> None:
    results = [
        Result(
            metric="mt_bench",
            name="MT-Bench" if len(scores) == 1 else f"MT-Bench of {model}",
            dataset="MT-Bench",
            value=each["average"],
            n=each["n"],
            low=each["interval"]["low"],
            high=each["interval"]["high"],
            judge=judge,
            note=verdicts.note(each["failed"], limit),
        )
        for model, each in scores.items()
        if each["interval"]
    ]
    folder.write_scores(scores, results, benchmark="mt-bench", mode="single", judge=judge)
    pictures.radar(folder.file("radar.png"), scores)


def write_scores(folder: Folder, rows: list[Row], scores: dict[str, Row]) -> None:
    """The folder's files of judgments that came from elsewhere: there are no answers to show."""
    folder.write_rows("judgments.jsonl", rows)
    judged = rows[0].get("judge")
    judge = str(judged[0]) if isinstance(judged, list) and judged else "unknown"
    if "model_1" in rows[0]:
        folder.write_scores(scores, [], benchmark="mt-bench", mode="pairwise", judge=judge)
    else:
        _write(folder, scores, judge)


def pairwise(folder: Folder, bench: Bench, first: dict[int, Answer], second: dict[int, Answer], judge: AnyJudge) -> Row:
    """Compare two models; writes judgments.jsonl, scores.json and page. Returns the scores."""
    names = [next(iter(each.values())).model for each in (first, second)]
    if names[0] == names[1]:
        raise InputError(f"both models are called {names[0]!r}; give one another name with --name")
    if isinstance(judge, Reward):
        rows = _rewarded(bench, first, second, judge)
    else:
        rows = mt_bench.judge_pairs(bench, first, second, judge)
    folder.write_rows("judgments.jsonl", rows)
    verdicts.check(rows, folder, judge)
    placed = [(f"{folder.file('judgments.jsonl')}:{n}", row) for n, row in enumerate(rows, start=1)]
    scores = mt_bench_scores.pairwise(placed)
    own = scores[names[0]]
    results = []
    if own["interval"]:
        results = [
            Result(
                metric="mt_bench_win_rate",
                name=f"MT-Bench, pairs won against {names[1]} (%), ties as half",
                dataset="MT-Bench",
                value=100 * own["win_rate_adjusted"],
                n=own["n"],
                low=100 * own["interval"]["low"],
                high=100 * own["interval"]["high"],
                judge=judge.name,
                note=verdicts.note(own["failed"], bench.limit),
            )
        ]
    folder.write_scores(scores, results, benchmark="mt-bench", mode="pairwise", judge=judge.name)
    page.write_mt_bench(folder.file("page.html"), rows, bench.questions, [first, second])
    verdicts.tell_of_failures(rows, judge)
    return scores


def calls(bench: Bench, given: list[dict[int, Answer]]) -> list[Call]:
    """What a judge would be asked, for a dry run: nothing leaves."""
    counter = _Counter()
    if len(given) == 1:
        mt_bench.judge_single(bench, given[0], counter)
    else:
        mt_bench.judge_pairs(bench, given[0], given[1], counter)
    return counter.calls


class _Counter:
    """A judge that only notes what it is asked."""

    name = "nobody"

    def __init__(self):
        self.calls: list[Call] = []

    def ask(self, calls: list[Call], usable: Any) -> list[Any]:
        self.calls += calls
        return [mt_bench.Failure("not asked", was_asked=False) for _ in calls]


def _rewarded(bench: Bench, first: dict[int, Answer], second: dict[int, Answer], judge: Reward) -> list[Row]:
    """Pairs that a reward decides; it sees no order, so both games have one winner."""
    asked = [(question, turn) for turn in (1, 2) for question in bench.questions if len(question.turns) >= turn]
    sides = []
    for side in (first, second):
        sides.append([_talk(question, side[question.id], turn) for question, turn in asked])
    shares = judge.compare(*sides)
    rows = []
    for (question, turn), share in zip(asked, shares, strict=True):
        winner = "tie" if share == 0.5 else "model_2" if share > 0.5 else "model_1"
        rows.append(
            {
                "question_id": question.id,
                "model_1": first[question.id].model,
                "model_2": second[question.id].model,
                "g1_winner": winner,
                "g2_winner": winner,
                "judge": [judge.name, "reward"],
                "g1_judgment": f"probability that model_2 is better: {share:.4f}",
                "turn": turn,
            }
        )
    return rows


def _talk(question: Question, answer: Answer, turn: int) -> Messages:
    talk: Messages = ()
    for asked, said in zip(question.turns[:turn], answer.turns[:turn], strict=True):
        talk += (Message("user", asked), Message("assistant", said))
    return talk
