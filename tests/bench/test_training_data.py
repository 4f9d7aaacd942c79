"""Every side trains on the same rows: turns share them out, and what a slow peer takes is like the whole."""

from pathlib import Path

import numpy as np
import pytest


@pytest.mark.parametrize("alike", [False, True])
def test_a_part_is_like_the_whole(alike: bool):
    import training_data

    lengths = np.random.default_rng(0).lognormal(6, 1, 256).astype(int).tolist()
    groups = training_data.stratified(lengths, 12, 4, alike)
    taken = [index for group in groups for index in group]
    assert len(groups) == 12 and {len(group) for group in groups} == {4} and len(set(taken)) == 48
    ours, all_ = np.array(lengths)[taken], np.array(lengths)
    assert abs(ours.mean() / all_.mean() - 1) < 0.05
    padded = sum(4 * max(lengths[index] for index in group) for group in groups) / ours.sum()
    assert padded < 1.1 if alike else padded > 1.3


def test_turns_share_out_the_updates(tiny_recipe: Path, in_tiny_cache: None, monkeypatch: pytest.MonkeyPatch):
    import training_data

    from bactrian.recipe import DPO, Optimizer, Source

    monkeypatch.setattr(training_data, "MODEL", str(tiny_recipe.parent / "base"))
    settings = DPO(
        data=(Source(path=str(tiny_recipe.parent / "pairs.jsonl"), format="preference"),),
        batch_size=4,
        max_length=96,
        row_length=128,
        optimizer=Optimizer(learning_rate=1e-3),
    )
    turns = [training_data.used(training_data.of_turn("dpo", settings, turn, 3)) for turn in (1, 2, 3)]
    assert [len(turn) for turn in turns] == [8, 8, 8]
    assert sorted(index for turn in turns for index in turn) == list(range(24))
    with pytest.raises(SystemExit, match="6 updates are not enough for 7 turns"):
        training_data.of_turn("dpo", settings, 1, 7)
