"""Laws: a pass that was cut short and goes on gives the same bytes; another key is another file; on the first rows the
policy is the reference exactly."""

from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import pytest

from bactrian.data import mixture, packing
from bactrian.data.packing import Plan
from bactrian.data.records import Batch, Example
from bactrian.model import llama
from bactrian.train import reference, scores

ROWS = 1


@pytest.fixture(scope="module")
def plan(pairs: list[Example]) -> Plan:
    """Two epochs, so that every pair comes twice, in rows with different neighbours; in each some are left out."""
    lengths = np.array([packing.places(len(each.tokens), each.starts) for each in pairs])
    return packing.plan(lengths, mixture.order(12, 5, 2, seed=1), 64, ROWS, 2, row_length=64)


@pytest.fixture(scope="module")
def score(config: llama.Config) -> scores.Score:
    return scores.compiled(config, llama.Compute())


@pytest.fixture
def column(plan: Plan, pairs: list[Example], score: scores.Score, parameters) -> Callable[..., np.ndarray]:
    def compute(path: Path, score: scores.Score = score) -> np.ndarray:
        return reference.column(path, plan, pairs, ROWS, score, parameters)

    return compute


def first_rows(plan: Plan, pairs: list[Example]) -> dict[int, Batch]:
    """The microbatch in which each example comes first."""
    first: dict[int, Batch] = {}
    for update in range(len(plan.updates)):
        for batch in reference.microbatches(plan, pairs, update, ROWS):
            for example in batch.examples[batch.examples >= 0].tolist():
                first.setdefault(example, batch)
    return first


def test_every_example_has_exactly_the_number_of_its_first_row(
    tmp_path: Path, plan: Plan, pairs: list[Example], score: scores.Score, parameters, column
):
    values = column(tmp_path / "column.npy")
    assert values.shape == (12, 2) and values.dtype == np.float32
    expected = np.full((12, 2), np.nan, np.float32)
    for example, batch in first_rows(plan, pairs).items():
        expected[example] = dict(scores.of_examples(score, parameters, [batch]))[example]
    assert values.tobytes() == expected.tobytes()
    assert np.isfinite(values).all(axis=1).sum() == len(first_rows(plan, pairs)) > 10
    # They are the sums of what each path's learnt tokens have when it is alone.
    for example in first_rows(plan, pairs):
        for branch in (0, 1):
            tokens, learn = pairs[example].branch(branch)
            alone = packing.empty(1, 64, 4, 2)
            packing.fill(alone, 0, [(0, Example(tokens, learn))])
            [(_, sums)] = scores.of_examples(score, parameters, [alone])
            np.testing.assert_allclose(values[example, branch], sums[0], rtol=1e-5)


class Stopped(Exception):
    pass


def test_a_pass_that_was_cut_short_goes_on_and_gives_the_same_bytes(
    tmp_path: Path, plan: Plan, pairs: list[Example], score: scores.Score, column
):
    path, whole = tmp_path / "column.npy", tmp_path / "whole.npy"
    expected = column(whole)
    calls: list[int] = []

    def stopping(after: int) -> scores.Score:
        def counted(parameters, batch: Batch) -> jax.Array:
            if len(calls) == after:
                raise Stopped
            calls.append(1)
            return score(parameters, batch)

        return counted

    total = len({id(batch) for batch in first_rows(plan, pairs).values()})
    for after in range(1, total):
        with pytest.raises(Stopped):
            column(path, stopping(after))
        assert not path.exists()
    values = column(path, stopping(-1))
    assert values.tobytes() == expected.tobytes()
    assert path.read_bytes() == whole.read_bytes()
    assert len(calls) == total  # nothing was computed twice
    assert [file.name for file in tmp_path.iterdir() if "partial" in file.name] == []


def test_what_is_there_is_read(tmp_path: Path, column):
    expected = column(tmp_path / "column.npy")

    def refuse(parameters, batch):
        raise AssertionError("computed again")

    assert column(tmp_path / "column.npy", refuse).tobytes() == expected.tobytes()


def test_progress_is_told_to_the_end(tmp_path: Path, plan: Plan, pairs, score, parameters):
    told: list[tuple[int, int]] = []
    tell = lambda done, total: told.append((done, total))  # noqa: E731
    reference.column(tmp_path / "column.npy", plan, pairs, ROWS, score, parameters, tell)
    used = len({example for update in range(len(plan.updates)) for example in plan.examples(update)})
    assert told == sorted(told) and told[-1] == (used, used)


def test_the_key_changes_with_each_part(plan: Plan, config: llama.Config):
    parts = ["weights", "corpus", plan.updates, plan.row_length, ROWS, config, llama.Compute()]
    key = reference.key(*parts)
    assert key == reference.key(*parts)
    others = [
        reference.key("other", *parts[1:]),
        reference.key(parts[0], "other", *parts[2:]),
        reference.key(*parts[:2], plan.updates[::-1], *parts[3:]),
        reference.key(*parts[:3], 32, *parts[4:]),
        reference.key(*parts[:4], 2, *parts[5:]),
        reference.key(*parts[:6], llama.Compute("bfloat16")),
        reference.key("weightscorpus", *parts[2:]),
    ]
    assert len({key, *others}) == 8


def test_another_key_is_another_file(tmp_path: Path, plan: Plan, pairs, score, parameters, column):
    first = column(tmp_path / f"{reference.key('one')}.npy")
    other = {**parameters, "final_norm": parameters["final_norm"] * 1.5}
    second = reference.column(tmp_path / f"{reference.key('two')}.npy", plan, pairs, ROWS, score, other)
    assert not np.array_equal(first, second, equal_nan=True)
    assert column(tmp_path / f"{reference.key('one')}.npy").tobytes() == first.tobytes()
