"""Laws: whichever file of a run's folder or of the cache is damaged, the same command gives the same numbers, or one
line that names the file; never other numbers."""

import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import forked
import pytest
import tiny
from forked import Nursery

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    if content:
        content[len(content) // 2] ^= 4
    path.write_bytes(bytes(content))


DAMAGES: dict[str, Callable[[Path], object]] = {
    "emptied": lambda path: os.truncate(path, 0),
    "cut": lambda path: os.truncate(path, path.stat().st_size // 2),
    "a bit flipped": flip,
    "removed": Path.unlink,
}
WRITTEN_AGAIN = ("plots", "README.md")  # of what is in the run's folder


def files(folder: Path) -> list[str]:
    found = sorted(path for path in folder.rglob("*") if path.is_file() and "xla" not in path.parts)
    return [str(path.relative_to(folder)) for path in found]


def same_or_said(done: tiny.Done, run: Path, whole: Path, name: str, how: str) -> bool:
    """Whether it went well; that it was well, or said what is wrong."""
    assert "Traceback" not in done.err, (name, how, done)
    if done.code:
        assert done.code == 2, (name, how, done)
        forked.one_line(done)
        return False
    forked.same_results(run, whole)
    return True


def test_each_file_of_a_finished_run(tmp_path: Path, tiny_recipe: Path, tiny_run: Path, tiny_cache: Path):
    def work(nursery: Nursery, name: str) -> None:
        run = tmp_path / name.replace("/", "-")
        chance = random.Random(name)
        # What it no longer needs, its checkpoints, is damaged in one way; what it is made of in two.
        for how in chance.sample(sorted(DAMAGES), 1 if "steps" in name or "plots" in name else 2):
            shutil.copytree(tiny_run, run)
            DAMAGES[how](run / name)
            done = nursery.run(["run", tiny_recipe, "--run-dir", run], tiny_cache)
            is_well = same_or_said(done, run, tiny_run, name, how)
            if any(part in name for part in WRITTEN_AGAIN):
                assert is_well and (run / name).read_bytes() == (tiny_run / name).read_bytes(), (name, how)
            if name.endswith((".safetensors", "metrics.jsonl", "evaluation.json")):
                assert not is_well and name.rpartition("/")[2] in done.err, (name, how, done)
            shutil.rmtree(run)

    names = files(tiny_run)
    assert len(names) > 20
    forked.side_by_side(tiny_cache, work, names)


def test_each_file_of_a_checkpoint(tmp_path: Path, tiny_recipe: Path, tiny_cache: Path):
    command = ["dpo", tiny_recipe, *forked.ONE_STAGE, "dpo.keep_last=2", "--run-dir"]
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert tiny.run([*command, whole], tiny_cache).code == 0
    steps = cut / "checkpoints" / "dpo" / "steps"
    with forked.nurseries(tiny_cache, 1) as [nursery]:
        for at in range(90, 300, 15):  # until two are kept
            shutil.rmtree(cut, ignore_errors=True)
            nursery.run([*command, cut], tiny_cache, at)
            kept = sorted(int(path.name) for path in steps.iterdir() if path.name.isdecimal()) if steps.exists() else []
            if len(kept) == 2:
                break
    assert len(kept) == 2 and not (steps.parent / "final").exists()

    def work(nursery: Nursery, name: str) -> str:
        run = tmp_path / name.replace("/", "-")
        how = random.Random(name).choice(sorted(DAMAGES))
        shutil.copytree(cut, run)
        DAMAGES[how](run / "checkpoints" / "dpo" / "steps" / name)
        done = nursery.run([*command, run], tiny_cache)
        assert done.code == 0 and "Traceback" not in done.err, (name, how, done)
        forked.same_results(run, whole, ["ledger.json", "export/model.safetensors"])
        shutil.rmtree(run)
        return done.err

    said = forked.side_by_side(tiny_cache, work, [name for name in files(steps) if name.startswith(f"{kept[1]}/")])
    # Two files are orbax's notes of when it wrote, which nothing depends on.
    assert sum(f"going on from step {kept[0]}" in each for each in said) >= len(said) - 2


def test_each_file_of_the_cache(tmp_path: Path, tiny_recipe: Path, tiny_cache: Path):
    command = ["dpo", tiny_recipe, *forked.ONE_STAGE, "--run-dir"]
    cache = forked.own_cache(tmp_path, tiny_cache)
    whole = tmp_path / "whole"
    assert tiny.run([*command, whole], cache).code == 0

    def work(nursery: Nursery, name: str) -> None:
        own = tmp_path / name.replace("/", "-")
        for how, damage in DAMAGES.items():
            shutil.copytree(cache, own / "cache", symlinks=True)
            damage(own / "cache" / name)
            done = nursery.run([*command, own / "run"], own / "cache")
            assert done.code == 0 and "Traceback" not in done.err, (name, how, done)
            forked.same_results(own / "run", whole, ["ledger.json", "export/model.safetensors"])
            # A digest is no result: where it says nothing it is made again, and nothing is said. A manifest may say
            # less than it did, of files that are whole.
            if not name.startswith("fingerprints") and not name.endswith("manifest.json") and how != "removed":
                assert done.err.count("made again") + done.err.count("computed again") == 1, (name, how, done.err)
            shutil.rmtree(own)

    names = [name for name in files(cache) if not name.endswith(".lock")]
    assert len(names) > 6
    forked.side_by_side(tiny_cache, work, names)


def test_compiled_programs_that_are_damaged_are_compiled_again(tmp_path: Path, tiny_recipe: Path, tiny_cache: Path):
    command = ["dpo", tiny_recipe, *forked.ONE_STAGE, "--run-dir"]
    whole = tiny.run([*command, tmp_path / "whole"], tiny_cache)
    assert whole.code == 0
    for how, damage in DAMAGES.items():
        cache = tmp_path / how
        shutil.copytree(tiny_cache / "xla", cache / "xla")
        for path in sorted((cache / "xla").iterdir()):
            damage(path)
        done = tiny.run([*command, tmp_path / "run"], cache)
        assert done.code == 0 and "Traceback" not in done.err, (how, done)
        forked.same_results(tmp_path / "run", tmp_path / "whole", ["ledger.json", "export/model.safetensors"])
        shutil.rmtree(tmp_path / "run")
