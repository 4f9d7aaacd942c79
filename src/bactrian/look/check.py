"""`bactrian data check`: what will go wrong with a stage's data, said before training.

A finding is an error (training would stop, or learn the wrong thing), a warning, or good to know.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from bactrian import progress
from bactrian.assistant import Assistant
from bactrian.data.chat import Chat
from bactrian.data.screen import Ledger, listed
from bactrian.errors import DataError, printable
from bactrian.look.columns import unread
from bactrian.look.stats import Measured, measure_all
from bactrian.prepare import Prepared, check_formats, faults, prepare
from bactrian.recipe import Stage, StageName

_LENGTHS = (512, 1024, 2048, 4096, 8192)
_COLUMNS_SHOWN = 20
_MUCH = 0.05  # a share of rows too long that is worth a warning
_POOR_FILL = 0.8

Level = Literal["error", "warning", "note"]


class Finding(NamedTuple):
    """One thing found: how grave, under which name for machines, and in words."""

    level: Level
    name: str
    text: str


@dataclass(frozen=True)
class Report:
    """What was found, and the numbers behind it."""

    stage: StageName
    findings: list[Finding]
    numbers: dict[str, Any]

    @property
    def is_well(self) -> bool:
        return all(finding.level != "error" for finding in self.findings)

    def to_json(self) -> dict[str, Any]:
        findings = [finding._asdict() for finding in self.findings]
        return {"stage": self.stage, "ok": self.is_well, "findings": findings, **self.numbers}


def check(name: StageName, settings: Stage, base: Assistant, chat: Chat, seed: int, cache: Path) -> Report:
    """Read all of a stage's data and plan its rows. Raises `InputError`s for data that cannot be read at all."""
    measured = measure_all(settings.data, chat, cache)
    held = [measure_all(settings.heldout, chat, cache)] if settings.heldout else []
    bad = Ledger()
    for entry in (entry for each in (measured, *held) for entry in each.corpus.ledger["sources"]):
        bad.add(Ledger.of(entry))
    findings = [Finding("error", *fault) for fault in faults(measured.corpus, chat)]
    findings += [*_of_bad_rows(bad, settings), *_of_drops(measured)]
    too_long = {str(length): _share(measured.paths > length) for length in sorted({*_LENGTHS, settings.max_length})}
    findings += _of_lengths(settings, base, too_long[str(settings.max_length)])
    columns = unread((*settings.data, *settings.heldout))
    findings += _of_columns(columns)
    numbers: dict[str, Any] = {"rows": len(measured.places), "dropped": _dropped(measured), "too_long": too_long}
    numbers |= {"bad_rows": {"kinds": bad.bad_kinds, "first": bad.bad_rows}, "unread_columns": columns}
    try:
        check_formats(name, settings)
        if bad.bad_rows and settings.on_bad_row == "stop":
            return Report(name, findings, numbers)
        prepared = prepare(name, settings, chat, seed, cache)
    except DataError as error:
        findings.append(Finding("error", "cannot_train", str(error)))
        return Report(name, findings, numbers)
    numbers |= _plan(prepared)
    findings += _of_the_plan(numbers, settings)
    return Report(name, findings, numbers)


def _of_bad_rows(bad: Ledger, settings: Stage) -> list[Finding]:
    count = sum(bad.bad_kinds.values())
    if not count:
        return []
    what = f"{count:,} of {bad.read:,} rows do not fit: {listed(bad.bad_kinds)}"
    if settings.on_bad_row == "drop":
        return [Finding("warning", "bad_rows", f"{what}; they are dropped, under max_dropped")]
    return [Finding("error", "bad_rows", f'{what}; repair them, or drop them with on_bad_row = "drop"')]


def _of_drops(measured: Measured) -> list[Finding]:
    findings = []
    for reason, count in sorted(_dropped(measured).items()):
        if reason != "bad_row":
            findings.append(Finding("warning", reason, f"{count:,} rows are dropped: {reason.replace('_', ' ')}"))
    noted: dict[str, int] = {}
    for entry in measured.corpus.ledger["sources"]:
        for what, count in entry.get("noted", {}).items():
            noted[what] = noted.get(what, 0) + count
    if noted:
        findings.append(Finding("note", "noted", f"counted in the ledger: {listed(noted)}".replace("_", " ")))
    return findings


def _of_columns(columns: dict[str, int]) -> list[Finding]:
    if not columns:
        return []
    shown = ", ".join(f"{column} ({count:,} rows)" for column, count in list(columns.items())[:_COLUMNS_SHOWN])
    more = "" if len(columns) <= _COLUMNS_SHOWN else f" and {len(columns) - _COLUMNS_SHOWN} more"
    return [Finding("note", "unread_columns", f"columns that are not read: {shown}{more}")]


def _of_lengths(settings: Stage, base: Assistant, share: float) -> list[Finding]:
    findings = []
    positions = base.config.max_positions
    if settings.max_length > positions:
        text = f"max_length is {settings.max_length}, and the model has {positions} positions; lower it"
        findings.append(Finding("error", "too_few_positions", text))
    if share:
        level = "warning" if share > _MUCH else "note"
        text = f"{share:.2%} of rows are longer than max_length ({settings.max_length}) and are dropped"
        findings.append(Finding(level, "too_long", text))
    return findings


def _plan(prepared: Prepared) -> dict[str, Any]:
    seen = prepared.ledger()["training"]
    epochs = prepared.settings.epochs
    tokens = seen["learned"] + seen["masked"]
    return {
        "steps": seen["updates"],
        "steps_per_epoch": seen["updates"] // epochs,
        "epochs": epochs,
        "examples": seen["examples"],
        "examples_left_out": seen["examples_left_out"],
        "tokens": tokens,
        "tokens_per_epoch": tokens // epochs,
        "learned_tokens": seen["learned"],
        "row_length": seen["row_length"],
        "packing": round(tokens / seen["places"], 4),
    }


def _of_the_plan(numbers: dict[str, Any], settings: Stage) -> list[Finding]:
    findings = []
    if numbers["packing"] < _POOR_FILL:
        text = f"packed rows are only {numbers['packing']:.1%} full (rows of {numbers['row_length']} places)"
        remedy = "a larger row_length or batch_size, or fewer microbatch_rows, fills them better"
        findings.append(Finding("warning", "poor_packing", f"{text}; {remedy}"))
    left_out = numbers["examples_left_out"]
    if left_out:
        text = f"{left_out:,} examples do not fill a batch of {settings.batch_size} at the end of an epoch"
        findings.append(Finding("note", "left_out", f"{text}; each epoch leaves out others"))
    return findings


def _dropped(measured: Measured) -> dict[str, int]:
    counts: dict[str, int] = {}
    for entry in measured.corpus.ledger["sources"]:
        for reason, count in entry["dropped"].items():
            counts[reason] = counts.get(reason, 0) + count
    return counts


def _share(flags: np.ndarray) -> float:
    return round(float(flags.mean()), 6) if len(flags) else 0.0


def show(report: Report) -> None:
    """Print a report."""
    console = progress.Plain()
    numbers = report.numbers
    shares = ", ".join(f"{share:.2%} at {length}" for length, share in numbers["too_long"].items())
    console.print(f"{report.stage}: {numbers['rows']:,} rows with something to learn")
    console.print(f"too long: {shares}")
    if "steps" in numbers:
        console.print(
            f"{numbers['steps']:,} steps, {numbers['steps_per_epoch']:,} an epoch, {numbers['epochs']} epochs; "
            f"{numbers['tokens']:,} tokens, of which {numbers['learned_tokens']:,} are learnt"
        )
        console.print(f"packing: rows of {numbers['row_length']} places, {numbers['packing']:.1%} full")
    colours = {"error": "bold red", "warning": "yellow", "note": "dim"}
    for level, _, text in sorted(report.findings, key=lambda finding: list(colours).index(finding.level)):
        console.print(level, style=colours[level], end="")
        console.print(f": {printable(text)}")
    first = numbers["bad_rows"]["first"]
    for row in first:
        console.print(f"  {row}")
    if len(first) < (count := sum(numbers["bad_rows"]["kinds"].values())):
        console.print(f"  … and {count - len(first):,} more")
    if not report.findings:
        console.print("nothing found that would go wrong")
