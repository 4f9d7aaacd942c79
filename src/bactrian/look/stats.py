"""`bactrian data stats`: how much there is of each source of a stage, and how long it is.

Counted before anything is too long: every row that has something to learn, with the stage's chat format. Pairs have a
report of length bias: whether the better answer is the longer one, which DPO learns as readily as what makes it better.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from bactrian import progress
from bactrian.data import corpus as corpora
from bactrian.data import screen, sources
from bactrian.data.chat import Chat
from bactrian.data.corpus import Corpus, Limits
from bactrian.data.records import Conversation
from bactrian.data.screen import listed
from bactrian.files import atomic
from bactrian.files.atomic import replacing, writing
from bactrian.recipe import OnBadRow, Source

_WITHOUT = 2**31 - 1  # a length that nothing has
_PERCENTILES = (25, 50, 75, 95)
_PICTURES = ("tokens.png", "answers.png")


@dataclass(frozen=True)
class Measured:
    """A stage's data as it is before limits: int64 [examples] each. `paths`: tokens of an example's longest branch.

    own: int64 [examples, K], tokens that each branch does not share; K is 0 for conversations.
    """

    corpus: Corpus
    places: np.ndarray
    learned: np.ndarray
    paths: np.ndarray
    own: np.ndarray

    @property
    def parts(self) -> list[tuple[str, slice]]:
        """The sources, and which of the examples are theirs."""
        entries = self.corpus.ledger["sources"]
        ends = [0, *itertools.accumulate(entry["kept"] for entry in entries)]
        return [(Path(e["path"]).name, slice(*ends[n : n + 2])) for n, e in enumerate(entries)]


def measure(data: Sequence[Source], chat: Chat, cache: Path, on_bad_row: OnBadRow = "stop") -> Measured:
    """Tokenize a stage's data without limits, or find it tokenized. Raises `DataError` and `ChatError`."""
    return of(corpora.build(data, chat, Limits(_WITHOUT, _WITHOUT), 1.0, cache, on_bad_row=on_bad_row))


def measure_all(data: Sequence[Source], chat: Chat, cache: Path) -> Measured:
    """As `measure`, with rows that do not fit left to the ledger, though none be left. Raises `DataError`."""
    return of(corpora.made(data, chat, Limits(_WITHOUT, _WITHOUT), cache, on_bad_row="drop"))


def of(corpus: Corpus) -> Measured:
    """The measures of a corpus."""
    lengths, starts = corpus.lengths, corpus.starts.astype(np.int64)
    ends = np.concatenate([starts[:, 1:], lengths[:, None]], axis=1) if starts.shape[1] else starts
    own = ends - starts
    paths = starts[:, 0] + own.max(axis=1) if starts.shape[1] else lengths
    return Measured(corpus, corpus.places(), corpus.learned(), paths, own)


def summarize(measured: Measured, data: Sequence[Source]) -> dict[str, Any]:
    """A table's worth of numbers for each source, and for all: rows, turns, tokens, learnt share, drops, length bias.

    Tokens are places of a row: what training computes for one example.
    """
    turns = [_turns(source, measured) for source in data]
    entries = []
    for (name, part), counted, entry in zip(measured.parts, turns, measured.corpus.ledger["sources"], strict=True):
        kept = {key: entry[key] for key in ("dropped", "noted", "bad_kinds") if key in entry}
        entries.append({"name": name, **kept, **_describe(measured, part, counted)})
    everything = _describe(measured, slice(None), np.concatenate(turns))
    return {"sources": entries, "all": everything}


def _describe(measured: Measured, part: slice, turns: np.ndarray) -> dict[str, Any]:
    places, learned = measured.places[part], measured.learned[part]
    total = int(places.sum())
    described: dict[str, Any] = {
        "rows": len(places),
        "turns": round(float(turns.mean()), 2) if len(turns) else None,
        "tokens": {"total": total, "mean": round(float(places.mean()), 1) if len(places) else None},
        "learned_share": round(int(learned.sum()) / total, 4) if total else None,
    }
    for percentile in _PERCENTILES if len(places) else ():
        described["tokens"][f"p{percentile}"] = int(np.percentile(places, percentile, method="inverted_cdf"))
    if measured.own.shape[1] == 2 and len(places):
        described["length_bias"] = length_bias(measured.own[part])
    return described


def length_bias(own: np.ndarray) -> dict[str, Any]:
    """How the lengths of better and worse answers compare; own: int64 [pairs, 2], tokens of each, better first."""
    better, worse = own[:, 0], own[:, 1]
    return {
        "longer_better": round(float((better > worse).mean()), 4),
        "equal": round(float((better == worse).mean()), 4),
        "longer_worse": round(float((better < worse).mean()), 4),
        "mean_better": round(float(better.mean()), 1),
        "mean_worse": round(float(worse.mean()), 1),
    }


def _turns(source: Source, measured: Measured) -> np.ndarray:
    """Turns of each record with something to learn, int64 [n]; a system message is none, and of branches the first's
    count."""
    counts = []
    drop = any(entry["path"] == source.path and "bad_rows" in entry for entry in measured.corpus.ledger["sources"])
    for record in sources.load(source, "drop" if drop else "stop"):
        if screen.unusable(record) is None:
            messages = record.messages if isinstance(record, Conversation) else record.branches[0]
            counts.append(sum(message.role != "system" for message in messages))
    return np.array(counts, np.int64)


def show(summary: dict[str, Any]) -> None:
    """Print a summary as a table."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("source", no_wrap=True, min_width=max(len(entry["name"]) for entry in summary["sources"]))
    columns = ("rows", "turns", "tokens", "mean", *(f"p{p}" for p in _PERCENTILES), "learnt")
    for column in columns:
        table.add_column(column, justify="right", no_wrap=True)
    for entry in (*summary["sources"], {"name": "all", **summary["all"]}):
        tokens = entry["tokens"]
        cells = [tokens["total"], tokens["mean"], *(tokens.get(f"p{p}") for p in _PERCENTILES)]
        share = "" if entry["learned_share"] is None else f"{entry['learned_share']:.1%}"
        table.add_row(entry["name"], *(_cell(c) for c in (entry["rows"], entry["turns"], *cells)), share)
    console = progress.Plain()
    console.print(table)
    for entry in summary["sources"]:
        if entry["dropped"]:
            dropped = ", ".join(f"{count:,} {reason}" for reason, count in sorted(entry["dropped"].items()))
            console.print(f"{entry['name']}: nothing to learn from {dropped}")
        if entry.get("noted"):
            console.print(f"{entry['name']}: {listed(entry['noted'])}".replace("_", " "))
    bias = summary["all"].get("length_bias")
    if bias:
        console.print(
            f"the better answer is longer in {bias['longer_better']:.1%} of pairs, shorter in "
            f"{bias['longer_worse']:.1%}: {bias['mean_better']:,} tokens against {bias['mean_worse']:,} on average"
        )


def _cell(value: float | None) -> str:
    return "" if value is None else f"{value:,}"


def check_plots(folder: Path) -> None:
    """Raise `RunError` unless pictures can be written into a folder. To be asked before its data is read."""
    for name in _PICTURES:
        atomic.check_file(folder / name)


def plot(measured: Measured, folder: Path) -> list[Path]:
    """Histograms as PNG: tokens of each source's examples, and where there are pairs the answers' lengths."""
    import matplotlib

    matplotlib.use("Agg")
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    series = [(name, measured.places[part]) for name, part in measured.parts if len(measured.places[part])]
    paths = [_histogram(folder / _PICTURES[0], "tokens of an example", series)]
    if measured.own.shape[1]:
        names = ("chosen", "rejected") if measured.own.shape[1] == 2 else None
        answers = [(names[k] if names else f"rank {k + 1}", measured.own[:, k]) for k in range(measured.own.shape[1])]
        paths.append(_histogram(folder / _PICTURES[1], "tokens of an answer", answers))
    return paths


def _histogram(path: Path, what: str, series: Sequence[tuple[str, np.ndarray]]) -> Path:
    from matplotlib import pyplot

    longest = max(int(values.max()) for _, values in series)
    shortest = max(1, min(int(values.min()) for _, values in series))
    bins = np.geomspace(shortest, longest + 1, 41)
    figure, axes = pyplot.subplots(figsize=(7, 4), layout="constrained")
    for name, values in series:
        axes.hist(np.maximum(values, 1), bins=bins.tolist(), histtype="step", linewidth=1.6, label=name)
    axes.set(xscale="log", xlabel=what, ylabel="examples")
    ticks = [tick for power in range(1, 7) for tick in (10**power, 2 * 10**power, 5 * 10**power)]
    axes.set_xticks([tick for tick in ticks if shortest <= tick <= longest])
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    axes.minorticks_off()
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=130)
    pyplot.close(figure)
    return path
