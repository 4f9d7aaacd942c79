"""From the command to the end of the first update, of SFT and DPO of SmolLM2-135M, and how long an import takes.

    python bench/startup.py

The update is of two short examples, so that it hardly counts. The command ran once before: what it compiled and
tokenized is in the cache, as on every day but the first.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import alternate
from alternate import Figures, Report

RECIPES = Path(__file__).parents[1] / "recipes"
LOOK_EVERY = 0.02  # seconds
EXAMPLES = 2
ROWS = {
    "sft": ("alpaca", {"instruction": "Name a color.", "input": "", "output": "Blue."}),
    "dpo": ("hh", {"chosen": "\n\nHuman: Hello\n\nAssistant: Hi!", "rejected": "\n\nHuman: Hello\n\nAssistant: No."}),
}


def importing(arguments: argparse.Namespace) -> Figures:
    """A process that imports the package and ends."""
    command = [sys.executable, "-c", "import bactrian"]
    start = time.perf_counter()
    subprocess.run(command, check=True)
    return {"seconds": time.perf_counter() - start}


def sft(arguments: argparse.Namespace) -> Figures:
    """`bactrian sft`."""
    return _warm("sft", arguments.turn)


def dpo(arguments: argparse.Namespace) -> Figures:
    """`bactrian dpo`; the reference pass over its two pairs is kept from the time before."""
    return _warm("dpo", arguments.turn)


def _warm(stage: str, turn: int) -> Figures:
    if turn == 1:
        _seconds(stage)
    return {"seconds": _seconds(stage)}


def _seconds(stage: str) -> float:
    data_format, row = ROWS[stage]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "rows.jsonl").write_text(f"{json.dumps(row)}\n" * EXAMPLES, encoding="utf-8")
        settings = {"batch_size": EXAMPLES, "data.0.path": folder / "rows.jsonl", "data.0.format": data_format}
        command = [sys.executable, "-m", "bactrian", stage, str(RECIPES / f"{stage}.toml")]
        command += [f"{stage}.{key}={value}" for key, value in settings.items()]
        start = time.perf_counter()
        with (folder / "said").open("w+") as said:
            process = subprocess.Popen([*command, "--run-dir", str(folder / "run")], stdout=said, stderr=said)
            while not any(path.stat().st_size for path in folder.glob("run/metrics.jsonl")):
                if process.poll() is not None:
                    said.seek(0)
                    raise SystemExit(f"{' '.join(command)}: exit code {process.returncode}\n{said.read()}")
                time.sleep(LOOK_EVERY)
            seconds = time.perf_counter() - start
            process.kill()
            process.wait()
        return seconds


SIDES = {"sft": sft, "dpo": dpo, "import": importing}


def main() -> None:
    arguments = alternate.parser(__doc__, SIDES).parse_args()
    alternate.run(arguments, SIDES, Report("startup", "seconds", {}))


if __name__ == "__main__":
    main()
