"""What README says of the quickstart, from what its run wrote.

    python docs/check_readme.py                  fail, with the difference, where README is not what the record says
    python docs/check_readme.py --write          put the record's words into README
    python docs/check_readme.py --record RUN     make the record, docs/quickstart.json, from a run's folder

With `--timed` the record tells how long the run took: of a machine that did nothing else.
"""

import argparse
import difflib
import os
import sys
from pathlib import Path
from typing import Any

from bactrian import evidence
from bactrian.files import documents
from bactrian.files.atomic import replacing, write_json
from bactrian.run import Run

README = Path(__file__).parents[1] / "README.md"
RECORD = Path(__file__).with_name("quickstart.json")
SAMPLE = "prompt-astronomy-4"  # always this one, whatever is answered


def record(run: Run, timed: bool) -> dict[str, Any]:
    """What README shows, of a finished run."""
    sample = next(row for row in run.samples() if row["id"] == SAMPLE)
    found = {
        "scores": run.evidence("evaluation"),
        "prompt": sample["prompt"],
        "answer": sample["answers"]["dpo"],
        "versions": run.evidence("ledger")["versions"],
    }
    if timed:
        # From the recipe, which is written first, to the card.
        took = (run.export / "README.md").stat().st_mtime - run.recipe_path.stat().st_mtime
        found |= {"minutes": round(took / 60, 1), "cores": os.cpu_count()}
    return found


def blocks(kept: dict[str, Any]) -> dict[str, str]:
    """The text between README's marks, by their names."""
    scores = {name: by_label for name, by_label in kept["scores"].items() if name != "counts"}
    lines = [
        evidence.line(label, {name: by_label[label] for name, by_label in scores.items() if label in by_label})
        for label in ("base", "sft", "dpo")
    ]
    took = f"It took {kept['minutes']} minutes on {kept['cores']} CPU cores.\n" if "minutes" in kept else ""
    said = "\n".join([*lines, "done: runs/quickstart"])
    return {
        "scores": f"```\n{said}\n```\n{took}",
        "sample": f'"{kept["prompt"]}" is then answered\n\n> {kept["answer"]}\n',
    }


def written(text: str, kept: dict[str, Any]) -> str:
    """README with the record's words between its marks."""
    for name, block in blocks(kept).items():
        begin, end = f"<!-- quickstart: {name} -->\n", f"<!-- end of {name} -->\n"
        before, found, rest = text.partition(begin)
        if not found or end not in rest:
            raise SystemExit(f"README.md has no place for the quickstart's {name}: {begin.strip()} … {end.strip()}")
        text = before + begin + block + end + rest.partition(end)[2]
    return text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--record", metavar="RUN", type=Path)
    parser.add_argument("--timed", action="store_true")
    parser.add_argument("--write", action="store_true")
    given = parser.parse_args()
    if given.record:
        write_json(RECORD, record(Run.existing(given.record), given.timed))
        return
    text = README.read_text(encoding="utf-8")
    wanted = written(text, documents.read_json(RECORD))
    if given.write:
        with replacing(README) as temporary:
            temporary.write_text(wanted, encoding="utf-8")
    elif wanted != text:
        changed = difflib.unified_diff(text.splitlines(True), wanted.splitlines(True), "README", "record")
        sys.exit("".join(changed))


if __name__ == "__main__":
    main()
