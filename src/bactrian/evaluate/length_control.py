"""AlpacaEval's length-controlled win rate: what the win rate would be if both outputs were equally long.

A generalized linear model of the judge's preference, fitted to one model's annotations (Dubois et al. 2024, "Length-
Controlled AlpacaEval", https://arxiv.org/abs/2404.04475, equation 2; tatsu-lab/alpaca_eval, metrics/glm_winrate.py):

    logit P(the model wins item x) = theta * tanh((len_1 - len_2) / std) + phi * difficulty_x + psi

Lengths are characters, std is that of the differences. The length-controlled win rate is the mean over all items of
sigmoid(phi * difficulty_x + psi), the term of length being 0. So that a model gains nothing from long or short answers
alone, two versions of the baseline that were made to game the judge (verbose, concise) are fitted with it: rows of
weight 0.2 / 2 without psi, for which the true outcome is known.

What the model needs beside the annotations is published as files: each item's difficulty, and the gamed baselines'
rows. Where of the latter only the lengths are known, what the fit sees of their labels are a few sums; those follow
from the weights and win rates that are published of the two baselines themselves (`SUMS`).
"""

import csv
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from bactrian.errors import DataError
from bactrian.evaluate import needs
from bactrian.evaluate.alpaca_eval import share

GAMED_WEIGHT = 0.2 / 2  # of a row, for each of the two gamed baselines
# Of each gamed baseline, in the order of the file's columns: the sums over its 805 rows of tanh(length) times the
# preference in [0, 1], of the difficulty times the preference, and of the preference (805 times the win rate).
# The first two are what makes the gradient of the penalized fit zero at the published weights (C = 10 ** (4 / 9)).
SUMS = ((-279.543296, 199.871550, 517.643992), (96.862180, 213.204599, 184.507565))
RECOVERED = "recomputed; the gamed baselines' term is recovered from their published weights and win rates"
PUBLISHED = "recomputed from the published rows of the gamed baselines"

_FOLDS = 5
_STRENGTHS = np.logspace(-4, 4, 10)  # inverse strengths of the L1 penalty, of which cross-validation chooses one
_SEED = 123
_EPSILON = 1e-15
_COLUMNS = ("np.tanh(std_delta_len)", "instruction_difficulty", "not_gamed_baseline.astype(float)")


@dataclass(frozen=True)
class Weights:
    """theta of length, phi of difficulty, psi of the model."""

    theta: float
    phi: float
    psi: float


@dataclass(frozen=True)
class Controlled:
    """The length-controlled win rate in points, its standard error, the weights, and what it was made from."""

    win_rate: float
    standard_error: float | None
    weights: Weights
    basis: str
    aligned: float | None = None

    def as_row(self) -> dict[str, Any]:
        return {
            "length_controlled_winrate": self.win_rate,
            "lc_standard_error": self.standard_error,
            "lc_weights": {"theta": self.weights.theta, "phi": self.weights.phi, "psi": self.weights.psi},
            "lc_basis": self.basis,
            **({} if self.aligned is None else {"lc_aligned": self.aligned}),
        }


@dataclass(frozen=True)
class Difficulties:
    """The difficulty of each item by its place in the question set, and the place of each instruction if known."""

    values: np.ndarray
    instructions: dict[str, int]

    def of(self, annotations: Sequence[dict[str, Any]]) -> np.ndarray:
        """The difficulty of each annotation's item, as the published figures have it. Raises `DataError`.

        Those take it by the annotation's place. Where rows are missing the later ones are given their neighbours'
        difficulties; `aligned` does better. Instructions that are in the set more than once are matched by instruction.
        """
        if not self.instructions:
            if len(annotations) > len(self.values):
                raise DataError(
                    f"{len(annotations)} annotations for {len(self.values)} difficulties; give files that fit"
                )
            return self.values[: len(annotations)]
        places = self._places(annotations)
        in_order = bool((np.diff(places) > 0).all())
        return self.values[np.arange(len(places)) if in_order else places]

    def aligned(self, annotations: Sequence[dict[str, Any]]) -> np.ndarray:
        """The difficulty of each annotation's own item; by place where the instructions are not known."""
        return self.values[self._places(annotations)] if self.instructions else self.of(annotations)

    def in_order(self, annotations: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        """The annotations in the order of the items, where their instructions are known. Raises `DataError`."""
        if not self.instructions:
            return list(annotations)
        return [annotations[index] for index in np.argsort(self._places(annotations), kind="stable")]

    def _places(self, annotations: Sequence[dict[str, Any]]) -> np.ndarray:
        places = [self.instructions.get(row["instruction"]) for row in annotations]
        if None in places:
            lost = annotations[places.index(None)]["instruction"]
            raise DataError(f"the difficulties lack the instruction {lost[:60]!r}: they are of another question set")
        return np.array(places, int)


@dataclass(frozen=True)
class Gamed:
    """Rows of the gamed baselines: tanh of the length, difficulty, and preference in [0, 1]."""

    lengths: np.ndarray
    difficulties: np.ndarray
    preferences: np.ndarray
    basis: str


def read_difficulties(path: Path) -> Difficulties:
    """A CSV with `instruction_difficulty` and the item's place, `index` or unnamed. Raises `DataError`.

    The rows of the gamed baselines (df_gamed.csv) hold the difficulties too, each more than once.
    """
    values: dict[int, float] = {}
    instructions: dict[str, int] = {}
    for number, row in enumerate(_table(path), start=2):
        place = _number(row.get("index", row.get("")), f"{path}:{number}: index")
        values.setdefault(int(place), _number(row.get("instruction_difficulty"), f"{path}:{number}: difficulty"))
        if row.get("instruction"):
            instructions.setdefault(row["instruction"], int(place))
    if sorted(values) != list(range(len(values))):
        raise DataError(f"{path}: the items' places are not 0 to {len(values) - 1}; give the whole file")
    return Difficulties(np.array([values[place] for place in range(len(values))]), instructions)


def read_gamed(path: Path, difficulties: Difficulties) -> Gamed:
    """The published rows (df_gamed.csv), or the lengths alone (a column per gamed baseline). Raises `DataError`."""
    table = _table(path)
    names = [name for name in table[0] if name.startswith("tanh_std_delta_len")]
    if names:
        columns = [[_number(row.get(name), f"{path}: {name}") for row in table] for name in names]
        if len(table) != len(difficulties.values):
            raise DataError(
                f"{path}: {len(table)} rows for {len(difficulties.values)} difficulties; give files that fit"
            )
        if len(columns) != len(SUMS):
            raise DataError(f"{path}: {len(columns)} columns of lengths; there are {len(SUMS)} gamed baselines")
        labels = [_likely_labels(np.array(c), difficulties.values, sums) for c, sums in zip(columns, SUMS, strict=True)]
        repeated = np.tile(difficulties.values, len(columns))
        return Gamed(np.concatenate(columns), repeated, np.concatenate(labels), RECOVERED)
    if not {"std_delta_len", "preference"} <= set(table[0]):
        raise DataError(f"{path}: not the gamed baselines' rows; it needs std_delta_len and preference")
    rows = [(row, f"{path}:{number}") for number, row in enumerate(table, start=2) if row["preference"]]
    places = [int(_number(row.get("index", row.get("")), f"{where}: index")) for row, where in rows]
    if not places or not 0 <= min(places) <= max(places) < len(difficulties.values):
        raise DataError(
            f"{path}: its items are not those of {len(difficulties.values)} difficulties; give files that fit"
        )
    lengths = np.tanh([_number(row["std_delta_len"], f"{where}: std_delta_len") for row, where in rows])
    preferences = np.array([_number(row["preference"], f"{where}: preference") for row, where in rows])
    if preferences.max() > 1:  # 1 to 2, as annotations have it
        preferences = preferences - 1
    return Gamed(np.asarray(lengths), difficulties.values[places], preferences, PUBLISHED)


def fit(annotations: Sequence[dict[str, Any]], difficulties: Difficulties, gamed: Gamed) -> Controlled:
    """The length-controlled win rate of one model's annotations. Raises `InputError` where scikit-learn is missing.

    Preferences outside of 1 to 2 or null are left out of the fit; every item is in the mean. Where rows are missing,
    `aligned` has what comes out when each item is given its own difficulty. The order of the rows is of no account
    where the difficulties come with their instructions.
    """
    annotations = difficulties.in_order(annotations)
    published, aligned = difficulties.of(annotations), difficulties.aligned(annotations)
    found = _fitted(annotations, published, gamed)
    if np.array_equal(published, aligned):
        return found
    return replace(found, aligned=_fitted(annotations, aligned, gamed).win_rate)


def _fitted(annotations: Sequence[dict[str, Any]], difficulties: np.ndarray, gamed: Gamed) -> Controlled:
    if all(row["output_1"] == row["output_2"] for row in annotations):
        return _controlled(Weights(0.0, 0.0, 0.0), difficulties, "both models' outputs are the same")
    differences = np.array([len(row["output_1"]) - len(row["output_2"]) for row in annotations], float)
    preferences = np.array([share(row["preference"]) for row in annotations], float)  # None becomes NaN
    known = ~np.isnan(preferences)
    if known.sum() < 2 * _FOLDS or differences.std(ddof=1) == 0:
        raise DataError(f"{known.sum()} preferences, or differences of length all alike: too little for length control")
    lengths = np.tanh(differences / differences.std(ddof=1))
    features = np.concatenate(
        [
            np.stack([gamed.lengths, gamed.difficulties, np.zeros(len(gamed.lengths))], axis=1),
            np.stack([lengths, difficulties, np.ones(len(lengths))], axis=1)[known],
        ]
    )
    labels = np.concatenate([gamed.preferences, preferences[known]])
    importance = np.concatenate([np.full(len(gamed.lengths), GAMED_WEIGHT), np.ones(int(known.sum()))])
    weights = Weights(*map(float, _fit(features, labels, importance)))
    return _controlled(weights, difficulties, gamed.basis)


def from_weights(weights: Weights, difficulties: Difficulties, items: int | None = None) -> Controlled:
    """The length-controlled win rate that published weights stand for.

    A model whose annotations lack rows was scored on so many `items`, the first ones.
    """
    return _controlled(weights, difficulties.values[:items], "from published weights")


def read_weights(path: Path) -> dict[str, Weights]:
    """Published weights by model: a CSV with the columns that AlpacaEval gives them. Raises `DataError`."""
    found = {}
    for number, row in enumerate(_table(path), start=2):
        values = [_number(row.get(name), f"{path}:{number}: {name}") for name in _COLUMNS]
        found[row.get("") or row.get("model") or ""] = Weights(*values)
    return found


def _controlled(weights: Weights, difficulties: np.ndarray, basis: str) -> Controlled:
    shares = 100 * _sigmoid(weights.phi * difficulties + weights.psi)
    error = shares.std(ddof=1) / np.sqrt(len(shares)) if len(shares) > 1 else None
    return Controlled(float(shares.mean()), None if error is None else float(error), weights, basis)


def _fit(features: np.ndarray, labels: np.ndarray, importance: np.ndarray) -> np.ndarray:
    """Weights of the penalized fit whose strength cross-validation chose, [theta, phi, psi].

    A label between 0 and 1 is a row of each class with the label's share of the weight. Folds keep both together.
    """
    linear = needs.load("sklearn.linear_model")
    doubled, truth = np.concatenate([features, features]), np.concatenate([labels, 1 - labels])
    classes = np.repeat([1, 0], len(labels))
    both = np.concatenate([importance, importance])
    fold_of = np.tile(_folds(len(labels)), 2)

    def train(strength: float, chosen: np.ndarray) -> np.ndarray:
        model = linear.LogisticRegression(
            C=strength, l1_ratio=1.0, solver="liblinear", fit_intercept=False, random_state=_SEED
        )
        return model.fit(doubled[chosen], classes[chosen], (truth * both)[chosen]).coef_[0]

    losses = np.zeros((len(_STRENGTHS), _FOLDS))
    for place, strength in enumerate(_STRENGTHS):
        for fold in range(_FOLDS):
            held = fold_of == fold
            likely = _sigmoid(doubled[held] @ train(strength, ~held))
            wanted = np.where(classes[held] == 1, truth[held], 1 - truth[held])
            losses[place, fold] = np.mean(both[held] * _log_loss(wanted, likely))
    return train(_STRENGTHS[int(np.argmin(losses.mean(1)))], np.ones(len(classes), bool))


def _log_loss(wanted: np.ndarray, likely: np.ndarray) -> np.ndarray:
    likely = np.clip(likely, _EPSILON, 1 - _EPSILON)
    return -(wanted * np.log(likely) + (1 - wanted) * np.log(1 - likely))


def _folds(count: int) -> np.ndarray:
    """The fold of each item, as the published figures have it.

    GroupKFold deals the items out in the order that NumPy's quicksort left equal keys in. Later versions sort stably,
    which deals out other folds, and with them cross-validation would now and then choose another strength.
    """
    dealt = np.empty(count, int)
    dealt[_quicksorted(count)[::-1]] = np.arange(count) % _FOLDS
    return dealt


def _quicksorted(count: int) -> np.ndarray:
    """The order in which NumPy's introsort leaves `count` equal keys (npysort/quicksort.cpp): not where they were."""
    order, waiting = np.arange(count), [(0, count - 1)]
    while waiting:
        low, high = waiting.pop()
        while high - low > 16:  # shorter parts are sorted by insertion, which moves no equal keys
            middle = low + (high - low) // 2
            left, right = low + 1, high - 2
            order[[middle, high - 1]] = order[[high - 1, middle]]  # the pivot goes to the end
            while left < right:
                order[[left, right]] = order[[right, left]]
                left, right = left + 1, right - 1
            order[[left, high - 1]] = order[[high - 1, left]]
            if left - low < high - left:
                waiting.append((left + 1, high))
                high = left - 1
            else:
                waiting.append((low, left - 1))
                low = left + 1
    return order


def _likely_labels(lengths: np.ndarray, difficulties: np.ndarray, sums: tuple[float, ...]) -> np.ndarray:
    """Labels with the known sums: of all that have them those of largest entropy, sigmoid(a * length + b * diff + c).

    The likelihood depends on the labels through their sums alone, so any such labels give the same fit.
    """
    features = np.stack([lengths, difficulties, np.ones(len(lengths))], axis=1)
    found = np.zeros(3)
    for _ in range(100):  # Newton; the problem is convex
        likely = _sigmoid(features @ found)
        gap = np.array(sums) - features.T @ likely
        if np.abs(gap).max() < 1e-8:
            return likely
        curvature = features.T @ (features * (likely * (1 - likely))[:, None])
        step = np.linalg.solve(curvature + 1e-9 * np.eye(3), gap)
        found = found + step / max(1.0, float(np.abs(step).max()))
    raise DataError("the gamed baselines' lengths do not fit the known sums: they are of another question set")


def _sigmoid(values: np.ndarray) -> np.ndarray:
    return np.exp(-np.logaddexp(0, -values))


def _table(path: Path) -> list[dict[str, str]]:
    try:
        with path.open(encoding="utf-8", newline="") as file:
            table = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}: cannot read the table: {error}") from None
    if not table:
        raise DataError(f"{path}: there is no row in it")
    return table


def _number(text: str | None, where: str) -> float:
    try:
        value = float(text or "")
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise DataError(f"{where}: {text!r} should be a number")
    return value
