"""AlpacaEval from instructions to scores, in one folder."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bactrian import progress
from bactrian.data.records import Message, Messages
from bactrian.errors import DataError
from bactrian.evaluate import alpaca_eval, length_control, page, pictures, published, verdicts
from bactrian.evaluate.alpaca_eval import Output, Version
from bactrian.evaluate.artifacts import Folder, Result
from bactrian.evaluate.calls import Call
from bactrian.evaluate.judge import AnyJudge, Reward

Row = dict[str, Any]

DIFFICULTIES = ("instruction_difficulty.csv", "derived_instruction_difficulty.csv", "df_gamed.csv")
_GAMED = ("df_gamed.csv", "derived_gamed_length_features.csv", "gamed_length_features.csv")


@dataclass(frozen=True)
class Files:
    """The user's own files, each in place of the published one.

    `data` is a folder that holds some of them; what length control needs may also lie in `beside`.
    """

    reference: Path | None = None
    prompt: Path | None = None
    difficulty: Path | None = None
    gamed: Path | None = None
    data: Path | None = None
    limit: int | None = None
    beside: Path | None = None


def references(files: Files, version: Version) -> list[Output]:
    """The reference model's outputs: the instructions, in their order. Raises `DataError`."""
    path = published.locate(published.ALPACA_REFERENCES[version], files.reference, files.data)
    return alpaca_eval.read_outputs(path)[: files.limit]


def template(files: Files, version: Version) -> str:
    """The judge's prompt. Raises `DataError`."""
    return alpaca_eval.template(published.locate(published.ALPACA_PROMPTS[version], files.prompt, files.data))


def keep(folder: Folder, references: Sequence[Output]) -> None:
    """Put the instructions, with the reference's outputs, into the folder. Raises `RunError` as `keep_questions`."""
    folder.keep_questions([asdict(each) for each in references])


def run(folder: Folder, pairs: list[Row], judge: AnyJudge, files: Files, version: Version) -> Row:
    """Judge the pairs; writes judgments.jsonl, scores.json, page and picture. Returns the scores."""
    if isinstance(judge, Reward):
        rows = _rewarded(pairs, judge, version)
    else:
        rows = alpaca_eval.judge(pairs, template(files, version), judge, version)
    folder.write_rows("judgments.jsonl", rows)
    verdicts.check(rows, folder, judge)
    scores = score(rows, files)
    write(folder, rows, scores, judge.name, version, files.limit)
    verdicts.tell_of_failures(rows, judge)
    return scores


def score(rows: Sequence[Row], files: Files) -> Row:
    """The figures of judged pairs; `length_controlled_winrate` is null where its files are not given."""
    scores: Row = {**alpaca_eval.scores(rows), **alpaca_eval.certainty(rows)}
    controlled = control(rows, files)
    scores |= {"length_controlled_winrate": None} if controlled is None else controlled.as_row()
    return scores


def control(rows: Sequence[Row], files: Files) -> length_control.Controlled | None:
    """The length-controlled win rate, where difficulties and gamed baselines are given or lie in one of the folders.

    None, and a warning, where these judgments allow no fit: too few of them, or of another question set.
    """
    difficulty, gamed = _control_file(files.difficulty, files, DIFFICULTIES), _control_file(files.gamed, files, _GAMED)
    if difficulty is None or gamed is None:
        return None
    difficulties = length_control.read_difficulties(difficulty)
    baselines = length_control.read_gamed(gamed, difficulties)
    try:
        return length_control.fit(rows, difficulties, baselines)
    except DataError as error:
        progress.say(f"warning: no length-controlled win rate: {error}")
        return None


def _control_file(given: Path | None, files: Files, names: tuple[str, ...]) -> Path | None:
    return given or published.beside(files.data, names) or published.beside(files.beside, names)


def write(folder: Folder, rows: list[Row], scores: Row, judge: str, version: Version, limit: int | None = None) -> None:
    """scores.json, page and picture of judged pairs."""
    dataset = f"AlpacaEval {version}.0"
    results = [
        Result(
            metric="win_rate",
            name=f"{dataset} win rate (%)",
            dataset=dataset,
            value=scores["win_rate"],
            n=scores["n_total"],
            low=scores["interval"]["low"],
            high=scores["interval"]["high"],
            judge=judge,
            note=verdicts.note(scores["failed"], limit),
        )
    ]
    if scores["length_controlled_winrate"] is not None:
        results.append(
            Result(
                metric="length_controlled_winrate",
                name=f"{dataset} length-controlled win rate (%)",
                dataset=dataset,
                value=scores["length_controlled_winrate"],
                n=len(rows),
                judge=judge,
                note="; ".join(filter(None, (verdicts.note(0, limit), scores["lc_basis"]))),
            )
        )
    folder.write_scores(scores, results, benchmark="alpaca-eval", version_of_rules=version, judge=judge)
    page.write_alpaca_eval(folder.file("page.html"), rows)
    whole = {**scores["interval"], "n": scores["n_total"]}
    model = str(rows[0].get("generator_2") or "the model")
    pictures.bars(folder.file("win_rates.png"), alpaca_eval.by_dataset(rows), whole, model)


def calls(pairs: Sequence[Row], files: Files, version: Version) -> list[Call]:
    """What a judge would be asked, for a dry run."""
    text = template(files, version)
    return [alpaca_eval.call(text, row, version) for row in pairs if row["output_1"] != row["output_2"]]


def _rewarded(pairs: list[Row], judge: Reward, version: Version) -> list[Row]:
    """Pairs that a reward decides: its winner in version 1, its probability in version 2."""
    shares = judge.compare(_talks(pairs, "output_1"), _talks(pairs, "output_2"))
    rows = []
    for row, share in zip(pairs, shares, strict=True):
        decided = share if version == 2 or share == 0.5 else float(share > 0.5)
        same = row["output_1"] == row["output_2"]
        rows.append({**row, "annotator": judge.name, "preference": alpaca_eval.DRAW if same else 1 + decided})
    return rows


def _talks(pairs: Sequence[Row], output: str) -> list[Messages]:
    return [(Message("user", row["instruction"]), Message("assistant", row[output])) for row in pairs]
