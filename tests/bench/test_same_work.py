"""Both sides of a comparison do the same work: the same tokens, learnt ones, log-probabilities and losses."""

import argparse
import math
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def tiny(tiny_recipe: Path, in_tiny_cache: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import dpo
    import sft
    import training_data

    from bactrian import verbs

    monkeypatch.setattr(training_data, "MODEL", str(tiny_recipe.parent / "base"))
    verbs.export(training_data.MODEL, tmp_path / "theirs", "model", "float32")
    monkeypatch.setattr(training_data, "exported", lambda: tmp_path / "theirs")
    for script in (dpo, sft):
        monkeypatch.setattr(script, "MATRIX", 64)


def plain(**more) -> argparse.Namespace:
    sizes = {"max_length": 96, "row_length": 128, "microbatch_rows": 2, "remat": "dots", "peer_microbatch": 4}
    return argparse.Namespace(turn=1, turns=2, **sizes, **more)


def test_dpo(tiny_recipe: Path):
    import dpo

    pairs = tiny_recipe.parent / "pairs.jsonl"
    arguments = plain(data=pairs, format="preference", pairs=16, batch_size=8, peer_pairs=8, peer_best_microbatch=2)
    ours, theirs, best = (side(arguments) for side in dpo.SIDES.values())
    assert ours["first_loss"] == pytest.approx(math.log(2), abs=1e-5)
    assert ours["mean_reference"] == pytest.approx(best["mean_reference"], rel=1e-5)
    assert ours["pairs"] == theirs["pairs"] == best["pairs"] == 8
    assert ours["tokens_per_pair"] == theirs["tokens_per_pair"] == best["tokens_per_pair"]
    rate, once, thrice = (ours[f"pairs_per_second{more}"] for more in ("", "_one_epoch", "_three_epochs"))
    assert once < thrice < rate and 3 / thrice - 3 / rate == pytest.approx(1 / once - 1 / rate)


def test_sft(tiny_recipe: Path):
    import sft

    rows = tiny_recipe.parent / "sft.jsonl"
    arguments = plain(data=rows, format="messages", conversations=16, peer_row_length=128)
    ours, *peers = (side(arguments) for side in sft.SIDES.values())
    assert [peer["first_loss"] for peer in peers] == pytest.approx([ours["first_loss"]] * 3, abs=2e-4)
    # Where one microbatch is not timed, its tokens are in neither rate.
    ratios = [peer["learned_per_second"] / peer["tokens_per_second"] for peer in peers]
    assert ratios == pytest.approx([ours["learned_share"]] * 3)
