"""The examples run, and what they show is true."""

import math
import re
import runpy
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"


def test_the_loop_in_a_page(tiny_recipe: Path, in_tiny_cache: None, capsys: pytest.CaptureFixture[str]):
    folder = tiny_recipe.parent
    loop = runpy.run_path(str(EXAMPLES / "loop.py"))
    loop["main"](str(folder / "base"), str(folder / "sft.jsonl"), str(folder / "pairs.jsonl"))
    sft, dpo = capsys.readouterr().out.split("DPO:")
    losses = [[float(value) for value in re.findall(r"loss ([\d.]+)", part)] for part in (sft, dpo)]
    assert [len(each) for each in losses] == [3, 3]
    assert losses[0][-1] < losses[0][0]
    assert losses[1][0] == pytest.approx(math.log(2), abs=1e-4)
    assert losses[1][-1] < losses[1][0]


def test_the_loop_is_a_page_of_its_own():
    text = (EXAMPLES / "loop.py").read_text()
    assert len(text.splitlines()) <= 90
    assert "trainer" not in text.split('"""', 2)[2]
    assert "pipeline" not in text
    assert all(Path(path).is_file() for path in runpy.run_path(str(EXAMPLES / "loop.py"))["DEFAULTS"][1:])
