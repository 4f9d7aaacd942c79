"""Published files: one's own first, then a folder's, then fetched once and checked."""

import functools
import hashlib
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from bactrian.errors import DataError
from bactrian.evaluate import published

TEXT = b'{"question_id": 1}\n'
FILE = published.File(
    "the questions",
    "--questions",
    ("org/name", "c" * 40),
    "data/q.jsonl",
    hashlib.sha256(TEXT).hexdigest(),
    ("q2.jsonl",),
)


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A mirror of where repositories' files are served."""
    where = tmp_path / "host" / "org" / "name" / ("c" * 40) / "data"
    where.mkdir(parents=True)
    (where / "q.jsonl").write_bytes(TEXT)
    quiet = type("Quiet", (SimpleHTTPRequestHandler,), {"log_message": lambda *a: None})
    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(quiet, directory=str(tmp_path / "host")))
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    monkeypatch.setenv("BACTRIAN_GITHUB", f"http://127.0.0.1:{server.server_address[1]}/")
    monkeypatch.setenv("BACTRIAN_CACHE", str(tmp_path / "cache"))
    yield where
    server.shutdown()
    server.server_close()


def test_fetched_once_and_kept(host: Path):
    path = published.locate(FILE, None, None)
    assert path.read_bytes() == TEXT
    (host / "q.jsonl").unlink()
    assert published.locate(FILE, None, None) == path


def test_another_file_is_refused_and_not_kept(host: Path, tmp_path: Path):
    (host / "q.jsonl").write_bytes(b"something else")
    with pytest.raises(DataError, match="another file"):
        published.locate(FILE, None, None)
    assert not list((tmp_path / "cache").rglob("q.jsonl"))


def test_where_nothing_can_be_fetched(host: Path):
    (host / "q.jsonl").unlink()
    with pytest.raises(DataError, match=r"cannot be fetched from org/name .*--questions"):
        published.locate(FILE, None, None)


def test_ones_own_file_or_folder_comes_first(tmp_path: Path):
    (tmp_path / "bench").mkdir()
    (tmp_path / "bench" / "q2.jsonl").write_bytes(b"{}")
    assert published.locate(FILE, None, tmp_path) == tmp_path / "bench" / "q2.jsonl"
    (tmp_path / "mine.jsonl").write_bytes(b"{}")
    assert published.locate(FILE, tmp_path / "mine.jsonl", tmp_path) == tmp_path / "mine.jsonl"
    with pytest.raises(DataError, match="no such file"):
        published.locate(FILE, tmp_path / "none.jsonl", tmp_path)
    with pytest.raises(DataError, match="no such folder"):
        published.locate(FILE, None, tmp_path / "none")


def test_the_held_files_are_the_published_ones(shared_data: Path):
    for file in (published.MT_BENCH_QUESTIONS, published.MT_BENCH_REFERENCES, published.MT_BENCH_PROMPTS):
        assert published.digest(published.locate(file, None, shared_data / "mt_bench")) == file.sha256
    for file in (published.ALPACA_REFERENCES[1], published.ALPACA_PROMPTS[1]):
        assert published.digest(published.locate(file, None, shared_data)) == file.sha256
