"""Starts commands in the nursery's processes, and says what must hold after any of them."""

import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import tiny

from bactrian.run import Run

SECONDS = 120  # after which a command hangs
RESULTS = (
    *("ledger.json", "evaluation.json", "samples.jsonl", "sums.json"),
    *("export/model.safetensors", "export/tokenizer.json", "export/config.json"),
)
ONE_STAGE = ("evaluation={}", "dpo.heldout=[]", "sft.heldout=[]", "sft.evaluate_every=0", "dpo.evaluate_every=0")


class Nursery:
    """One process whose copies are commands, one at a time."""

    def __init__(self, cache: Path):
        script = Path(__file__).with_name("nursery.py")
        self._process = subprocess.Popen(
            [sys.executable, str(script)],
            env=tiny.environment(cache, JAX_PLATFORMS="cpu", PYTHONWARNINGS="ignore"),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )

    def run(
        self,
        arguments: Sequence[object],
        cache: Path,
        at: int | None = None,
        after: float | None = None,
        signal: int = 9,
    ) -> tiny.Done:
        """Run a command; it is killed at its `at`-th write, or sent a signal after some seconds."""
        asked = {
            "command": [*map(str, arguments)],
            "cache": str(cache),
            "at": at,
            "after": after,
            "signal": int(signal),
        }
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps(asked) + "\n")
        self._process.stdin.flush()
        answer: dict[str, Any] = json.loads(self._process.stdout.readline())
        return tiny.Done(answer["code"], "", answer["err"])

    def close(self) -> None:
        self._process.kill()
        self._process.wait()


@contextmanager
def nurseries(cache: Path, count: int = 2) -> Iterator[list[Nursery]]:
    found = [Nursery(cache) for _ in range(count)]
    try:
        yield found
    finally:
        for each in found:
            each.close()


def side_by_side(cache: Path, work: Any, items: Sequence[Any]) -> list[Any]:
    """`work(nursery, item)` for all items, shared between two nurseries."""
    with nurseries(cache) as found, ThreadPoolExecutor(len(found)) as threads:
        shares = [items[number :: len(found)] for number in range(len(found))]
        done = threads.map(lambda nursery, share: [work(nursery, item) for item in share], found, shares)
        return [result for each in done for result in each]


def own_cache(folder: Path, compiled: Path) -> Path:
    """A cache with the compiled programs of another alone."""
    (folder / "cache").mkdir(parents=True)
    (folder / "cache" / "xla").symlink_to(compiled / "xla")
    return folder / "cache"


def without_timing(folder: Path) -> list[dict[str, Any]]:
    return [{key: value for key, value in row.items() if key != "timing"} for row in Run(folder).metrics()]


def same_results(folder: Path, other: Path, results: Sequence[str] = RESULTS) -> None:
    """Whatever a run has come to is what another has, to the bit; nothing is left behind."""
    assert without_timing(folder) == without_timing(other)
    for name in results:
        if name != "sums.json":
            assert (folder / name).read_bytes() == (other / name).read_bytes(), name
    assert not [path for path in folder.rglob(".*")], "something is left behind"


def one_line(done: tiny.Done) -> None:
    """It failed and said so in its last line, and no traceback is in what it said."""
    assert done.code in (1, 2), done
    assert "Traceback" not in done.err, done.err
    last = done.err.splitlines()[-1]
    assert last.startswith(("error: ", "failed: ")) and len(last) <= 400, done.err
