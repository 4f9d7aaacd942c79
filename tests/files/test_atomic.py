"""Laws: a path is replaced by its own kind alone; what is renamed into place is on the disk."""

import os
import shutil
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from bactrian.errors import RunError, RunFailed
from bactrian.files import atomic, folders


def listening(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as found:
        found.bind(os.path.relpath(path))  # a socket's whole path may be no longer than 107 bytes


def full_folder(path: Path) -> None:
    (path / "deep").mkdir(parents=True)
    (path / "deep" / "work.txt").write_text("years")


NOT_A_FILE: dict[str, Callable[[Path], None]] = {
    "a folder": full_folder,
    "an empty folder": Path.mkdir,
    "a link to a file": lambda path: path.symlink_to(__file__),
    "a link to a folder": lambda path: path.symlink_to(Path(__file__).parent),
    "a link to nothing": lambda path: path.symlink_to("nowhere"),
    "a pipe": os.mkfifo,
    "a socket": listening,
}
NOT_OURS: dict[str, Callable[[Path], None]] = {
    **{name: make for name, make in NOT_A_FILE.items() if name != "an empty folder"},
    "a file": Path.touch,
    "a folder with a manifest of another program": lambda path: atomic.write_json(
        path / "manifest.json", {"files": {}}
    ),
}


def seen(folder: Path) -> dict[str, tuple[int, int]]:
    return {str(path): (path.lstat().st_mode, path.lstat().st_ino) for path in folder.rglob("*")}


@pytest.mark.parametrize("name", NOT_A_FILE)
def test_a_file_replaces_a_file_alone(tmp_path: Path, name: str):
    path = tmp_path / "page.html"
    NOT_A_FILE[name](path)
    before = seen(tmp_path)
    with pytest.raises(RunError, match=r"page\.html: a .* is there, and a file is to"), atomic.replacing(path):
        pytest.fail("the work began")
    assert seen(tmp_path) == before


@pytest.mark.parametrize("name", NOT_OURS)
def test_a_folder_replaces_one_of_ours_alone(tmp_path: Path, name: str):
    path = tmp_path / "final"
    NOT_OURS[name](path)
    before = seen(tmp_path)
    with pytest.raises(RunError, match=r"final: a .* is there"), folders.replacing(path):
        pytest.fail("the work began")
    assert seen(tmp_path) == before


def test_what_comes_to_stand_there_during_the_work_stays(tmp_path: Path):
    with pytest.raises(RunError, match="is there"), atomic.replacing(tmp_path / "page") as temporary:
        temporary.write_text("page")
        full_folder(tmp_path / "page")
    with pytest.raises(RunError, match="is there"), folders.replacing(tmp_path / "final") as temporary:
        (temporary / "config.json").write_text("{}")
        full_folder(tmp_path / "final")
    assert sorted(os.listdir(tmp_path)) == ["final", "page"]
    assert (tmp_path / "page" / "deep" / "work.txt").read_text() == "years"
    assert (tmp_path / "final" / "deep" / "work.txt").read_text() == "years"


@pytest.mark.parametrize("path", [".", "..", "/", "some/..", "~/../.."])
@pytest.mark.parametrize("replacing", [atomic.replacing, folders.replacing])
def test_a_path_without_a_name_is_refused(replacing: Callable, path: str):
    with pytest.raises(RunError, match="not the name of a file or a new folder"), replacing(Path(path)):
        pytest.fail("the work began")


def test_a_path_below_a_file_or_too_long_is_one_line(tmp_path: Path):
    (tmp_path / "file").write_text("mine")
    for path in (tmp_path / "file" / "page", tmp_path / ("long" * 100), tmp_path / ("long" * 100) / "page"):
        with pytest.raises(RunError, match="choose another"), atomic.replacing(path):
            pytest.fail("the work began")
    assert os.listdir(tmp_path) == ["file"]


def test_a_folder_that_is_removed_during_the_work_is_one_line(tmp_path: Path):
    folder = tmp_path / "run"
    with pytest.raises(RunFailed, match="cannot write: No such file"), atomic.replacing(folder / "x") as temporary:
        shutil.rmtree(folder)
        temporary.write_text("{}")


@pytest.fixture
def order(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What reaches the disk and what is renamed, in order, by name."""
    found: list[str] = []
    fsync, replace = os.fsync, os.replace

    def noted(file: int) -> None:
        found.append(Path(os.readlink(f"/proc/self/fd/{file}")).name.split(".")[-1])
        fsync(file)

    def renamed(before: Path, after: Path) -> None:
        found.append(f"-> {after.name}")
        replace(before, after)

    monkeypatch.setattr(os, "fsync", noted)
    monkeypatch.setattr(os, "replace", renamed)
    return found


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs /proc, to see which file is synced")
def test_a_file_and_its_folder_are_on_the_disk(tmp_path: Path, order: list[str]):
    atomic.write_json(tmp_path / "deep" / "ledger.json", {})
    assert order == [tmp_path.name, "tmp", "-> ledger.json", "deep"]


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs /proc, to see which file is synced")
def test_a_folder_with_all_that_is_in_it_is_on_the_disk(
    tmp_path: Path, order: list[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("BACTRIAN_CACHE", str(tmp_path / "cache"))
    with folders.replacing(tmp_path / "final") as temporary:
        (temporary / "plots").mkdir()
        (temporary / "plots" / "x.png").write_text("x")
        (temporary / "model.safetensors").write_text("x")
    at = order.index("-> final")
    assert {"png", "safetensors", "plots", "tmp"} <= set(order[:at])
    assert order[at + 1] == tmp_path.name
