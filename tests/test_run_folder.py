"""docs/run-folder.md documents the keys that a run and the commands write: all of them, and no others."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import tiny

from bactrian.run import Run

PAGE = (Path(__file__).parents[1] / "docs" / "run-folder.md").read_text(encoding="utf-8")

pytestmark = pytest.mark.usefixtures("in_tiny_cache")


def documented(heading: str) -> dict[str, list[str]]:
    """The table under a heading: the code in its first column, and the other columns."""
    _, found, section = PAGE.partition(f"# {heading}\n")
    assert found, f"no section {heading}"
    lines = re.split(r"^#", section, maxsplit=1, flags=re.MULTILINE)[0].splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]
    return {row[0].strip("`"): row[1:] for row in rows[2:]}


def keys_of(rows: list[dict[str, Any]]) -> set[str]:
    return {key for row in rows for key in row}


def test_every_path(tiny_run: Path):
    names = {path.split("/")[0] for path in documented("What a run writes, and what the commands print")}
    assert {path.name for path in tiny_run.iterdir()} == names - {"tensorboard", "benchmarks", "references", "earlier"}
    for stage in ("sft", "dpo"):
        assert {path.name for path in (tiny_run / "checkpoints" / stage).iterdir()} == {"steps", "final"}


def test_the_ledger(tiny_run: Path):
    ledger = Run(tiny_run).evidence("ledger")
    stages = [ledger.pop("sft"), ledger.pop("dpo")]
    assert set(ledger) == {"versions", "weights", "prompts", "base"}
    assert set(ledger["base"]) == set(documented("base"))
    for stage in stages:
        assert set(stage) == set(documented("ledger.json"))
        assert set(stage["training"]) == set(documented("training"))
        assert set(stage["heldout"]) == {"corpus", "sources", "examples", "tokens", "learned_tokens"}
        for source in (*stage["sources"], *stage["heldout"]["sources"]):
            # Nothing is noted of these rows, and none is bad.
            always = {key for key, (meaning,) in documented("sources").items() if "absent where" not in meaning}
            assert set(source) == always


@pytest.mark.parametrize("heading", ["metrics.jsonl", "timing"])
def test_the_metrics(tiny_run: Path, heading: str):
    rows = Run(tiny_run).metrics()
    for stage in ("sft", "dpo"):
        for kind in ("train", "heldout"):
            lines = [row for row in rows if (row["stage"], row["kind"]) == (stage, kind)]
            lines = [row["timing"] for row in lines] if heading == "timing" else lines
            table = documented(heading).items()
            wanted = {key for key, (kinds, _) in table if kind in kinds or kinds.startswith("both")}
            if stage == "sft":
                wanted -= {key for key, (kinds, _) in table if "DPO" in kinds}
            assert [set(line) for line in lines] == [wanted] * len(lines)


def test_the_evaluation_and_the_samples(tiny_run: Path, tiny_recipe: Path):
    run = Run(tiny_run)
    evaluation = run.evidence("evaluation")
    assert set(evaluation) == set(documented("evaluation.json")) | {"greets", "on_topic"}
    assert set(evaluation["counts"]) == set(documented("counts"))
    asked = [json.loads(line) for line in (tiny_recipe.parent / "prompts.jsonl").read_text().splitlines()]
    assert keys_of(run.samples()) == keys_of(asked) | set(documented("samples.jsonl"))


def test_the_lines_that_commands_print(tiny_run: Path, tiny_recipe: Path):
    folder = tiny_recipe.parent
    commands = {
        "bactrian score": ["score", tiny_run, folder / "sft-heldout.jsonl"],
        "bactrian score, pairs": ["score", tiny_run, folder / "pairs-heldout.jsonl", "--reference", folder / "base"],
        "bactrian generate --json": ["generate", tiny_run, "--prompt", "Hi", "--max-tokens", 24, "--json"],
    }
    for heading, command in commands.items():
        rows = [json.loads(line) for line in tiny.call(*command).out.splitlines()]
        assert rows
        assert [set(row) for row in rows] == [set(documented(heading))] * len(rows)


def test_the_exit_codes():
    # Each of them is produced in a test of its own: test_pipeline (0), test_bad_input (1 and 2), test_hosts (75),
    # test_resume (130), test_interrupts (141); 143 is the system's.
    assert set(documented("Exit codes")) == {"0", "1", "2", "75", "130", "141", "143"}
