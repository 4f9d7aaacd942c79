"""`bactrian data sample`: preference data from a model's own answers, scored by a judge that is handed in.

    OUT/settings.json   what the answers depend on; another model, judge or prompt file is refused
    OUT/answers.jsonl   a line for each prompt that is answered and scored: `prompt`, `answers`, `finish`, `scores`
    OUT/pairs.jsonl     what the policy makes of them, in the layout `preference`; or ranking.jsonl, in `ranking`
    OUT/ledger.json     what became of every prompt and answer

Prompts are answered in groups whose chance depends on the seed and the group's number alone, so that a run that is cut
short goes on to the same answers. The pairs are made anew each time: another policy costs nothing.
"""

import hashlib
import itertools
import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, cast

from bactrian import children, ends, progress
from bactrian.assistant import Assistant
from bactrian.data import binarize, continuation, screen
from bactrian.data.binarize import Policy
from bactrian.data.chat import Chat
from bactrian.data.records import Message, Messages, Preference
from bactrian.errors import DataError, InputError, RunError
from bactrian.files import documents, lock
from bactrian.files.atomic import append, write_json, write_jsonl, writing
from bactrian.files.lock import Lock
from bactrian.inference.engine import Engine, Settings
from bactrian.model import weights

Judge = Callable[[list[dict[str, str]], list[str]], Sequence[float | None]]

_AT_ONCE = 64  # answers in a group: two fillings of the engine's slots


@dataclass(frozen=True)
class Sampling:
    """How many answers each prompt gets, how they are drawn, and what pairs are made of them.

    keep_cut: whether an answer that reached the limit of tokens is compared too; a model learns to break off from it.
    """

    answers: int
    settings: Settings
    policy: Policy
    min_margin: float = 0.0
    keep_cut: bool = False


def load_judge(name: str) -> Judge:
    """The function that `module:function` names; modules of the working folder come first. Raises `InputError`."""
    module, colon, function = name.partition(":")
    if not (module and colon and function):
        raise InputError(f"{name}: a judge is module:function, for example my_judge:score")
    try:
        found = getattr(children.named_by_user(module), function)
    except (ImportError, AttributeError) as error:
        raise InputError(f"{name}: no such judge: {error}; it is looked for in the working folder first") from None
    if not callable(found):
        raise InputError(f"{name}: not a function")
    return cast(Judge, found)


def sample(
    found: Assistant, chat: Chat, prompts: Sequence[Messages], judge: tuple[str, Judge], sampling: Sampling, out: Path
) -> dict[str, Any]:
    """Answer and score what is not yet, then write pairs and ledger; returns the ledger.

    judge: its name, and a function of a prompt (role and content of each turn) and its answers that gives each a
    score, the higher the better, or None for one that it cannot judge. Raises `DataError` where it does not, and
    `RunError` for a folder of something else.
    """
    if sampling.answers < 2:
        raise InputError(f"answers is {sampling.answers}: a comparison needs at least 2")
    _open(out, _key(found, chat, prompts, judge[0], sampling))
    held = Lock(out, "sampling", progress.say, ends.at_once)
    try:
        return _sample(found, chat, prompts, judge, sampling, out)
    finally:
        held.release()


def _sample(
    found: Assistant, chat: Chat, prompts: Sequence[Messages], judge: tuple[str, Judge], sampling: Sampling, out: Path
) -> dict[str, Any]:
    group = max(1, _AT_ONCE // sampling.answers)
    rows = _kept(out / "answers.jsonl", group, len(prompts))
    began, before = time.monotonic(), len(rows)
    engine: Engine | None = None
    with progress.bar("sampling", len(prompts), before) as bar:
        for begin in range(before, len(prompts), group):
            engine = engine or found.engine()
            several = prompts[begin : begin + group]
            answered = _answer(engine, found, chat, several, begin // group, sampling)
            rows += _append(out / "answers.jsonl", list(_scored(several, answered, judge, begin)))
            rate = (len(rows) - before) * sampling.answers / max(time.monotonic() - began, 1e-9)
            bar.to(len(rows), len(prompts), f"{rate:.1f} answers/s")
    return _compare(rows, sampling, out)


def _key(found: Assistant, chat: Chat, prompts: Sequence[Messages], judge: str, sampling: Sampling) -> dict[str, Any]:
    asked = json.dumps([_turns(prompt) for prompt in prompts])
    return {
        "model": weights.fingerprint(found.path),
        "chat": chat.fingerprint,
        "prompts": hashlib.sha256(asked.encode()).hexdigest(),
        "judge": judge,
        "answers": sampling.answers,
        **asdict(replace(sampling.settings, stop_ids=())),
    }


def _open(out: Path, key: dict[str, Any]) -> None:
    path = out / "settings.json"
    if path.exists():
        before = json.loads(path.read_text(encoding="utf-8"))
        changed = ", ".join(name for name, value in json.loads(json.dumps(key)).items() if before.get(name) != value)
        if changed:
            raise RunError(f"{out}: these answers were made with another {changed}; choose another --out")
        return
    if out.exists() and (not out.is_dir() or any(path.name != lock.NAME for path in out.iterdir())):
        raise RunError(f"{out}: something else is there; choose another --out")
    write_json(path, key)


def _kept(path: Path, group: int, prompts: int) -> list[dict[str, Any]]:
    """The rows of whole groups; what a killed run wrote of another is cut off."""
    rows, end = [], 0
    lines = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
    ends = list(itertools.accumulate(len(line) + 1 for line in lines))
    whole = len(lines) if len(lines) == prompts else len(lines) // group * group
    if whole:
        rows, end = [json.loads(line) for line in lines[:whole]], ends[whole - 1]
    if path.exists():
        with writing(path), path.open("r+b") as file:
            file.truncate(end)
    return rows


def _answer(
    engine: Engine, found: Assistant, chat: Chat, prompts: Sequence[Messages], group: int, sampling: Sampling
) -> list[list[tuple[str, str]]]:
    """The text and finish of each answer to each prompt of a group."""
    chance = hashlib.sha256(f"{sampling.settings.seed} {group}".encode()).digest()
    settings = replace(sampling.settings, stop_ids=chat.stop_ids, seed=int.from_bytes(chance[:4], "big"))
    ids = [chat.prompt(prompt) for prompt in prompts for _ in range(sampling.answers)]
    made = zip(ids, engine.generate(ids, settings), strict=True)
    texts = [
        (chat.content(continuation.after(chat.tokenizer, asked, each.tokens)), each.finish) for asked, each in made
    ]
    return [texts[at : at + sampling.answers] for at in range(0, len(texts), sampling.answers)]


def _scored(
    prompts: Sequence[Messages], answered: Sequence[list[tuple[str, str]]], judge: tuple[str, Judge], begin: int
) -> Iterator[dict[str, Any]]:
    name, score = judge
    for number, (prompt, answers) in enumerate(zip(prompts, answered, strict=True), begin + 1):
        texts = [text for text, _ in answers]
        try:
            scores = [None if value is None else float(value) for value in score(_turns(prompt), list(texts))]
        except Exception as error:  # whatever a judge raises, one line says where
            raise DataError(f"{name}: prompt {number}: {type(error).__name__}: {error}; repair the judge") from error
        if len(scores) != len(texts) or not all(value is None or math.isfinite(value) for value in scores):
            shown = ", ".join(map(str, scores))
            raise DataError(f"{name}: prompt {number}: {len(texts)} answers got the scores {shown}; give each a number")
        yield {"prompt": _turns(prompt), "answers": texts, "finish": [end for _, end in answers], "scores": scores}


def _append(path: Path, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Add a group's rows; they are on disk when this returns."""
    append(path, "".join(documents.dumps(row) + "\n" for row in rows))
    return rows


def _compare(rows: Sequence[dict[str, Any]], sampling: Sampling, out: Path) -> dict[str, Any]:
    ledger = screen.Ledger()
    cut = unscored = 0
    written: list[dict[str, Any]] = []
    for row in rows:
        judged = list(zip(row["answers"], row["finish"], row["scores"], strict=True))
        cut += sum(finish != "stop" for _, finish, _ in judged)
        unscored += sum(score is None for _, _, score in judged)
        usable = [(t, s) for t, end, s in judged if s is not None and (sampling.keep_cut or end == "stop")]
        key = f"{sampling.settings.seed}\n{json.dumps(row['prompt'])}"
        chosen = binarize.choose([score for _, score in usable], sampling.policy, sampling.min_margin, key)
        for found in chosen:
            reason = found if isinstance(found, str) else screen.unusable(_preference(row, usable, found))
            if reason is not None:
                ledger.drop(reason)
                continue
            ledger.keep()
            written.append(_row(row, [usable[int(index)] for index in found], sampling.policy))
    write_jsonl(out / ("ranking.jsonl" if sampling.policy == "ranking" else "pairs.jsonl"), written)
    counts = {"prompts": len(rows), "answers": sum(len(row["answers"]) for row in rows)}
    account = {**counts, "answers_cut": cut, "answers_without_score": unscored, "policy": sampling.policy}
    account |= ledger.to_json()
    write_json(out / "ledger.json", account)
    return account


def _preference(row: dict[str, Any], usable: Sequence[tuple[str, float]], chosen: tuple[int, ...]) -> Preference:
    prompt = tuple(Message(turn["role"], turn["content"]) for turn in row["prompt"])
    return Preference(tuple((*prompt, Message("assistant", usable[index][0])) for index in chosen), "")


def _row(row: dict[str, Any], chosen: Sequence[tuple[str, float]], policy: Policy) -> dict[str, Any]:
    ranked = [[*row["prompt"], {"role": "assistant", "content": text}] for text, _ in chosen]
    scores = [score for _, score in chosen]
    if policy == "ranking":
        return {"ranked": ranked, "scores": scores}
    pair = {"chosen": ranked[0], "rejected": ranked[1], "score_chosen": scores[0], "score_rejected": scores[1]}
    return {"prompt": row["prompt"], **pair}


def _turns(prompt: Messages) -> list[dict[str, str]]:
    return [{"role": turn.role, "content": turn.content} for turn in prompt]
