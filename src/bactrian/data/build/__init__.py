"""`bactrian data build`: sources → records → screens → mixture → Parquet shards and a ledger that adds up.

    OUT/train-00000-of-00033.parquet …   the rows
    OUT/ledger.json                      what became of every record; where it is there, the build is complete
    OUT/manifest.json                    sizes and SHA-256 of the shards, by which damage is found
    OUT/contamination.jsonl              what shares words with evaluation sets, where a screen looks for it
    OUT/.build/                          what a build that is cut short goes on with

What comes out is a function of the recipe and its files: not of the number of processes, nor of where it was cut short.
"""

import hashlib
import json
import re
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from bactrian import ends, progress
from bactrian.data import workers
from bactrian.data.build import account, evidence, parse, screening, shards, store
from bactrian.data.build.recipe import Build
from bactrian.data.chat import Chat
from bactrian.data.sources import reader
from bactrian.errors import RunError
from bactrian.files import atomic, documents, folders, sealed
from bactrian.files import lock as locks
from bactrian.files.lock import Lock

VERSION = 2  # of the code that makes data sets; a change of what it makes changes the number


def build(recipe: Build, chat: Chat | None, out: Path, processes: int | None = None) -> dict[str, Any]:
    """Build a data set into `out`, or go on with it; returns its ledger. Raises `DataError` and `RunError`.

    chat: the recipe's [tokenizer], loaded. processes: by default one for each core if it is much.
    """
    processes = processes or workers.suited(sum(map(reader.size, recipe.sources)))
    key = _key(recipe, chat)
    with _opened(out, key) as parts:
        if parts is None:
            return documents.read_json(out / "ledger.json", RunError)
        chunks = _parse(recipe, chat, parts, processes)
        records = account.gather(recipe, parts, chunks)
        kind = account.kind(recipe, records)
        account.screen_and_draw(recipe, chat, records, parts)
        evidence.write(recipe, records, parts, out)
        start = (chat, parts, out, kind, account.masks(records))
        done = _write(start, account.mix(recipe, records), recipe.build.shard_rows, processes)
        entries = account.ledger(recipe, records, done, counted=chat is not None)
        ledger = {"name": recipe.name, "key": key, "seed": recipe.seed, **entries}
        folders.write_manifest(out, [shards.name(number, len(done)) for number in range(len(done))])
        atomic.write_json(out / "ledger.json", ledger)
        shutil.rmtree(parts.parent)
        return ledger


def _key(recipe: Build, chat: Chat | None) -> str:
    """Equal for two builds only if they give the same bytes."""
    digest = hashlib.sha256(f"{VERSION} {chat and chat.fingerprint} {recipe.model_dump_json()}".encode())
    for section in recipe.screens:
        digest.update(screening.fingerprint(section).encode())
    for source in recipe.sources:
        digest.update(reader.fingerprint(source).encode())
    return digest.hexdigest()[:32]


@contextmanager
def _opened(out: Path, key: str) -> Iterator[Path | None]:
    """The folder of a build's parts; None if the build is complete. Raises `RunError` if `out` holds something else,
    or a data set that was damaged."""
    work = out / ".build"
    if _is_complete(out, key):
        yield None
        return
    lock = Lock(out, "data set", progress.say, ends.at_once)
    try:
        if _is_complete(out, key):  # another process may have been at it
            yield None
            return
        with atomic.writing(out):
            work.mkdir(exist_ok=True)
        atomic.sweep(out)
        if not (work / key).exists():
            for old in (*work.iterdir(), *out.glob("train-[0-9]*-of-[0-9]*.parquet")):
                shutil.rmtree(old) if old.is_dir() else old.unlink()
            (work / key).mkdir()
        yield work / key
    finally:
        lock.release()


def _is_complete(out: Path, key: str) -> bool:
    """Whether a data set is there, whole. Raises `RunError` if something else is, or one that was damaged."""
    ledger = out / "ledger.json"
    if ledger.exists():
        there = documents.read_json(ledger, RunError, "choose another --out, or remove the folder to build it again")
        if not isinstance(there, dict) or there.get("key") != key:
            raise RunError(f"{out}: another data set is there (of another recipe or data); choose another --out")
        fault = folders.fault(out) if folders.has_manifest(out) else None
        if fault is not None:
            raise RunError(f"{out}: the data set is damaged: {fault}; remove the folder, and it is built again")
        return True
    if out.exists() and (not out.is_dir() or (not _is_ours(out / ".build") and _is_used(out))):
        raise RunError(f"{out}: something else than a data set is there; choose another --out")
    return False


def _is_used(out: Path) -> bool:
    return any(path.name != locks.NAME and not atomic.is_left_behind(path) for path in out.iterdir())


def _is_ours(work: Path) -> bool:
    """Whether a build has begun in a folder, where others keep things of that name too: its parts are there, and in
    one of an earlier version its lock."""
    names = {path.name for path in work.iterdir()} if work.is_dir() and not work.is_symlink() else None
    return names is not None and all(name == "lock" or re.fullmatch(r"[0-9a-f]{32}", name) for name in names)


def _parse(recipe: Build, chat: Chat | None, parts: Path, processes: int) -> list[int]:
    """Bring every source into the store; returns how many chunks each has."""
    counted = parts / "chunks.json"
    known = sealed.read(counted)
    if known is not None and all(_are_done(parts, *each) for each in enumerate(json.loads(known))):
        return json.loads(known)
    chunks = [0] * len(recipe.sources)
    weights = [reader.size(source) for source in recipe.sources]
    began, rows = time.monotonic(), 0

    def tasks() -> Iterator[parse.Task]:
        for number, source in enumerate(recipe.sources):
            for chunk in reader.chunks(source):
                if not store.is_done(parts, number, chunks[number]):
                    yield parse.Task(number, chunks[number], chunk)
                chunks[number] += 1

    with progress.bar("reading (MB)", sum(weights)) as bar:
        for done in workers.in_order(parse.start, (recipe, chat, parts), tasks(), processes):
            rows += done.rows
            rate = rows / max(time.monotonic() - began, 1e-9)
            read = sum(weights[: done.source]) + round(weights[done.source] * done.share)
            bar.to(read, sum(weights), f"{rows:,} rows, {rate:,.0f}/s")
    sealed.write(counted, json.dumps(chunks).encode())
    return chunks


def _are_done(parts: Path, source: int, chunks: int) -> bool:
    return all(store.is_done(parts, source, chunk) for chunk in range(chunks))


def _write(
    start: tuple[Chat | None, Path, Path, str, bool], places: np.ndarray, size: int, processes: int
) -> list[shards.Done]:
    """Write the shards of `size` rows that are not there yet; `start`: the arguments of `shards.start`."""
    _, parts, out, *_ = start
    of = -(-len(places) // size)
    done = {n: found for n in range(of) if (found := shards.finished(parts, out, n, of)) is not None}
    tasks = (shards.Task(n, of, places[n * size : (n + 1) * size]) for n in range(of) if n not in done)
    before = rows = sum(each.rows for each in done.values())
    began = time.monotonic()
    with progress.bar("writing", len(places), rows) as bar:
        for shard in workers.in_order(shards.start, start, tasks, processes):
            done[shard.number] = shard
            rows += shard.rows
            rate = (rows - before) / max(time.monotonic() - began, 1e-9)
            bar.to(rows, len(places), f"{rate:,.0f} rows/s")
    return [done[number] for number in range(of)]
