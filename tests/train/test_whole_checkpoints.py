"""Laws: a stage goes on from the last checkpoint that is whole; where none is, that is said, and nothing is removed."""

import os
from pathlib import Path

import pytest

from bactrian.errors import RunFailed
from bactrian.files import folders
from bactrian.train import checkpoint


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BACTRIAN_CACHE", str(tmp_path / "cache"))


def kept(folder: Path, *numbers: int, sealed: bool = True) -> Path:
    for number in numbers:
        path = folder / str(number) / "default"
        path.mkdir(parents=True)
        (path / "data").write_bytes(bytes([number] * 100))
        if sealed:
            folders.write_manifest(path.parent, ["default/data"])
    return folder


def there(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_whole_ones_are_left(tmp_path: Path):
    steps = kept(tmp_path / "steps", 3, 6, 9)
    (steps / "12.orbax-checkpoint-tmp").mkdir()
    assert checkpoint._settle(steps) is None
    assert there(steps) == ["12.orbax-checkpoint-tmp", "3", "6", "9"]
    assert checkpoint._settle(tmp_path / "none") is None


@pytest.mark.parametrize("damaged", [[9], [9, 6]])
def test_a_damaged_last_one_gives_way_to_an_earlier_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], damaged: list[int]
):
    steps = kept(tmp_path / "steps", 3, 6, 9)
    for number in damaged:
        (steps / str(number) / "default" / "data").write_bytes(bytes(100))
    assert checkpoint._settle(steps) is None
    assert there(steps) == [str(number) for number in (3, 6, 9) if number not in damaged]
    said = capsys.readouterr().err.splitlines()
    assert len(said) == len(damaged)
    assert all(f"going on from step {min(damaged) - 3}" in line and "default/data holds other" in line for line in said)


def test_where_none_is_whole_that_is_said_and_nothing_removed(tmp_path: Path):
    steps = kept(tmp_path / "steps", 3, 6)
    for number in (3, 6):
        os.truncate(steps / str(number) / "default" / "data", 50)
    fault = checkpoint._settle(steps)
    assert fault is not None and fault.startswith(
        f"{steps / '6'}: the checkpoint is damaged: default/data has 50 bytes"
    )
    assert there(steps) == ["3", "6"]


def test_one_that_was_not_yet_on_the_disk_gives_way_to_one_that_was(tmp_path: Path):
    steps = kept(kept(tmp_path / "steps", 3), 6, sealed=False)
    assert checkpoint._settle(steps) is None
    assert there(steps) == ["3"]


def test_those_of_an_earlier_version_are_taken_as_they_are(tmp_path: Path):
    steps = kept(tmp_path / "steps", 3, 6, sealed=False)
    assert checkpoint._settle(steps) is None
    assert there(steps) == ["3", "6"]


@pytest.mark.parametrize(
    "error", [OSError(5, "Input/output error"), ValueError("PERMISSION_DENIED: opening a file"), RuntimeError("x")]
)
def test_whatever_fails_in_writing_is_one_line(tmp_path: Path, error: Exception):
    checkpoints = checkpoint.Checkpoints(tmp_path / "steps", 1, False)

    def fail(*_: object, **__: object) -> None:
        raise error

    checkpoints._manager.check_for_errors = fail
    with pytest.raises(RunFailed, match="steps: cannot write a checkpoint: "), checkpoints:
        checkpoints.check()
