"""Laws: a row is its examples and nothing else; every token stands where it stands in its own sequence and sees that
sequence alone; row i is the same bytes whoever asks."""

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bactrian.data import corpus, mixture, packing, sources, tokenizer
from bactrian.data.chat import Chat
from bactrian.data.packing import Plan
from bactrian.data.records import Batch, Example
from bactrian.errors import DataError
from bactrian.model import attention, llama
from bactrian.model.attention import Places
from bactrian.recipe import Source
from bactrian.train import scores

SOURCE = Path(__file__).parents[2] / "src"
quick = settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])


@st.composite
def any_example(draw: st.DrawFn) -> Example:
    """Few different tokens, so that branches often begin alike; 0 to 4 branches, with or without a shared prefix."""
    branches = draw(st.integers(0, 4))
    shared = draw(st.integers(0 if branches else 1, 7))
    own = [draw(st.integers(0 if shared else 1, 6)) for _ in range(branches)]
    length = shared + sum(own)
    tokens = draw(st.lists(st.integers(1, 4), min_size=length, max_size=length))
    learn = draw(st.lists(st.booleans(), min_size=length, max_size=length))
    starts = tuple(shared + sum(own[:index]) for index in range(branches))
    return Example(np.array(tokens, np.int32), np.array(learn, bool), starts)


def paths(example: Example) -> list[tuple[np.ndarray, np.ndarray]]:
    """The sequences that an example stands for."""
    return [example.branch(index) for index in range(len(example.starts))] or [(example.tokens, example.learn)]


@quick
@given(any_example())
def test_every_token_stands_where_it_stands_in_its_own_sequence(example: Example):
    laid = packing.lay_out(example)
    assert len(laid.tokens) == packing.places(len(example.tokens), example.starts)
    for number, (tokens, learn) in enumerate(paths(example), 1):
        here = np.isin(laid.branches, [0, number if example.starts else 0])
        np.testing.assert_array_equal(laid.tokens[here], tokens[:-1])
        np.testing.assert_array_equal(laid.targets[here], tokens[1:])
        np.testing.assert_array_equal(laid.learn[here], learn[1:])
        np.testing.assert_array_equal(laid.positions[here], np.arange(len(tokens) - 1))


def test_the_last_shared_token_is_copied_at_its_own_position():
    laid = packing.lay_out(Example(np.array([10, 11, 12, 13, 14, 15]), np.arange(6) > 2, (3, 5)))
    assert laid.tokens.tolist() == [10, 11, 12, 13, 12]
    assert laid.targets.tolist() == [11, 12, 13, 14, 15]
    assert laid.positions.tolist() == [0, 1, 2, 3, 2]
    assert laid.branches.tolist() == [0, 0, 1, 1, 2]
    assert laid.learn.tolist() == [False, False, True, True, True]


@jax.jit
def visible(places: Places) -> jax.Array:
    return attention.visible(places, places, None)


@quick
@given(st.lists(any_example(), min_size=1, max_size=9), st.integers(1, 3))
def test_a_batch_is_its_examples_and_each_place_sees_its_own_sequence_up_to_itself(
    examples: list[Example], rows_multiple: int
):
    lengths = np.array([packing.places(len(each.tokens), each.starts) for each in examples])
    references = np.arange(len(examples) * 4, dtype=np.float32).reshape(-1, 4)
    plan = packing.plan(lengths, [np.arange(len(examples))], 64, rows_multiple, 4, row_length=33)
    batch = packing.batch(plan, examples, 0, references)
    assert batch.tokens.shape == (plan.rows, 33) and plan.rows % rows_multiple == 0
    assert sorted(batch.examples[batch.examples >= 0].tolist()) == list(range(len(examples)))

    columns = (batch.segments, batch.branches, batch.positions)
    seen = [np.asarray(visible(Places(*(column[None, row] for column in columns))))[0] for row in range(plan.rows)]
    for row, segment in zip(*np.nonzero(batch.examples >= 0), strict=True):
        example = examples[batch.examples[row, segment]]
        np.testing.assert_array_equal(batch.references[row, segment], references[batch.examples[row, segment]])
        for number, (tokens, learn) in enumerate(paths(example), 1):
            branch = number if example.starts else 0
            mine = np.flatnonzero((batch.segments[row] == segment + 1) & np.isin(batch.branches[row], [0, branch]))
            np.testing.assert_array_equal(batch.tokens[row, mine], tokens[:-1])
            np.testing.assert_array_equal(batch.targets[row, mine], tokens[1:])
            np.testing.assert_array_equal(batch.weights[row, mine], learn[1:])
            np.testing.assert_array_equal(batch.positions[row, mine], np.arange(len(mine)))
            for place in mine[batch.branches[row, mine] == branch]:
                np.testing.assert_array_equal(np.flatnonzero(seen[row][place]), mine[mine <= place])
    padding = batch.segments == 0
    assert (~padding).sum() == lengths.sum()
    assert not batch.weights[padding].any()
    assert not batch.references[batch.examples < 0].any()


def test_what_lies_elsewhere_has_a_gradient_of_exactly_zero():
    # Each token id occurs in one place of one path alone, so that its embedding's gradient is that token's influence.
    ids = iter(range(1, 100))
    examples = []
    for shared, *own in [(5, 4, 3), (1, 3, 3), (3, 1, 6, 2), (6,), (0, 4, 4)]:
        length = shared + sum(own)
        starts = tuple(shared + sum(own[:index]) for index in range(len(own)))
        examples.append(Example(np.array([next(ids) for _ in range(length)], np.int32), np.arange(length) > 0, starts))
    lengths = np.array([packing.places(len(each.tokens), each.starts) for each in examples])
    plan = packing.plan(lengths, [np.arange(len(examples))], 64, 1, 3)
    batch = packing.batch(plan, examples, 0)
    assert plan.rows == 1
    config = llama.Config(100, 16, 24, 2, 4, 2, 4, 128, 1e-5, 10_000.0)
    parameters = jax.tree.map(lambda weight: 8 * weight, llama.init(config, jax.random.key(0)))

    def influence(embedding, wanted):
        def total(embedding):
            given = {**parameters, "embedding": embedding}
            return jnp.sum(scores.branch_logprobs(given, config, llama.Compute(), batch) * wanted)

        return jax.grad(total)(embedding)

    # One program for all, compiled quickly rather than well.
    quickly = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
    compiled = jax.jit(influence, compiler_options=quickly)
    for segment, index in enumerate(plan.updates[0][0]):
        for branch, (tokens, _) in enumerate(paths(examples[index])):
            wanted = np.zeros(batch.references.shape, np.float32)
            wanted[0, segment, branch] = 1
            felt = (np.asarray(compiled(parameters["embedding"], wanted)) != 0).any(-1)
            # The last token of a path is predicted and never read.
            assert np.flatnonzero(felt).tolist() == sorted(tokens[:-1].tolist())


@quick
@given(
    st.lists(st.lists(st.integers(1, 300), min_size=1, max_size=40), min_size=1, max_size=4),
    st.integers(300, 900),
    st.integers(1, 4),
)
def test_a_plan_has_every_example_of_the_order_once_and_no_row_too_long(
    updates: list[list[int]], capacity: int, rows_multiple: int
):
    lengths = np.array([length for update in updates for length in update])
    ends = np.cumsum([len(update) for update in updates])
    order = [np.arange(end - len(update), end) for update, end in zip(updates, ends, strict=True)]
    plan = packing.plan(lengths, order, capacity, rows_multiple, branches=2)
    assert plan.row_length <= capacity and plan.rows % rows_multiple == 0
    for number, batch in enumerate(order):
        assert sorted(plan.examples(number)) == batch.tolist()
        rows = plan.updates[number]
        assert len(rows) <= plan.rows
        assert all(0 < lengths[list(row)].sum() <= plan.row_length and len(row) <= plan.segments for row in rows)
        # Best fit: no two rows could have been one.
        sums = sorted(lengths[list(row)].sum() for row in rows)
        assert len(sums) < 2 or sums[0] + sums[1] > plan.row_length


def test_an_example_longer_than_a_row_is_refused():
    with pytest.raises(DataError, match="an example takes 65 places and a row has 64; raise row_length"):
        packing.plan(np.array([3, 65]), [np.array([0, 1])], 64, 1, 1)
    with pytest.raises(DataError, match="a row has 32"):
        packing.plan(np.array([3, 33]), [np.array([0, 1])], 64, 1, 1, row_length=32)


def fill(lengths: np.ndarray, plan: Plan) -> float:
    used = [example for update in range(len(plan.updates)) for example in plan.examples(update)]
    return lengths[used].sum() / (sum(len(rows) for rows in plan.updates) * plan.row_length)


def test_rows_are_full_at_realistic_lengths():
    random = np.random.default_rng(0)
    sft = np.clip(random.lognormal(6, 1, 20_000), 16, 8191).astype(int)
    pairs = np.clip(random.lognormal(6.5, 0.6, 6_000), 64, 4096).astype(int)
    for lengths, batch_size, capacity in [(sft, 128, 8192), (pairs, 32, 8192), (pairs, 32, 4096)]:
        plan = packing.plan(lengths, mixture.order(len(lengths), batch_size, 1, 0), capacity, 1, 2)
        assert fill(lengths, plan) >= 0.9


def test_rows_are_full_with_real_pairs(shared_data: Path, tmp_path: Path):
    (tmp_path / "tokenizer.json").write_bytes((shared_data / "llama2_tokenizer" / "tokenizer.json").read_bytes())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"bos_token": "<s>", "eos_token": "</s>"}))
    chat = Chat(tokenizer.load(tmp_path), "tulu", "last")
    path = str(shared_data / "ultrafeedback" / "uf_binarized_train_1000.jsonl")
    records = sources.load(Source(path=path, format="preference", limit=320))
    made = corpus.examples(records, chat, corpus.Limits(2048, 4096))
    examples = [example for example in made if not isinstance(example, str)]
    lengths = np.array([packing.places(len(each.tokens), each.starts) for each in examples])
    plan = packing.plan(lengths, mixture.order(len(lengths), 32, 1, 0), 4096, 1, 2)
    assert fill(lengths, plan) >= 0.9


def some_examples() -> list[Example]:
    random = np.random.default_rng(5)
    examples = []
    for shared, first, second in random.integers(1, 30, (40, 3)).tolist():
        tokens = random.integers(0, 100, shared + first + second).astype(np.int32)
        examples.append(Example(tokens, tokens % 3 > 0, (shared, shared + first)))
    return examples


def digests(examples: list[Example]) -> list[str]:
    lengths = np.array([packing.places(len(each.tokens), each.starts) for each in examples])
    plan = packing.plan(lengths, mixture.order(40, 8, 2, 3), 128, 2, 2)
    references = np.random.default_rng(6).normal(size=(40, 2)).astype(np.float32)
    # Backwards: a row needs none of those before it.
    updates = range(len(plan.updates) - 1, -1, -1)
    return [digest(packing.batch(plan, examples, update, references)) for update in updates][::-1]


def digest(batch: Batch) -> str:
    return hashlib.sha256(b"".join(column.tobytes() for column in batch)).hexdigest()


def test_rows_are_the_same_bytes_after_a_restart():
    again = (
        f"import sys; sys.path[:0] = [{str(SOURCE)!r}, {str(Path(__file__).parent)!r}]; import test_packing as test\n"
    )
    again += "print(*test.digests(test.some_examples()))"
    done = subprocess.run([sys.executable, "-c", again], capture_output=True, text=True, check=True)
    assert done.stdout.split() == digests(some_examples())
    assert len(set(done.stdout.split())) == 10
