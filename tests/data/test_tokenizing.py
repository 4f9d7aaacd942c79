"""Laws: a corpus has the same bytes from one process or many, killed or not, and those that its examples give."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from bactrian.data import corpus as corpora
from bactrian.data import packing, sources, tokenizing
from bactrian.data.corpus import Limits
from bactrian.data.sources import reader
from bactrian.errors import DataError
from bactrian.recipe import Source

from test_corpus import CHAT, pair, pairs_of, talk, write  # isort: skip

SOURCE = Path(corpora.__file__).parents[2]
LIMITS = Limits(60, 90)


def two_sources(folder: Path) -> list[Source]:
    first = [pair(f"Question {n}?", "Yes" * (n % 9 + 1), "No.") for n in range(60)]
    second = [pair("é" * (n % 40), "a", "a" if n % 7 == 0 else "b" * (n % 30 + 1)) for n in range(60)]
    return [pairs_of(write(folder / f"{name}.jsonl", rows)) for name, rows in (("a", first), ("b", second))]


def content(root: Path) -> dict[str, bytes]:
    [folder] = [path for path in (root / "corpora").iterdir() if not path.name.startswith(".")]
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader, "_CHUNK_BYTES", 500)


def test_the_files_are_those_that_numpy_saves(tmp_path: Path, small_chunks: None):
    data = two_sources(tmp_path)
    corpus = corpora.build(data, CHAT, LIMITS, 1.0, tmp_path, processes=1)
    made = [
        example
        for source in data
        for example in corpora.examples(sources.load(source), CHAT, LIMITS)
        if not isinstance(example, str)
    ]
    assert 20 < len(made) == len(corpus) < 120
    lengths = [len(example.tokens) for example in made]
    expected = {
        "tokens": np.concatenate([example.tokens for example in made]),
        "learn": np.concatenate([example.learn for example in made]),
        "offsets": np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        "starts": np.array([example.starts for example in made], np.int32),
    }
    found = content(tmp_path)
    for name, array in expected.items():
        np.save(tmp_path / f"{name}.npy", array)
        assert (tmp_path / f"{name}.npy").read_bytes() == found[f"{name}.npy"], name
    assert corpus.places().tolist() == [packing.places(len(each.tokens), each.starts) for each in made]
    assert corpus.learned().tolist() == [int(packing.lay_out(each).learn.sum()) for each in made]


def test_processes_change_no_byte(tmp_path: Path, small_chunks: None):
    data = two_sources(tmp_path)
    corpora.build(data, CHAT, LIMITS, 1.0, tmp_path / "one", processes=1)
    corpora.build(data, CHAT, LIMITS, 1.0, tmp_path / "two", processes=2)
    assert content(tmp_path / "one") == content(tmp_path / "two")


KILLED = """
import sys
sys.path[:0] = [{source!r}, {here!r}]
import os, test_tokenizing as test
from pathlib import Path
from bactrian.data import tokenizing
from bactrian.data.sources import reader
reader._CHUNK_BYTES = 500
make, calls = tokenizing._part, []
def dying(*arguments):
    calls.append(arguments)
    if len(calls) > 5:
        os.kill(os.getpid(), 9)
    return make(*arguments)
tokenizing._part = dying
data = [test.pairs_of(Path({folder!r}) / name) for name in ("a.jsonl", "b.jsonl")]
test.corpora.build(data, test.CHAT, test.LIMITS, 1.0, Path({folder!r}) / "killed", processes=1)
"""


def test_what_was_tokenized_before_a_kill_is_not_again(
    tmp_path: Path, small_chunks: None, monkeypatch: pytest.MonkeyPatch
):
    data = two_sources(tmp_path)
    program = KILLED.format(source=str(SOURCE), here=str(Path(__file__).parent), folder=str(tmp_path))
    died = subprocess.run([sys.executable, "-c", program], capture_output=True)
    assert died.returncode == -signal.SIGKILL, died.stderr.decode()
    parts = list((tmp_path / "killed" / "corpora").rglob("*.npz"))
    assert len(parts) == 5
    calls: list[str] = []
    make = tokenizing._part
    monkeypatch.setattr(tokenizing, "_part", lambda chunk, *given: (calls.append(chunk.where), make(chunk, *given))[1])
    corpora.build(data, CHAT, LIMITS, 1.0, tmp_path / "killed", processes=1)
    again = len(calls)
    corpora.build(data, CHAT, LIMITS, 1.0, tmp_path / "whole", processes=1)
    assert len(calls) - again == again + 5
    assert content(tmp_path / "killed") == content(tmp_path / "whole")
    assert not list((tmp_path / "killed" / "corpora").rglob("*.npz"))


def test_the_key_is_of_the_content(tmp_path: Path):
    data = two_sources(tmp_path)
    key = corpora.build(data, CHAT, LIMITS, 1.0, tmp_path).key
    assert corpora.build([data[0].model_copy(update={"limit": 3}), data[1]], CHAT, LIMITS, 1.0, tmp_path).key != key
    path = Path(data[1].path)
    path.write_text(path.read_text(encoding="utf-8").replace("bb", "bc"), encoding="utf-8")
    assert corpora.build(data, CHAT, LIMITS, 1.0, tmp_path).key != key


def test_a_bad_row_is_named_and_what_was_made_stays_hidden(tmp_path: Path, small_chunks: None):
    rows = [talk("Hi", "Hello")] * 30
    path = write(tmp_path / "a.jsonl", rows)
    path.write_text(path.read_text() + "{broken\n" + json.dumps(rows[0]) + "\n")
    for processes in (1, 2):
        with pytest.raises(DataError, match=r"a\.jsonl:31: not JSON"):
            corpora.build([Source(path=str(path), format="messages")], CHAT, LIMITS, 1.0, tmp_path, processes)
    assert all(left.name.startswith(".") for left in (tmp_path / "corpora").iterdir())
