"""AlpacaEval 1.0 and 2.0: 805 instructions, a model's outputs against a reference model's, judged in pairs.

The rules are those of tatsu-lab/alpaca_eval (annotators/, completion_parsers.py, metrics/helpers.py); its files are
read and written in their own layouts. A preference of 1 is the reference's win, 2 the model's, 1.5 a draw; the judge of
version 2.0 gives any number between, null is a verdict that could not be read.
"""

import ast
import math
import random
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from bactrian.data.records import Message, Messages, Role
from bactrian.errors import DataError
from bactrian.evaluate import published, reading, statistics
from bactrian.evaluate.calls import Call, Failure, Judge, Kept, Reply
from bactrian.evaluate.reading import Missing

Version = Literal[1, 2]
Row = dict[str, Any]

ANNOTATORS = {1: "alpaca_eval_gpt4", 2: "weighted_alpaca_eval_gpt4_turbo"}
MAX_TOKENS = 2048  # of an output, where the user says nothing
DRAW = 1.5
_JUDGE_TOKENS = {1: 100, 2: 1}
_JUDGE_TEMPERATURE = {1: 0.0, 2: 1.0}  # 2.0 reads probabilities, which the temperature does not change
_CHOICES = ("m", "M")  # the names that 2.0's judge chooses between: first and second
_TURN = re.compile(r"<\|im_start\|>(\w+)\n(.*?)<\|im_end\|>", re.DOTALL)
_SLOT = re.compile(r"{([^ \s]+?)}")


@dataclass(frozen=True)
class Output:
    """A model's output to an instruction."""

    instruction: str
    output: str
    generator: str
    dataset: str | None = None


def read_outputs(path: Path, name: str | None = None) -> list[Output]:
    """Outputs in AlpacaEval's layout (model_outputs.json), or one per line; of several models those of `name`.

    Raises `DataError`.
    """
    rows = published.rows(path)
    rows = published.of_one(rows, lambda row: row.get("generator"), "models", name, "say with --name whose to take")
    return [output_of(row, where, path.stem) for where, row in rows]


def output_of(row: Any, where: str, name: str) -> Output:
    """The output that a row has, by `name` if the row says no model. Raises `DataError`."""
    if not isinstance(row, dict):
        raise DataError(f"{where}: not an output; it should be an object with `instruction` and `output`")
    instruction, output = published.text(row, "instruction", where), published.text(row, "output", where)
    return Output(instruction, output, str(row.get("generator") or name), row.get("dataset"))


def read_annotations(path: Path) -> list[Row]:
    """Judged pairs in AlpacaEval's layout (annotations.json), or one per line. Raises `DataError`."""
    return annotations(published.rows(path))


def annotations(rows: published.Rows) -> list[Row]:
    """Rows that are judged pairs. Raises `DataError`."""
    for where, row in rows:
        if "preference" not in row:
            raise DataError(f"{where}: not an AlpacaEval annotation; it needs `preference`")
        value = row["preference"]
        if value is not None and (isinstance(value, bool) or not isinstance(value, int | float)):
            raise DataError(f"{where}: `preference` is {value!r}; it should be a number from 1 to 2, or null")
        for name in ("instruction", "output_1", "output_2"):
            published.text(row, name, where)
    return [row for _, row in rows]


def of_one(
    rows: published.Rows, model: str | None = None, judge: str | None = None, can_choose: bool = True
) -> published.Rows:
    """The rows that judge one model's outputs, by one judge. Raises `DataError` where several are not told apart."""
    for what, name_of, wanted, advice in (
        ("models", lambda row: row.get("generator_2"), model, "say with --name whose to count"),
        ("judges", published.judge_of, judge, "say with --judge-model whose to count"),
        ("reference models", lambda row: row.get("generator_1"), None, "split it"),
    ):
        rows = published.of_one(rows, name_of, what, wanted, advice if can_choose else "split it")
    return rows


def pair(references: Sequence[Output], outputs: Sequence[Output]) -> list[Row]:
    """Both models' outputs to each instruction, in the reference's order. Raises `DataError` for other instructions."""
    by_instruction = {output.instruction: output for output in outputs}
    missing = [each for each in references if each.instruction not in by_instruction]
    if missing:
        raise DataError(
            f"the outputs lack {len(missing)} of the {len(references)} instructions, the first "
            f"{missing[0].instruction[:60]!r}: they are of another question set, or not complete"
        )
    rows = []
    for reference in references:
        output = by_instruction[reference.instruction]
        rows.append(
            {
                "instruction": reference.instruction,
                "output_1": reference.output,
                "generator_1": reference.generator,
                "dataset": reference.dataset,
                "output_2": output.output,
                "generator_2": output.generator,
            }
        )
    return rows


# Judging


def is_switched(instruction: str, seed: int = 0) -> bool:
    """Whether the judge sees the model's output first."""
    drawn = random.Random(f"is_switched_outputs{instruction}{seed}")
    return drawn.choices([False, True], k=1)[0]


def conversation(template: str) -> Messages:
    """The messages of a judge prompt in ChatML, each without the spaces around it. Raises `DataError`."""
    turns = _TURN.findall(template)
    roles: dict[str, Role] = {"system": "system", "user": "user", "assistant": "assistant"}
    if not turns or any(role not in roles for role, _ in turns):
        raise DataError("the judge prompt is not in ChatML (<|im_start|>system … <|im_end|>); see --judge-prompts")
    return tuple(Message(roles[role], content.strip()) for role, content in turns)


def messages(template: str, row: Row, switched: bool) -> Messages:
    """What the judge is shown of a pair, the model's output first if switched.

    Slots are filled one after the other, each at its first place, as the published numbers were made: a slot's name in
    an instruction is filled too. ChatML in an output stays text, where the published code would end the prompt there.
    """
    first, second = (row["output_2"], row["output_1"]) if switched else (row["output_1"], row["output_2"])
    shown = {"instruction": row["instruction"], "output_1": first, "output_2": second}

    def fill(text: str) -> str:
        for name in dict.fromkeys(_SLOT.findall(text)):
            if name in shown:
                text = text.replace("{" + name + "}", shown[name], 1)
        return text

    return tuple(Message(message.role, fill(message.content)) for message in conversation(template))


def call(template: str, row: Row, version: Version, switched: bool | None = None) -> Call:
    """What the judge is asked about a pair, in the order that its instruction draws if none is given."""
    shown = messages(template, row, is_switched(row["instruction"]) if switched is None else switched)
    choices = _CHOICES if version == 2 else ()
    return Call(shown, _JUDGE_TOKENS[version], _JUDGE_TEMPERATURE[version], choices=choices)


def judge(rows: Sequence[Row], template: str, judge: Judge, version: Version) -> list[Row]:
    """Judge every pair; rows in AlpacaEval's layout. Identical outputs are a draw, and nobody is asked."""
    asked = [row for row in rows if row["output_1"] != row["output_2"]]
    calls = [call(template, row, version) for row in asked]
    outcomes = iter(judge.ask(calls, lambda reply: not isinstance(preferred(reply, version), Missing)))
    annotations = []
    for row in rows:
        value, about = DRAW, {}
        if row["output_1"] != row["output_2"]:
            outcome = next(outcomes)
            found = preferred(outcome, version)
            value = None if isinstance(found, Missing) else found
            if value is not None and is_switched(row["instruction"]):
                value = 3 - value
            about = _about(outcome, found)
        annotations.append({**row, "annotator": judge.name, "preference": value, **about})
    return annotations


def preferred(outcome: Reply | Failure, version: Version) -> float | Missing:
    """What the judge prefers of the pair as it saw it: 1 the first, 2 the second."""

    def lacking(reply: Reply) -> str:
        if version == 1:
            return reading.lacking_in_text(reply, "there is no rank of 1 or 2 for model_1 in the reply")
        if not reply.logprobs:
            return "the reply has no log-probabilities, which AlpacaEval 2 needs"
        return f"neither {' nor '.join(_CHOICES)} is among the likeliest tokens of the reply"

    return reading.verdict(outcome, lambda reply: preference(reply, version), lacking)


def preference(reply: Reply, version: Version) -> float | None:
    """What the judge prefers of the pair as it saw it: 1 the first, 2 the second; None where it does not say."""
    return _by_rank(reply.text) if version == 1 else _by_probability(reply.logprobs)


def _by_rank(text: str) -> float | None:
    """The rank of `model_1` in a list of Python dictionaries."""
    try:
        ranked = [each["rank"] for each in ast.literal_eval(text) if each["model"] == "model_1"]
    except (ValueError, SyntaxError, TypeError, KeyError, MemoryError, RecursionError):
        return None
    return ranked[0] if ranked and ranked[0] in (1, 2) and ranked[0] is not True else None


def _by_probability(logprobs: dict[str, float]) -> float | None:
    """2 less the share of the first's name in the probability of both; a name that is not there has none."""
    found = [logprobs.get(choice, -math.inf) for choice in _CHOICES]
    highest = max(found)
    if highest == -math.inf:
        return None
    total = highest + math.log(sum(math.exp(value - highest) for value in found))
    return 2 - math.exp(found[0] - total)


def _about(outcome: Reply | Failure, found: float | Missing) -> Row:
    trouble = found.as_row() if isinstance(found, Missing) else {}
    if isinstance(outcome, Failure):
        return trouble
    logprobs = {"logprobs": outcome.logprobs} if outcome.logprobs else {}
    return {"raw_completion": reading.clean(outcome.text), **logprobs, **trouble}


def kept_replies(annotations: Sequence[Row], template: str, version: Version) -> Kept:
    """What the judge must have said for these annotations: for a judge that answers from kept judgments."""
    replies: Kept = {}
    for row in annotations:
        won = share(row["preference"])
        shown = call(template, row, version).messages[-1].content
        if won is None:
            replies[shown, 0] = Reply(str(row.get("raw_completion") or ""))
        elif version == 2 or won in (0, 1):
            replies[shown, 0] = _reply(2 - won if is_switched(row["instruction"]) else 1 + won, version)
    return replies


def _reply(seen: float, version: Version) -> Reply:
    if version == 1:
        ranks = [{"model": "model_1", "rank": int(seen)}, {"model": "model_2", "rank": 3 - int(seen)}]
        return Reply(str(ranks))
    shares = {choice: share for choice, share in zip(_CHOICES, (2 - seen, seen - 1), strict=True) if share > 0}
    return Reply("m" if seen < DRAW else "M", logprobs={choice: math.log(share) for choice, share in shares.items()})


# Figures


def share(preference: float | None) -> float | None:
    """The model's share of a pair by its preference: 1 won, 0 lost, 0.5 drawn (written 0 or 1.5).

    None for what is no verdict: null, NaN, and what is outside of 1 to 2. Whatever reads a preference reads it by this.

    >>> share(2), share(1), share(1.5), share(0), share(1.25), share(3), share(None)
    (1, 0, 0.5, 0.5, 0.25, None, None)
    """
    value = DRAW if preference == 0 else preference
    return value - 1 if value is not None and 1 <= value <= 2 else None


def outcomes(annotations: Sequence[Row]) -> list[float | None]:
    """The model's share of each pair."""
    return [share(row["preference"]) for row in annotations]


def failures(annotations: Sequence[Row]) -> list[Row]:
    """The annotations without a verdict, each with the reason as its `error`."""
    failed = [row for row in annotations if share(row["preference"]) is None]
    return [{"error": _no_preference(row), "reply": str(row.get("raw_completion") or "")} | row for row in failed]


def _no_preference(row: Row) -> str:
    return f"its preference is {row['preference']}" if row["preference"] is not None else "its preference is null"


def scores(annotations: Sequence[Row]) -> dict[str, float | int | None]:
    """Win rate, its standard error, wins, losses, draws and length, as the leaderboards have them.

    A preference that is null or outside of 1 to 2 is dropped from every figure but the length. Raises `DataError`.
    """
    shares = outcomes(annotations)
    kept = [share for share in shares if share is not None]
    if not kept:
        raise DataError("no annotation has a preference from 1 to 2: there is nothing to count")
    mean = math.fsum(kept) / len(kept)
    spread = math.fsum((share - mean) ** 2 for share in kept)
    # Python rounds halves to even, as the published figures do; a half here is a draw, taken out before.
    discrete = [0.5 if share == 0.5 else float(round(share)) for share in kept]
    lengths = [len(row["output_2"]) for row in annotations]
    return {
        "win_rate": 100 * mean,
        "standard_error": 100 * math.sqrt(spread / (len(kept) - 1) / len(kept)) if len(kept) > 1 else None,
        "n_wins": sum(share > 0.5 for share in kept),
        "n_wins_base": sum(share < 0.5 for share in kept),
        "n_draws": sum(share == 0.5 for share in kept),
        "n_total": len(kept),
        "discrete_win_rate": 100 * math.fsum(discrete) / len(kept),
        "avg_length": int(sum(lengths) / len(lengths)),
    }


def certainty(annotations: Sequence[Row]) -> Row:
    """The interval of the win rate, in points, the sign test of wins against losses, and what failed."""
    shares = outcomes(annotations)
    found = statistics.share([[100 * share] for share in shares if share is not None], 100)
    wins = sum(share > 0.5 for share in shares if share is not None)
    losses = sum(share < 0.5 for share in shares if share is not None)
    return {
        "interval": None if found is None else asdict(found),
        "sign_test": statistics.mcnemar(wins, losses),
        "failed": sum(share is None for share in shares),
    }


def by_dataset(annotations: Sequence[Row]) -> dict[str, Row]:
    """Win rate, its interval and n for each part of the question set that the rows name."""
    parts: dict[str, list[Row]] = {}
    for row in annotations:
        if row.get("dataset"):
            parts.setdefault(str(row["dataset"]), []).append(row)
    found = {}
    for name, rows in parts.items():
        kept = [[100 * share] for share in outcomes(rows) if share is not None]
        if (part := statistics.share(kept, 100)) is not None:
            found[name] = {**asdict(part), "n": len(kept)}
    return found


def template(path: Path) -> str:
    """A judge prompt's text. Raises `DataError` where it lacks a slot."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot read the judge prompt: {error}") from None
    lacking = [name for name in ("instruction", "output_1", "output_2") if "{" + name + "}" not in text]
    if lacking:
        raise DataError(f"{path}: not an AlpacaEval judge prompt: it has no {{{lacking[0]}}}")
    conversation(text)
    return text
