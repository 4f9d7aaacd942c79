"""What README says of the quickstart is what a run of it wrote."""

import importlib.util
import json
from pathlib import Path

import pytest
import tiny

from bactrian.files import documents
from bactrian.run import Run

ROOT = Path(__file__).parents[1]
spec = importlib.util.spec_from_file_location("check_readme", ROOT / "docs" / "check_readme.py")
assert spec and spec.loader
check_readme = importlib.util.module_from_spec(spec)
spec.loader.exec_module(check_readme)


def test_readme_is_what_the_record_says():
    text = check_readme.README.read_text(encoding="utf-8")
    assert check_readme.written(text, documents.read_json(check_readme.RECORD)) == text


def test_a_typed_number_is_found():
    kept = documents.read_json(check_readme.RECORD)
    text = check_readme.README.read_text(encoding="utf-8").replace("sft_loss 4.281", "sft_loss 4.821", 1)
    assert check_readme.written(text, kept) != text


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_the_record_is_what_a_run_writes(tmp_path: Path, tiny_cache: Path):
    folder = ROOT / "runs" / "quickstart"
    if not (folder / "export" / "README.md").is_file():
        folder = tmp_path / "quickstart"
        command = ["run", ROOT / "recipes" / "quickstart.toml", "--run-dir", folder]
        done = tiny.run(command, tiny_cache, timeout=3500)
        if "cannot be downloaded" in done.err:
            pytest.skip("the quickstart's model is not at hand, and cannot be fetched")
        assert done.code == 0, done.err
    found, kept = check_readme.record(Run(folder), timed=False), json.loads(check_readme.RECORD.read_text())
    assert found["prompt"] == kept["prompt"] and found["scores"].keys() == kept["scores"].keys()
    # Not bitwise reproducible across machines: a loss to its digits, a share of twenty to one answer.
    for name in found["scores"].keys() - {"counts"}:
        assert found["scores"][name] == pytest.approx(kept["scores"][name], rel=0.02, abs=0.051), name
