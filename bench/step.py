"""One dense training step of SmolLM2-135M here and in `transformers`: nothing is packed, so nothing is gained by it.

    python bench/step.py

The same weights, the same rows of tokens, float32. A step is forward, backward and AdamW; the median of a few counts,
after one for warm-up.
"""

import argparse
import statistics
import time

import alternate
import training_data
import work
from alternate import Figures, Ratio, Report

ROWS, LENGTH = 4, 512
WARM, TIMED = 1, 3
MATRIX = 2048  # of the product that MFU is measured against


def bactrian(arguments: argparse.Namespace) -> Figures:
    """Our step."""
    import jax
    import numpy as np

    from bactrian import assistant
    from bactrian.data import packing
    from bactrian.model import llama
    from bactrian.recipe import Optimizer
    from bactrian.train import optimizer, sft, trainer

    found = assistant.find(training_data.MODEL)
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
    return _figures(seconds, work.jax_rate("float32", MATRIX))


def transformers(arguments: argparse.Namespace) -> Figures:
    """PyTorch's."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(training_data.exported(), dtype=torch.float32)
    tokens, targets = (torch.from_numpy(array).long() for array in _tokens(model.config.vocab_size))
    adamw = torch.optim.AdamW(model.parameters(), lr=1e-5)
    seconds = []
    for _ in range(WARM + TIMED):
        start = time.perf_counter()
        logits = model(tokens, use_cache=False).logits
        torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten()).backward()
        adamw.step()
        adamw.zero_grad()
        seconds.append(time.perf_counter() - start)
    return _figures(seconds, work.torch_rate("float32", MATRIX))


def _figures(seconds: list[float], rate: float) -> Figures:
    from bactrian.model import hub, weights

    config = weights.read_config(hub.locate(training_data.MODEL))
    flops = work.Work(ROWS * LENGTH, ROWS * LENGTH, ROWS * LENGTH * (LENGTH + 1) // 2).flops(config)
    median = statistics.median(seconds[WARM:])
    return {"tokens_per_second": ROWS * LENGTH / median, **work.utilization(flops, median, rate)}


def _tokens(vocabulary: int):
    """Inputs and targets, int32 [rows, length] each, the same on both sides."""
    import numpy as np

    drawn = np.random.default_rng(0).integers(0, vocabulary, (ROWS, LENGTH + 1), dtype=np.int32)
    return drawn[:, :-1], drawn[:, 1:]


SIDES = {"bactrian": bactrian, "transformers": transformers}


def main() -> None:
    parser = alternate.parser(__doc__, SIDES)
    parser.add_argument("--name", default="step", help="of the results")
    arguments = parser.parse_args()
    figure = "tokens_per_second"
    ratios = {"bactrian / transformers": Ratio(figure, "transformers", figure)}
    notes = [f"float32, [{ROWS}, {LENGTH}] tokens, every one learnt; {work.FORMULA}"]
    alternate.run(arguments, SIDES, Report(arguments.name, figure, ratios, notes))


if __name__ == "__main__":
    main()
