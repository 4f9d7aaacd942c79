"""How good a judge is: its agreement with people, and its habits, on pairs of which people said which is better.

The layout is LLMBar's: `input`, `output_1`, `output_2`, `label` (1 or 2). Each pair is judged in both orders, and if
asked more than once in each. Zeng et al. 2023, https://arxiv.org/abs/2310.07641; on the biases Zheng et al. 2023,
section 3.3.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Any, Literal

from bactrian.data.records import Message
from bactrian.errors import DataError
from bactrian.evaluate import alpaca_eval, mt_bench, published, reading, statistics
from bactrian.evaluate.calls import Call, Failure, Judge, Reply
from bactrian.evaluate.judge import Reward
from bactrian.evaluate.mt_bench import Template
from bactrian.evaluate.reading import Missing

Row = dict[str, Any]
Prompt = Template | tuple[str, alpaca_eval.Version]  # MT-Bench's pairwise prompt, or AlpacaEval's with its version
Choice = Literal["1", "2", "tie"] | None


@dataclass(frozen=True)
class Item:
    """One pair, and which output people prefer."""

    input: str
    outputs: tuple[str, str]
    label: int
    set: str


@dataclass(frozen=True)
class Verdict:
    """What the judge said of an item: output "1" or "2", a tie, or nothing that could be read, and why."""

    item: int
    switched: bool
    sample: int
    choice: Choice
    text: str
    missing: Missing | None = None


def read(paths: Sequence[Path]) -> list[Item]:
    """Pairs in LLMBar's layout; each file is a set of its own in the figures. Raises `DataError`."""
    items = []
    for path in paths:
        name = path.parent.name if path.stem == "dataset" else path.stem
        for where, row in published.rows(path):
            texts = [published.text(row, key, where) for key in ("input", "output_1", "output_2")]
            if isinstance(row.get("label"), bool) or row.get("label") not in (1, 2):
                raise DataError(f"{where}: `label` is {row.get('label')!r}; it should be 1 or 2, the better output")
            items.append(Item(texts[0], (texts[1], texts[2]), int(row["label"]), name))
    return items


def calls(items: Sequence[Item], prompt: Prompt, samples: int, temperature: float) -> list[Call]:
    """What the judge is asked: every item in both orders, `samples` times each."""
    asked = []
    for item in items:
        for switched in (False, True):
            call = _call(item, prompt, switched)
            for sample in range(samples):
                drawn = temperature if samples > 1 else call.temperature
                asked.append(replace(call, sample=sample, temperature=drawn))
    return asked


def judge(
    items: Sequence[Item], prompt: Prompt, judge: Judge | Reward, samples: int = 1, temperature: float = 0.7
) -> list[Verdict]:
    """The judge's verdicts on all items."""
    if isinstance(judge, Reward):
        return _rewarded(items, judge)
    asked = calls(items, prompt, samples, temperature)
    outcomes = iter(judge.ask(asked, lambda reply: not isinstance(_seen(reply, prompt), Missing)))
    verdicts = []
    for number in range(len(items)):
        for switched in (False, True):
            for sample in range(samples):
                outcome = next(outcomes)
                seen = _seen(outcome, prompt)
                text = outcome.reason if isinstance(outcome, Failure) else reading.clean(outcome.text)
                choice, missing = (None, seen) if isinstance(seen, Missing) else (_choice(seen, switched), None)
                verdicts.append(Verdict(number, switched, sample, choice, text, missing))
    return verdicts


def _call(item: Item, prompt: Prompt, switched: bool) -> Call:
    if isinstance(prompt, Template):
        first, second = reversed(item.outputs) if switched else item.outputs
        text = mt_bench.fill(prompt, {"question": item.input, "answer_a": first, "answer_b": second})
        return Call(mt_bench.messages(prompt, text), mt_bench.JUDGE_TOKENS)
    template, version = prompt
    row = {"instruction": item.input, "output_1": item.outputs[0], "output_2": item.outputs[1]}
    return alpaca_eval.call(template, row, version, switched)


def _seen(outcome: Reply | Failure, prompt: Prompt) -> float | Missing:
    """How much the judge prefers the second output that it was shown, from 0 to 1."""
    if isinstance(prompt, Template):
        found = mt_bench.compared(outcome, prompt.output)
        return found if isinstance(found, Missing) else {"A": 0.0, "B": 1.0, "tie": 0.5}[found]
    value = alpaca_eval.preferred(outcome, prompt[1])
    return value if isinstance(value, Missing) else value - 1


def _choice(seen: float, switched: bool) -> Choice:
    if seen == 0.5:
        return "tie"
    return "2" if (seen > 0.5) != switched else "1"


def _rewarded(items: Sequence[Item], judge: Reward) -> list[Verdict]:
    talks = [
        [(Message("user", item.input), Message("assistant", item.outputs[side])) for item in items] for side in (0, 1)
    ]
    shares = judge.compare(talks[0], talks[1])
    return [
        Verdict(number, switched, 0, _choice(share, False), f"probability of output 2: {share:.4f}")
        for number, share in enumerate(shares)
        for switched in (False, True)
    ]


def measure(items: Sequence[Item], verdicts: Sequence[Verdict]) -> Row:
    """The judge's figures over all items, and by set where there are several."""
    whole = _measure(items, verdicts, range(len(items)))
    sets = dict.fromkeys(item.set for item in items)
    if len(sets) > 1:
        whole["sets"] = {
            name: _measure(items, verdicts, [n for n, item in enumerate(items) if item.set == name]) for name in sets
        }
    return whole


def _measure(items: Sequence[Item], verdicts: Sequence[Verdict], numbers: Sequence[int]) -> Row:
    wanted = set(numbers)
    own = [verdict for verdict in verdicts if verdict.item in wanted]
    said = [verdict for verdict in own if verdict.choice is not None]
    return {
        "items": len(wanted),
        "judgments": len(said),
        "failed": len(own) - len(said),
        "agreement": _agreement(items, said),
        "position": _position(said),
        "length": _length(items, said),
        "self_consistency": _self_consistency(own),
    }


def _credit(choice: Choice, wanted: int) -> float:
    return 0.5 if choice == "tie" else float(choice == str(wanted))


def _agreement(items: Sequence[Item], said: Sequence[Verdict]) -> Row | None:
    """The share of verdicts that are people's, a tie as half of one, with its interval over items."""
    by_item: dict[int, list[float]] = {}
    for verdict in said:
        by_item.setdefault(verdict.item, []).append(_credit(verdict.choice, items[verdict.item].label))
    found = statistics.share(list(by_item.values()))
    return None if found is None else asdict(found)


def _position(said: Sequence[Verdict]) -> Row:
    """How often the output shown first is chosen (0.5 is fair), and how often both orders have the same winner."""
    decided = [verdict for verdict in said if verdict.choice != "tie"]
    first = sum((verdict.choice == "1") != verdict.switched for verdict in decided)
    by_order = {(verdict.item, verdict.sample, verdict.switched): verdict.choice for verdict in said}
    pairs = [
        (choice, by_order[item, sample, True])
        for (item, sample, switched), choice in by_order.items()
        if not switched and (item, sample, True) in by_order
    ]
    return {
        "first_chosen": _share(first, len(decided)),
        "p_value": statistics.mcnemar(first, len(decided) - first),
        "consistent": _share(sum(a == b for a, b in pairs), len(pairs)),
    }


def _length(items: Sequence[Item], said: Sequence[Verdict]) -> Row:
    """How often the longer output is chosen, beside how often people prefer it; and agreement in either case."""
    uneven = [verdict for verdict in said if len(set(map(len, items[verdict.item].outputs))) == 2]

    def longer(verdict: Verdict) -> str:
        first, second = items[verdict.item].outputs
        return "1" if len(first) > len(second) else "2"

    decided = [verdict for verdict in uneven if verdict.choice != "tie"]
    people = [verdict for verdict in uneven if str(items[verdict.item].label) == longer(verdict)]
    others = [verdict for verdict in uneven if str(items[verdict.item].label) != longer(verdict)]

    def agreed(some: Sequence[Verdict]) -> float | None:
        return _share(sum(_credit(verdict.choice, items[verdict.item].label) for verdict in some), len(some))

    return {
        "longer_chosen": _share(sum(verdict.choice == longer(verdict) for verdict in decided), len(decided)),
        "longer_preferred_by_people": _share(len(people), len(uneven)),
        "agreement_where_longer_is_better": agreed(people),
        "agreement_where_shorter_is_better": agreed(others),
    }


def _self_consistency(own: Sequence[Verdict]) -> float | None:
    """The share of pairs of verdicts on the very same prompt that are equal; None where each was asked once."""
    by_prompt: dict[tuple[int, bool], list[Choice]] = {}
    for verdict in own:
        if verdict.choice is not None:
            by_prompt.setdefault((verdict.item, verdict.switched), []).append(verdict.choice)
    pairs = [pair for choices in by_prompt.values() for pair in combinations(choices, 2)]
    return _share(sum(a == b for a, b in pairs), len(pairs))


def _share(part: float, whole: int) -> float | None:
    return part / whole if whole else None


def verdict_rows(items: Sequence[Item], verdicts: Sequence[Verdict]) -> list[Row]:
    """The verdicts with what they are about, for judgments.jsonl."""
    rows = []
    for verdict in verdicts:
        item = items[verdict.item]
        said = {name: value for name, value in asdict(verdict).items() if name != "missing"}
        trouble = {} if verdict.missing is None else verdict.missing.as_row()
        rows.append({**said, "label": item.label, "set": item.set, **trouble})
    return rows
