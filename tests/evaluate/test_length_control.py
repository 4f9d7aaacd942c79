"""The length-controlled fit: published weights, a published row, a fit of known truth, and the folds as dealt."""

import csv
from pathlib import Path

import numpy as np
import pytest

from bactrian.errors import DataError
from bactrian.evaluate import alpaca_eval
from bactrian.evaluate import length_control as control


@pytest.fixture
def folder(shared_data: Path) -> Path:
    return shared_data / "alpaca_eval"


@pytest.fixture
def difficulties(folder: Path) -> control.Difficulties:
    return control.read_difficulties(folder / "derived_instruction_difficulty.csv")


@pytest.fixture
def gamed(folder: Path, difficulties: control.Difficulties) -> control.Gamed:
    return control.read_gamed(folder / "derived_gamed_length_features.csv", difficulties)


def published(path: Path, column: str) -> dict[str, float]:
    with path.open(encoding="utf-8") as file:
        return {row[""]: float(row[column]) for row in csv.DictReader(file) if row[column]}


def test_published_weights_give_the_published_win_rates(folder: Path, difficulties: control.Difficulties):
    leaderboard = folder / "weighted_alpaca_eval_gpt4_turbo_leaderboard.csv"
    rates = published(leaderboard, "length_controlled_winrate")
    errors = published(leaderboard, "lc_standard_error")
    weights = control.read_weights(folder / "lc_weights_baseline_gpt4_1106_preview.csv")
    gaps = {}
    for model, each in weights.items():
        if model in rates:
            found = control.from_weights(each, difficulties)
            gaps[model] = abs(found.win_rate - rates[model])
            if model in errors and gaps[model] < 1e-6:
                assert found.standard_error == pytest.approx(errors[model], abs=1e-6)
    exact = [model for model, gap in gaps.items() if gap < 1e-6]
    assert len(gaps) == 199 and len(exact) == 189
    # Eight models' annotations lacked items; two were published with other weights than those that are held.
    counts = published(leaderboard, "n_total")
    others = {model: int(counts[model]) for model in gaps if model not in exact}
    lacking = [
        model
        for model, items in others.items()
        if abs(control.from_weights(weights[model], difficulties, items).win_rate - rates[model]) < 1e-6
    ]
    assert len(lacking) == 8 and set(others) - set(lacking) == {"NullModel", "dbrx-instruct"}
    assert {"tulu-2-dpo-7b", "tulu-2-dpo-13b", "tulu-2-dpo-70b"} <= set(exact)
    assert control.from_weights(weights["gpt4_1106_preview"], difficulties).win_rate == 50.0


def test_the_published_row_is_fitted_again(folder: Path, difficulties: control.Difficulties, gamed: control.Gamed):
    annotations = alpaca_eval.read_annotations(folder / "tulu-2-dpo-70b_alpaca_eval_gpt4_annotations.json")
    found = control.fit(annotations, difficulties, gamed)
    rate = published(folder / "alpaca_eval_gpt4_leaderboard.csv", "length_controlled_winrate")["tulu-2-dpo-70b"]
    assert found.win_rate == pytest.approx(rate, abs=0.01)
    assert found.basis == control.RECOVERED and found.aligned is None


def test_missing_rows_are_counted_as_published_and_told(
    folder: Path, difficulties: control.Difficulties, gamed: control.Gamed
):
    annotations = alpaca_eval.read_annotations(folder / "tulu-2-dpo-70b_alpaca_eval_gpt4_annotations.json")
    fewer = annotations[:10] + annotations[12:]
    assert np.array_equal(difficulties.of(fewer), difficulties.values[:803]), "by place, as published"
    assert np.array_equal(difficulties.aligned(fewer)[10:], difficulties.values[12:])
    found = control.fit(fewer, difficulties, gamed)
    assert found.aligned is not None and found.aligned != found.win_rate
    # In another order nothing is by place.
    assert np.array_equal(difficulties.of(annotations[::-1]), difficulties.values[::-1])
    with pytest.raises(DataError, match="another question set"):
        difficulties.of([{**annotations[0], "instruction": "something else"}])


def test_the_order_of_the_rows_is_of_no_account(folder: Path, difficulties: control.Difficulties, gamed: control.Gamed):
    annotations = alpaca_eval.read_annotations(folder / "tulu-2-dpo-70b_alpaca_eval_gpt4_annotations.json")
    shuffled = [annotations[index] for index in np.random.default_rng(0).permutation(len(annotations))]
    assert control.fit(shuffled, difficulties, gamed) == control.fit(annotations, difficulties, gamed)


def synthetic(count: int, weights: control.Weights) -> tuple[list[dict], control.Difficulties, control.Gamed]:
    random = np.random.default_rng(0)
    difficulty = random.normal(0, 1, count)
    lengths = random.integers(1, 3000, (count, 2))
    gaps = (lengths[:, 0] - lengths[:, 1]).astype(float)
    logits = weights.theta * np.tanh(gaps / gaps.std(ddof=1)) + weights.phi * difficulty + weights.psi
    shares = 1 / (1 + np.exp(-logits))
    annotations = [
        {"instruction": f"i{n}", "output_1": "a" * first, "output_2": "b" * second, "preference": 1 + share}
        for n, ((first, second), share) in enumerate(zip(lengths.tolist(), shares.tolist(), strict=True))
    ]
    feature = np.tanh(random.normal(0, 1, count))
    truth = 1 / (1 + np.exp(-(weights.theta * feature + weights.phi * difficulty)))
    gamed = control.Gamed(feature, difficulty, truth, control.PUBLISHED)
    return annotations, control.Difficulties(difficulty, {}), gamed


def test_a_known_truth_is_found():
    truth = control.Weights(-1.5, 0.8, 0.6)
    annotations, difficulties, gamed = synthetic(1500, truth)
    found = control.fit(annotations, difficulties, gamed)
    assert found.weights.theta == pytest.approx(truth.theta, abs=0.02)
    assert found.weights.phi == pytest.approx(truth.phi, abs=0.02)
    assert found.weights.psi == pytest.approx(truth.psi, abs=0.02)
    assert found.win_rate == pytest.approx(control.from_weights(truth, difficulties).win_rate, abs=0.1)


def test_nulls_are_left_out_of_the_fit_but_not_of_the_mean():
    annotations, difficulties, gamed = synthetic(300, control.Weights(-1.0, 0.5, 0.2))
    for row in annotations[:10]:
        row["preference"] = None
    found = control.fit(annotations, difficulties, gamed)
    assert found.win_rate == pytest.approx(control.from_weights(found.weights, difficulties).win_rate, abs=1e-9)


def test_a_model_against_itself():
    annotations, difficulties, gamed = synthetic(100, control.Weights(-1.0, 0.5, 0.2))
    same = [{**row, "output_2": row["output_1"], "preference": 1.5} for row in annotations]
    assert control.fit(same, difficulties, gamed).win_rate == 50.0


def test_folds_are_a_deal_of_all_items():
    for count in (5, 17, 805, 2414, 2415):
        assert sorted(control._quicksorted(count)) == list(range(count))
        sizes = np.bincount(control._folds(count), minlength=5)
        assert sizes.max() - sizes.min() <= 1
    # Few items are sorted by insertion, which moves nothing.
    assert control._folds(10).tolist() == [4, 3, 2, 1, 0, 4, 3, 2, 1, 0]


def test_likely_labels_have_the_sums(gamed: control.Gamed):
    for place, sums in enumerate(control.SUMS):
        part = slice(805 * place, 805 * (place + 1))
        labels = gamed.preferences[part]
        assert ((labels > 0) & (labels < 1)).all()
        found = (gamed.lengths[part] @ labels, gamed.difficulties[part] @ labels, labels.sum())
        assert found == pytest.approx(sums, abs=1e-6)


def test_the_published_layout_of_the_gamed_rows(tmp_path: Path):
    rows = ["index,std_delta_len,preference,instruction_difficulty,model", "0,0.5,1.2,0.1,v", "1,-0.5,1.9,0.2,v"]
    rows += ["0,-1.5,2.0,0.1,c", "1,2.0,,0.2,c"]
    (tmp_path / "df_gamed.csv").write_text("\n".join(rows), encoding="utf-8")
    difficulties = control.read_difficulties(tmp_path / "df_gamed.csv")
    assert difficulties.values.tolist() == [0.1, 0.2]
    gamed = control.read_gamed(tmp_path / "df_gamed.csv", difficulties)
    assert gamed.preferences == pytest.approx([0.2, 0.9, 1.0])
    assert gamed.lengths == pytest.approx(np.tanh([0.5, -0.5, -1.5]))
    assert gamed.basis == control.PUBLISHED


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("index,instruction_difficulty\n0,x\n", "should be a number"),
        ("index,instruction_difficulty\n3,1\n", "places"),
        ("index,instruction_difficulty\n", "no row"),
    ],
)
def test_wrong_tables_are_named(tmp_path: Path, text: str, message: str):
    (tmp_path / "d.csv").write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match=message):
        control.read_difficulties(tmp_path / "d.csv")


@pytest.mark.parametrize("value", ["nan", "inf", "x", ""])
def test_what_is_no_number_in_a_table_is_named(tmp_path: Path, value: str):
    for row in (f"{value},1.0", f"0,{value}"):
        (tmp_path / "d.csv").write_text(f"index,instruction_difficulty\n{row}\n", encoding="utf-8")
        with pytest.raises(DataError, match=r"d.csv:2: .*should be a number"):
            control.read_difficulties(tmp_path / "d.csv")


@pytest.mark.parametrize("row", ["7,0.1,1.5", "-1,0.1,1.5", "0,0.1,"])
def test_gamed_rows_of_other_items_are_refused(tmp_path: Path, row: str):
    (tmp_path / "g.csv").write_text(f"index,std_delta_len,preference\n{row}\n", encoding="utf-8")
    difficulties = control.Difficulties(np.zeros(2), {})
    with pytest.raises(DataError, match="its items are not those of 2 difficulties"):
        control.read_gamed(tmp_path / "g.csv", difficulties)
