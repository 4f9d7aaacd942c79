"""The law of DPO: loss, log-probabilities and gradients are those of TRL on the same tokens, however they are laid out.

Numbers are compared at a policy that is not the reference, in float32, to 1e-4 relative: losses and each pair's
log-probabilities by themselves, a parameter's gradient by the norm of the difference. (The mean margin, in which pairs
cancel, is compared by the size of a pair's.)
"""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import datasets
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tokenizers
import torch
import transformers
from trl.trainer.dpo_config import DPOConfig
from trl.trainer.dpo_trainer import DPOTrainer

from bactrian.data import packing
from bactrian.data.packing import Plan
from bactrian.data.records import Example
from bactrian.model import llama
from bactrian.recipe import Optimizer, Source
from bactrian.train import optimizer, preference, reference, scores, trainer

TOLERANCE = 1e-4  # relative; never relaxed
BETA = 0.1


class Measured(NamedTuple):
    """What one side makes of some pairs."""

    loss: float
    margin: float
    logprobs: np.ndarray  # [pairs, 2]
    references: np.ndarray  # [pairs, 2]
    gradients: llama.Parameters


class TRL(DPOTrainer):
    """TRL's trainer on pairs that are token ids already."""

    def _prepare_dataset(self, dataset, *arguments, **settings):
        return dataset


def trl_trainer(policy, reference_model, pairs: Sequence[Example], folder: Path, **settings) -> TRL:
    engine = tokenizers.Tokenizer(tokenizers.models.WordLevel({"<pad>": 0, "</s>": 1}, unk_token="<pad>"))
    words = transformers.PreTrainedTokenizerFast(tokenizer_object=engine, pad_token="<pad>", eos_token="</s>")
    quiet = {
        "report_to": "none",
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "save_strategy": "no",
    }
    arguments = DPOConfig(str(folder), beta=BETA, max_length=None, disable_tqdm=True, **quiet, **settings)
    rows = [
        {
            "prompt_ids": pair.tokens[: pair.starts[0]].tolist(),
            "chosen_ids": pair.tokens[pair.starts[0] : pair.starts[1]].tolist(),
            "rejected_ids": pair.tokens[pair.starts[1] :].tolist(),
        }
        for pair in pairs
    ]
    data = datasets.Dataset.from_list(rows)
    return TRL(policy.model, reference_model.model, arguments, train_dataset=data, processing_class=words)


def trl_inputs(pairs: Sequence[Example]) -> dict[str, torch.Tensor]:
    """A batch of TRL's: sequences padded on the right, every chosen one, then every rejected one."""
    paths = [pair.branch(branch) for branch in (0, 1) for pair in pairs]
    columns = {
        "input_ids": [torch.tensor(tokens, dtype=torch.long) for tokens, _ in paths],
        "attention_mask": [torch.ones(len(tokens), dtype=torch.long) for tokens, _ in paths],
        "completion_mask": [torch.tensor(learn, dtype=torch.long) for _, learn in paths],
    }
    return {name: torch.nn.utils.rnn.pad_sequence(column, batch_first=True) for name, column in columns.items()}


@pytest.fixture
def theirs(tmp_path: Path, gradients: Callable[[Any], llama.Parameters]) -> Callable[..., Measured]:
    """TRL's own loss and its gradients."""

    def measure(policy, reference_model, pairs: Sequence[Example]) -> Measured:
        trainer = trl_trainer(policy, reference_model, pairs, tmp_path / "trl")
        inputs = trl_inputs(pairs)
        policy.model.zero_grad()
        loss = trainer.compute_loss(policy.model, inputs)
        loss.backward()
        logprobs, references = (
            torch.stack(trainer.compute_ref_log_probs(model, inputs), dim=1).numpy()
            for model in (policy.model, reference_model.model)
        )
        [margin] = trainer._metrics["eval"]["rewards/margins"]
        return Measured(loss.item(), margin, logprobs, references, gradients(policy.model))

    return measure


def ours(policy, reference_model, pairs: Sequence[Example], plan: Plan, rows: int, path: Path) -> Measured:
    """Through the parts that a run is made of: the reference column, the rows, the step."""
    compute = llama.Compute()
    score = scores.compiled(policy.config, compute)
    references = reference.column(path, plan, pairs, rows, score, reference_model.parameters)
    logprobs = np.zeros_like(references)
    for example, values in scores.of_examples(score, policy.parameters, reference.microbatches(plan, pairs, 0, rows)):
        logprobs[example] = values
    # The step's own gradients, as the optimizer is given them.
    keep = optax.GradientTransformation(lambda params: params, lambda updates, state, params=None: (updates, updates))
    step = jax.jit(trainer.make_step(preference.objective(policy.config, compute, BETA), keep))
    batch = trainer.split(packing.batch(plan, pairs, 0, references), rows)
    state, metrics = step(trainer.start(policy.parameters, keep), batch)
    return Measured(float(metrics["loss"]), float(metrics["margin"]), logprobs, references, state.optimizer)


def separate(pairs: Sequence[Example]) -> Plan:
    """One pair in a row, padded to the longest."""
    longest = max(packing.places(len(pair.tokens), pair.starts) for pair in pairs)
    count = len(pairs)
    return Plan((tuple((index,) for index in range(count)),), longest, count, segments=1, branches=2)


def packed(pairs: Sequence[Example], capacity: int, rows_multiple: int) -> Plan:
    lengths = np.array([packing.places(len(pair.tokens), pair.starts) for pair in pairs])
    return packing.plan(lengths, [np.arange(len(pairs))], capacity, rows_multiple, branches=2)


def unshared(pair: Example) -> Example:
    """The pair as two whole sequences beside each other."""
    (chosen, chosen_learn), (rejected, rejected_learn) = pair.branch(0), pair.branch(1)
    tokens, learn = np.concatenate([chosen, rejected]), np.concatenate([chosen_learn, rejected_learn])
    return Example(tokens, learn, (0, len(chosen)))


def assert_equal(found: Measured, expected: Measured) -> None:
    shifts = BETA * (expected.logprobs - expected.references)
    size = np.abs(shifts[:, 0] - shifts[:, 1]).mean()
    assert size > 0.1  # the policy is not the reference
    assert found.loss == pytest.approx(expected.loss, rel=TOLERANCE)
    assert abs(found.margin - expected.margin) <= TOLERANCE * size
    np.testing.assert_allclose(found.logprobs, expected.logprobs, rtol=TOLERANCE)
    np.testing.assert_allclose(found.references, expected.references, rtol=TOLERANCE)
    assert jax.tree.structure(found.gradients) == jax.tree.structure(expected.gradients)
    for path, gradient in jax.tree.leaves_with_path(expected.gradients):
        difference = jnp.linalg.norm(dict(jax.tree.leaves_with_path(found.gradients))[path] - gradient)
        assert difference <= TOLERANCE * jnp.linalg.norm(gradient), jax.tree_util.keystr(path)


def test_real_pairs_give_what_trl_gives(shared_data: Path, tmp_path: Path, real, reduced, twin, theirs):
    source = Source(path=str(shared_data / "hh-rlhf" / "test.jsonl.gz"), format="hh")
    pairs, vocabulary = reduced(real(source, 32, 128, "last"))
    assert len(pairs) == 32
    policy = twin(vocabulary, 0)
    reference_model = twin(vocabulary, 1, near=policy)
    expected = theirs(policy, reference_model, pairs)
    plan = packed(pairs, 256, 4)
    assert plan.rows < 32 and plan.segments > 1
    assert_equal(ours(policy, reference_model, pairs, plan, plan.rows // 4, tmp_path / "in four"), expected)
    whole = [unshared(pair) for pair in pairs]
    assert_equal(ours(policy, reference_model, whole, separate(whole), 32, tmp_path / "whole"), expected)


def test_real_pairs_give_what_trl_gives_with_tied_embeddings(
    shared_data: Path, tmp_path: Path, real, reduced, twin, theirs
):
    source = Source(path=str(shared_data / "ultrafeedback" / "uf_binarized_train_1000.jsonl"), format="preference")
    pairs, vocabulary = reduced(real(source, 32, 160, "last"))
    assert len(pairs) == 32
    policy = twin(vocabulary, 0, tied=True)
    reference_model = twin(vocabulary, 1, near=policy, tied=True)
    expected = theirs(policy, reference_model, pairs)
    plan, alone = packed(pairs, 256, 1), separate(pairs)
    assert_equal(ours(policy, reference_model, pairs, plan, plan.rows, tmp_path / "together"), expected)
    assert_equal(ours(policy, reference_model, pairs, alone, 8, tmp_path / "alone"), expected)


def random_pair(random: np.random.Generator, shared: int, chosen: int, rejected: int, alike: int = 0) -> Example:
    """Random tokens; the answers begin with `alike` equal ones."""
    tokens = random.integers(0, 60, shared + chosen + rejected)
    tokens[shared + chosen :][:alike] = tokens[shared:][:alike]
    learn = np.arange(len(tokens)) >= max(shared, 1)
    learn[shared + chosen] |= shared > 0
    if shared == 0:  # nothing comes before a branch's first token
        learn[[0, chosen]] = False
    return Example(tokens.astype(np.int32), learn, (shared, shared + chosen))


def odd_pairs() -> list[Example]:
    random = np.random.default_rng(0)
    pairs = [random_pair(random, *random.integers(1, 40, 3).tolist()) for _ in range(16)]
    pairs += [random_pair(random, 1, 5, 9), random_pair(random, 1, 1, 1)]  # one-token prompts
    pairs += [random_pair(random, 12, 8, 10, alike=6), random_pair(random, 3, 4, 9, alike=4)]  # answers begin alike
    pairs += [random_pair(random, 9, 1, 20), random_pair(random, 9, 20, 1)]  # an answer of EOS alone
    pairs += [random_pair(random, 0, 6, 11)]  # nothing in common
    # Prompts that differ: a branch's own tokens begin with the rest of its prompt, which is not learnt.
    for own in (2, 5):
        pair = random_pair(random, 7, 10, 12)
        pair.learn[7 : 7 + own] = pair.learn[17 : 17 + own + 1] = False
        pairs.append(pair)
    # Several turns: answers inside the prompt that are learnt count in both branches.
    for _ in range(3):
        pair = random_pair(random, 30, 6, 9)
        pair.learn[[5, 6, 7, 18, 19, 29]] = True
        pairs.append(pair)
    return pairs


def test_odd_pairs_give_what_trl_gives_in_every_layout(tmp_path: Path, twin, theirs):
    pairs = odd_pairs()
    policy = twin(60, 2)
    reference_model = twin(60, 3, near=policy)
    expected = theirs(policy, reference_model, pairs)
    whole = [unshared(pair) for pair in pairs]
    plan = packed(pairs, 128, 4)
    for name, given, layout, rows in [
        ("alone", pairs, separate(pairs), len(pairs)),
        ("in four", pairs, plan, plan.rows // 4),
        ("unshared", whole, packed(whole, 128, 1), 1),
    ]:
        assert_equal(ours(policy, reference_model, given, layout, rows, tmp_path / name), expected)


def test_empty_answers_and_prompts_that_differ_give_what_trl_gives(
    tmp_path: Path, empty_answers, real, reduced, twin, theirs, shared_data: Path
):
    source = Source(path=str(shared_data / "hh-rlhf" / "test.jsonl.gz"), format="hh")
    some = real(source, 8, 160, "all")
    assert len(empty_answers) == 4
    # The chosen branch of one pair against the rejected one of the next: what they share is less than a prompt.
    mixed = []
    for first, second in zip(some[::2], some[1::2], strict=True):
        (chosen, chosen_learn), (rejected, rejected_learn) = first.branch(0), second.branch(1)
        shared = int((chosen[: len(rejected)] != rejected[: len(chosen)]).argmax())
        tokens = np.concatenate([chosen, rejected[shared:]])
        mixed.append(Example(tokens, np.concatenate([chosen_learn, rejected_learn[shared:]]), (shared, len(chosen))))
    pairs, vocabulary = reduced([*some, *empty_answers, *mixed])
    policy = twin(vocabulary, 4)
    reference_model = twin(vocabulary, 5, near=policy)
    longest = separate(pairs).row_length
    plan = packed(pairs, max(384, longest), 2)
    expected = theirs(policy, reference_model, pairs)
    assert_equal(ours(policy, reference_model, pairs, plan, plan.rows // 2, tmp_path / "column"), expected)


def test_training_gives_what_training_with_trl_gives(tmp_path: Path, twin):
    random = np.random.default_rng(1)
    pairs = [random_pair(random, *random.integers(2, 12, 3).tolist()) for _ in range(8)]
    policy = twin(60, 6)
    reference_model = twin(60, 7, near=policy)
    steps, learning_rate = 4, 3e-3
    schedule = {"learning_rate": learning_rate, "lr_scheduler_type": "linear", "warmup_steps": 1}
    plan = packed(pairs, 64, 1)
    references = reference.column(
        tmp_path / "column", plan, pairs, 1, scores.compiled(policy.config, llama.Compute()), reference_model.parameters
    )
    settings = Optimizer(learning_rate=learning_rate, warmup_steps=1)
    chain = optimizer.chain(settings, steps)
    step = jax.jit(trainer.make_step(preference.objective(policy.config, llama.Compute(), BETA), chain))
    state = trainer.start(policy.parameters, chain)
    batch = trainer.split(packing.batch(plan, pairs, 0, references), 1)
    updates = [update for update, _ in trainer.train(step, state, lambda _: batch, steps, lambda _: False)]

    theirs = trl_trainer(
        policy,
        reference_model,
        pairs,
        tmp_path,
        max_steps=steps,
        logging_steps=1,
        per_device_train_batch_size=8,
        **schedule,
    )
    theirs.train()
    logs = [row for row in theirs.state.log_history if "loss" in row]
    assert len(logs) == steps and abs(logs[-1]["loss"] - logs[0]["loss"]) > 0.01
    for update, row in zip(updates, logs, strict=True):
        for name, key in [("loss", "loss"), ("margin", "rewards/margins"), ("gradient_norm", "grad_norm")]:
            assert update.metrics[name] == pytest.approx(float(row[key]), rel=TOLERANCE), (update.number, name)
        assert update.metrics["accuracy"] == pytest.approx(float(row["rewards/accuracies"]))


def test_dpo_has_its_closed_forms():
    policy = jnp.asarray([[-10.0, -12.0], [-700.0, -3.0], [-3.0, -700.0]])
    references = jnp.asarray([[-11.0, -11.0], [0.0, 0.0], [0.0, 0.0]])
    losses, margins = preference.dpo(policy, references, BETA)
    np.testing.assert_allclose(margins, [0.2, -69.7, 69.7], rtol=1e-5)
    np.testing.assert_allclose(losses, [math.log1p(math.exp(-0.2)), 69.7, 0.0], rtol=1e-5, atol=1e-6)
    losses, margins = preference.dpo(policy, policy, BETA)
    assert (np.asarray(margins) == 0).all()
    np.testing.assert_allclose(losses, math.log(2), rtol=1e-6)
