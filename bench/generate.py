"""Greedy generation by SmolLM2-135M here and by `transformers.generate`: 64 tokens of text, 64 new ones, float32.

    python bench/generate.py [--batches 1,8,32]

Both sides read the same prompts, pieces of this project's licence, and never stop early. Prefill is in the figure;
programs are compiled, and memory is touched, by a first run that is not. tokens_per_second_N counts new tokens at batch
N, answers_N is a digest of them: equal where both sides said the same.
"""

import argparse
import hashlib
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import alternate
import numpy as np
import training_data
from alternate import Figures, Ratio, Report

TEXT = Path(__file__).parents[1] / "LICENSE"
PROMPT, NEW = 64, 64
REPEATS = 3

Generate = Callable[[np.ndarray], np.ndarray]  # int32 [batch, PROMPT] → [batch, NEW]


def bactrian(arguments: argparse.Namespace) -> Figures:
    """Our engine."""
    from bactrian import assistant
    from bactrian.inference.engine import Settings

    engine = assistant.find(training_data.MODEL).engine("float32")

    def generate(prompts: np.ndarray) -> np.ndarray:
        return np.stack([each.tokens for each in engine.generate(list(prompts), Settings(max_tokens=NEW))])

    return _figures(arguments, generate)


def transformers(arguments: argparse.Namespace) -> Figures:
    """`generate` with its key/value cache."""
    import torch
    from transformers import AutoModelForCausalLM, GenerationConfig

    model: Any = AutoModelForCausalLM.from_pretrained(training_data.exported(), dtype=torch.float32)
    model.generation_config = GenerationConfig(max_new_tokens=NEW, do_sample=False, pad_token_id=0)

    def generate(prompts: np.ndarray) -> np.ndarray:
        tokens = torch.from_numpy(prompts).long()
        return model.generate(tokens, attention_mask=torch.ones_like(tokens))[:, PROMPT:].numpy()

    return _figures(arguments, generate)


def _figures(arguments: argparse.Namespace, generate: Generate) -> Figures:
    figures: Figures = {}
    for batch in arguments.batches:
        prompts = _prompts(batch)
        generate(prompts)
        answers, seconds = prompts, []
        for _ in range(REPEATS):
            start = time.perf_counter()
            answers = generate(prompts)
            seconds.append(time.perf_counter() - start)
        figures[f"tokens_per_second_{batch}"] = batch * NEW / statistics.median(seconds)
        figures[f"answers_{batch}"] = hashlib.sha256(answers.astype("<i4").tobytes()).hexdigest()[:8]
    return figures


def _prompts(batch: int) -> np.ndarray:
    """Pieces of the text that begin at different places, int32 [batch, PROMPT]."""
    from bactrian.data import tokenizer
    from bactrian.model import hub

    words = tokenizer.load(hub.locate_tokenizer(training_data.MODEL))
    tokens = np.asarray(words.encode_text(TEXT.read_text(encoding="utf-8"), add_bos=False), np.int32)
    starts = np.linspace(0, len(tokens) - PROMPT - 1, batch).astype(int)
    return np.stack([tokens[start : start + PROMPT] for start in starts])


SIDES = {"bactrian": bactrian, "transformers": transformers}


def main() -> None:
    parser = alternate.parser(__doc__, SIDES)
    parser.add_argument("--batches", type=lambda text: [int(each) for each in text.split(",")], default=[1, 8, 32])
    parser.add_argument("--name", default="generate", help="of the results")
    arguments = parser.parse_args()
    rates = {batch: f"tokens_per_second_{batch}" for batch in arguments.batches}
    ratios = {f"bactrian / transformers, batch {b}": Ratio(rate, "transformers", rate) for b, rate in rates.items()}
    notes = [f"float32, greedy, {PROMPT} tokens of prompt and {NEW} new, prefill in the figure"]
    alternate.run(arguments, SIDES, Report(arguments.name, rates[arguments.batches[-1]], ratios, notes))


if __name__ == "__main__":
    main()
