"""The law of SFT: loss and gradients are those of `transformers` with the same labels, packed or one by one."""

import gzip
import json
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch

from bactrian.data import packing
from bactrian.data.chat import Chat
from bactrian.data.packing import Plan
from bactrian.data.records import Example, Message, Role
from bactrian.model import llama
from bactrian.recipe import Source
from bactrian.train import sft, trainer

TOLERANCE = 1e-4  # relative; never relaxed

Measured = tuple[float, llama.Parameters]


def theirs(model: Any, examples: list[Example], gradients: Callable[[Any], llama.Parameters]) -> Measured:
    """Padded on the right, labels -100 where nothing is learnt: the mean is over the learnt tokens of the batch."""

    def pad(columns: list[np.ndarray], value: int) -> torch.Tensor:
        rows = [torch.tensor(column, dtype=torch.long) for column in columns]
        return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=value)

    model.zero_grad()
    loss = model(
        input_ids=pad([each.tokens for each in examples], 0),
        attention_mask=pad([np.ones_like(each.tokens) for each in examples], 0),
        labels=pad([np.where(each.learn, each.tokens, -100) for each in examples], -100),
    ).loss
    loss.backward()
    return loss.item(), gradients(model)


def ours(
    config: llama.Config, parameters: llama.Parameters, examples: list[Example], plan: Plan, rows: int
) -> Measured:
    keep = optax.GradientTransformation(lambda params: params, lambda updates, state, params=None: (updates, updates))
    step = jax.jit(trainer.make_step(sft.objective(config, llama.Compute()), keep))
    batch = trainer.split(packing.batch(plan, examples, 0), rows)
    state, metrics = step(trainer.start(parameters, keep), batch)
    return float(metrics["loss"]), state.optimizer


def separate(examples: list[Example]) -> Plan:
    longest = max(len(each.tokens) - 1 for each in examples)
    return Plan((tuple((index,) for index in range(len(examples))),), longest, len(examples), segments=1, branches=1)


def packed(examples: list[Example], capacity: int, rows_multiple: int) -> Plan:
    lengths = np.array([len(each.tokens) - 1 for each in examples])
    return packing.plan(lengths, [np.arange(len(examples))], capacity, rows_multiple, branches=1)


def assert_equal(found: Measured, expected: Measured) -> None:
    assert found[0] == pytest.approx(expected[0], rel=TOLERANCE)
    assert jax.tree.structure(found[1]) == jax.tree.structure(expected[1])
    for (path, gradient), one in zip(jax.tree.leaves_with_path(expected[1]), jax.tree.leaves(found[1]), strict=True):
        difference = jnp.linalg.norm(one - gradient)
        assert difference <= TOLERANCE * jnp.linalg.norm(gradient), jax.tree_util.keystr(path)


def test_real_conversations_give_what_transformers_gives(shared_data: Path, words, reduced, twin, gradients):
    roles: dict[str, Role] = {"human": "user", "gpt": "assistant"}
    chat = Chat(words, "tulu")
    examples: list[Example] = []
    with gzip.open(shared_data / "sft" / "sharegpt_v3_4797.jsonl.gz", "rt", encoding="utf-8", newline="\n") as file:
        for line in islice(file, 57):
            # Some turns at a time, their texts cut short, so that several turns fit in a small row.
            turns = [turn for turn in json.loads(line)["conversations"] if turn["from"] in roles]
            for start in range(0, len(turns) - 3, 4):
                some = turns[start : start + 4]
                examples.append(Example(*chat.render(tuple(Message(roles[t["from"]], t["value"][:80]) for t in some))))
    examples, vocabulary = reduced([each for each in examples if len(each.tokens) <= 192][:32])
    assert len(examples) == 32
    model, config, parameters = twin(vocabulary, 0)
    expected = theirs(model, examples, gradients)
    alone, together = separate(examples), packed(examples, 256, 4)
    assert together.segments > 1
    assert_equal(ours(config, parameters, examples, alone, 8), expected)
    assert_equal(ours(config, parameters, examples, together, together.rows // 4), expected)


def test_a_long_conversation_weighs_by_its_tokens(conversations: list[Example], twin, gradients):
    """The mean is over the tokens of the batch, not a mean of means of conversations or of microbatches."""
    model, config, parameters = twin(50, 1, tied=True)
    expected = theirs(model, conversations, gradients)
    plan = packed(conversations, 64, 1)
    assert plan.rows > 1
    assert_equal(ours(config, parameters, conversations, plan, 1), expected)
    means = [theirs(model, [each], gradients)[0] for each in conversations]
    assert abs(np.mean(means) - expected[0]) > 10 * TOLERANCE * expected[0]


def test_the_mean_is_one_of_means_where_a_recipe_asks_for_it(conversations: list[Example], twin, gradients):
    """Each group of an update, as it was drawn, is a microbatch of a trainer that takes the mean of their means."""
    model, config, parameters = twin(50, 1, tied=True)
    drawn = np.random.default_rng(0).permutation(len(conversations) // 2 * 2)
    each = [theirs(model, [conversations[i] for i in group], gradients) for group in drawn.reshape(2, -1)]
    losses, slopes = zip(*each, strict=True)
    expected = (np.mean(losses).item(), jax.tree.map(lambda *leaves: sum(leaves) / len(leaves), *slopes))
    learned = np.array([packing.lay_out(example).learn.sum() for example in conversations])
    lengths = np.array([len(example.tokens) - 1 for example in conversations])
    plan = packing.plan(lengths, [drawn], 64, 1, branches=1)
    scaled = packing.mean_of_means(plan, [drawn], learned, len(drawn) // 2)
    batch = packing.batch(scaled, conversations, 0)
    assert batch.weights.sum() == pytest.approx(learned[drawn].sum(), rel=1e-6)
    assert_equal(ours(config, parameters, conversations, scaled, 1), expected)
    plain = ours(config, parameters, conversations, plan, 1)[0]
    assert abs(plain - expected[0]) > 10 * TOLERANCE * expected[0]


def test_real_answers_to_instructions_give_what_transformers_gives(shared_data: Path, real, reduced, twin, gradients):
    source = Source(path=str(shared_data / "sft" / "alpaca_en_demo.json"), format="alpaca")
    examples, vocabulary = reduced(real(source, 16, 128, "all"))
    model, config, parameters = twin(vocabulary, 2, tied=True)
    plan = packed(examples, 128, 1)
    assert_equal(ours(config, parameters, examples, plan, plan.rows), theirs(model, examples, gradients))
