"""Laws: however often a run is killed, and wherever, it ends as one that was not, or says in one line what is wrong."""

import random
import shutil
import signal
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import forked
import pytest
import tiny
from forked import Nursery

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

RUNS, KILLS = 10, 10  # a hundred in all
SIZES = [round(24 * 1.22**n) for n in range(20)]  # KiB of disks that fill up: 24 to 1,050


def test_a_hundred_kills_change_no_bit(tmp_path: Path, tiny_recipe: Path, tiny_run: Path, tiny_cache: Path):
    def work(nursery: Nursery, number: int) -> int:
        chance, folder = random.Random(number), tmp_path / str(number)
        cache, run, killed = forked.own_cache(folder, tiny_cache), folder / "run", 0
        command = ["run", tiny_recipe, "--run-dir", run]
        for turn in range(KILLS):
            # Half of them at a write, which is where it matters; half at any moment.
            at, after = (chance.randint(1, 60), None) if turn % 2 else (None, chance.uniform(0.2, 6.0))
            done = nursery.run(command, cache, at, after)
            assert done.code in (-signal.SIGKILL, 0), done
            killed += done.code != 0
            if done.code == 0 and turn % 2 == 0:
                shutil.rmtree(run)  # it was over: begun anew, so that there is something to kill
        done = nursery.run(command, cache)
        assert done.code == 0, done
        forked.same_results(run, tiny_run)
        left = [path for place in ("references", "corpora") for path in (cache / place).rglob(".*.tmp")]
        assert len(left) <= killed
        return killed

    killed = sum(forked.side_by_side(tiny_cache, work, range(RUNS)))
    assert killed > 0.7 * RUNS * KILLS


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
def test_told_to_stop_at_any_moment(
    tmp_path: Path, tiny_recipe: Path, tiny_run: Path, tiny_cache: Path, how: signal.Signals
):
    def work(nursery: Nursery, number: int) -> None:
        chance, folder = random.Random(100 + number), tmp_path / str(number)
        cache, run = forked.own_cache(folder, tiny_cache), folder / "run"
        command = ["run", tiny_recipe, "--run-dir", run]
        for _ in range(4):
            done = nursery.run(command, cache, after=chance.uniform(1.0, 8.0), signal=how)
            assert done.code in (0, {signal.SIGTERM: 75, signal.SIGINT: 130}[how]), done
            assert "Traceback" not in done.err, done.err
        done = nursery.run(command, cache)
        assert done.code == 0, done
        forked.same_results(run, tiny_run)

    forked.side_by_side(tiny_cache, work, range(2))


@pytest.fixture
def uninterrupted(tmp_path: Path, tiny_recipe: Path, tiny_cache: Path) -> Path:
    """One stage alone, without evaluation."""
    done = tiny.run(["dpo", tiny_recipe, *forked.ONE_STAGE, "--run-dir", tmp_path / "whole"], tiny_cache)
    assert done.code == 0, done.err
    return tmp_path / "whole"


def mount(folder: Path, kib: int) -> bool:
    folder.mkdir(parents=True, exist_ok=True)
    return not subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={kib}k", "tmpfs", str(folder)], capture_output=True
    ).returncode


def test_a_disk_that_fills_up_at_any_point(tmp_path: Path, tiny_recipe: Path, tiny_cache: Path, uninterrupted: Path):
    probe = tmp_path / "probe"
    if not shutil.which("mount") or not mount(probe, 16):
        pytest.skip("needs the right to mount a small disk")
    subprocess.run(["umount", str(probe)], check=True)

    def work(nursery: Nursery, kib: int) -> bool:
        disk = tmp_path / f"disk-{kib}"
        assert mount(disk, kib)
        try:
            command = ["dpo", tiny_recipe, *forked.ONE_STAGE, "--run-dir", disk / "run"]
            done = nursery.run(command, tiny_cache)
            if done.code:
                forked.one_line(done)
                subprocess.run(["mount", "-o", "remount,size=64m", str(disk)], check=True)
                again = nursery.run(command, tiny_cache)
                assert again.code == 0, again
            forked.same_results(disk / "run", uninterrupted, ["ledger.json", "export/model.safetensors"])
            return done.code != 0
        finally:
            subprocess.run(["umount", "-l", str(disk)], check=True)

    assert sum(forked.side_by_side(tiny_cache, work, SIZES)) >= 10


def test_two_processes_on_one_folder_with_a_cache_each(
    tmp_path: Path, tiny_recipe: Path, tiny_run: Path, tiny_cache: Path
):
    caches = [forked.own_cache(tmp_path / name, tiny_cache) for name in ("one", "two")]
    command = ["run", tiny_recipe, "--run-dir", tmp_path / "run"]
    with forked.nurseries(tiny_cache) as both, ThreadPoolExecutor(2) as threads:
        first, second = threads.map(lambda nursery, cache: nursery.run(command, cache), both, caches)
    refused, done = sorted((first, second), key=lambda each: -each.code)
    assert done.code == 0, done
    forked.one_line(refused)
    assert "another process is working on this run" in refused.err
    forked.same_results(tmp_path / "run", tiny_run)


def test_two_processes_on_one_cache(tmp_path: Path, tiny_recipe: Path, tiny_run: Path, tiny_cache: Path):
    cache = forked.own_cache(tmp_path, tiny_cache)
    runs = [tmp_path / "run-1", tmp_path / "run-2"]
    with forked.nurseries(tiny_cache) as both, ThreadPoolExecutor(2) as threads:
        done = list(
            threads.map(lambda nursery, run: nursery.run(["run", tiny_recipe, "--run-dir", run], cache), both, runs)
        )
    assert [each.code for each in done] == [0, 0], done
    for run in runs:
        forked.same_results(run, tiny_run)
