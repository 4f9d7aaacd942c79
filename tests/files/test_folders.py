"""Laws: of a folder that we made, whatever has happened to a file since is found; so it is of a sealed file."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from bactrian.files import digests, folders, sealed

DAMAGES: dict[str, Callable[[Path], object]] = {
    "emptied": lambda path: os.truncate(path, 0),
    "cut": lambda path: os.truncate(path, path.stat().st_size - 2),
    "grown": lambda path: path.write_bytes(path.read_bytes() + b"\0"),
    "one bit flipped": lambda path: path.write_bytes(bytes([path.read_bytes()[0] ^ 1]) + path.read_bytes()[1:]),
    "zeros": lambda path: path.write_bytes(bytes(path.stat().st_size)),
    "removed": Path.unlink,
}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("BACTRIAN_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def made(tmp_path: Path) -> Path:
    with folders.replacing(tmp_path / "final") as temporary:
        (temporary / "config.json").write_text('{"a": 1}')
        (temporary / "deep").mkdir()
        (temporary / "deep" / "model.bin").write_bytes(bytes(range(200)))
    return tmp_path / "final"


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", ["config.json", "deep/model.bin", folders.NAME])
def test_a_damaged_file_is_named(made: Path, name: str, damage: str):
    assert folders.fault(made) is None
    DAMAGES[damage](made / name)
    found = folders.fault(made)
    assert found is not None and found.startswith(name)


def test_what_others_put_there_is_not_judged(made: Path):
    (made / "README.md").write_text("a card")
    assert folders.fault(made) is None
    assert folders.is_ours(made)


def test_bytes_are_not_read_again_while_nothing_was_written(made: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(digests, "compute", lambda path: pytest.fail(f"{path} was read"))
    assert folders.fault(made) is None


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_digest_that_is_remembered_is_checked(made: Path, cache: Path, damage: str):
    before = digests.of(made / "config.json")
    for memory in (cache / "fingerprints").iterdir():
        DAMAGES[damage](memory)
    assert digests.of(made / "config.json") == before == digests.of(made / "config.json")


def test_a_digest_under_the_name_of_another_file_is_not_taken(made: Path, cache: Path):
    one, two = sorted((cache / "fingerprints").iterdir())
    whole = {name: digests.compute(made / name) for name in ("config.json", "deep/model.bin")}
    one_text, two_text = one.read_bytes(), two.read_bytes()
    one.write_bytes(two_text)
    two.write_bytes(one_text)
    assert {name: digests.of(made / name) for name in whole} == whole


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_sealed_file_is_whole_or_not_there(tmp_path: Path, damage: str):
    path = tmp_path / "reference.npy"
    assert sealed.read(path) is None
    for content in (b"", b"some numbers"):
        sealed.write(path, content)
        assert sealed.read(path) == content
        DAMAGES[damage](path)
        assert sealed.read(path) is None
