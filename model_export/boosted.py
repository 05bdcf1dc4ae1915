"""Gradient-boosted trees of every task (LightGBM): the bar that the network is held to, and a model of their own.

Columns, in this order, float32 (`matrix`):

* every numeric feature of the schema, raw; a missing number is its declared default where it has one, else NaN;
* every ratio of `ratio_columns`: numerator / (|denominator| + offset), one float32 addition and one float32 division,
  so a graph that does the same gets the same bits; NaN where either is missing;
* every category as its index, a plain number: 0 is missing, 1 unseen, then words by how frequent they are in training.

No scaling and no logarithm: trees do not care. Splits compare with `<=` and missing goes its own learned way; where a
column was never missing in training, LightGBM reads NaN as 0, which happens only for what is nullable.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import lightgbm as lgb
import numpy as np
import numpy.typing as npt

from feature_client.contract import Task
from feature_client.schema import FeatureSchema, FloatArray
from model_export.inputs import RATIOS, Ratio
from model_export.rows import Dataset, Rows

GRID: tuple[Mapping[str, float], ...] = (
    {"num_leaves": 7, "min_data_in_leaf": 100, "feature_fraction": 0.6},
    {"num_leaves": 15, "min_data_in_leaf": 100, "feature_fraction": 0.6},
    {"num_leaves": 15, "min_data_in_leaf": 400, "feature_fraction": 0.4},
    {"num_leaves": 31, "min_data_in_leaf": 200, "feature_fraction": 0.6},
)
"""What is tried; the validation rows choose."""

FIXED: Mapping[str, Any] = {
    "learning_rate": 0.03,
    "bagging_fraction": 0.7,
    "bagging_freq": 1,
    "lambda_l2": 5.0,
    # One thread and this switch: the same trees for the same seed, on any number of cores.
    "num_threads": 1,
    "deterministic": True,
    "force_row_wise": True,
    "verbose": -1,
}
ROUNDS = 1_500
PATIENCE = 100
"""Trees without a better validation metric before fitting stops."""

METRICS = {"binary": "auc", "regression": "l2", "tweedie": "tweedie"}
"""objective -> what early stopping and the choice from the grid look at; only `auc` is better when it is higher."""

TWEEDIE_POWER = 1.5
"""Between a Poisson's 1 and a gamma's 2: a mass at zero and a long tail."""


@dataclass(frozen=True)
class Boosted:
    """The boosters of one task.

    score: the task's score, a probability or the expected amount in its currency (objectives binary, tweedie).
    log: of amounts alone, the expected log1p of the amount (objective regression).
    """

    score: lgb.Booster
    log: lgb.Booster | None = None


def ratio_columns(schema: FeatureSchema) -> tuple[Ratio, ...]:
    """The ratios whose features the schema has, in the order of `matrix`."""
    names = {feature.name for feature in schema.numeric}
    return tuple(ratio for ratio in RATIOS if {ratio.numerator, ratio.denominator} <= names)


def column_names(schema: FeatureSchema) -> list[str]:
    ratios = [f"{ratio.numerator}_per_{ratio.denominator}" for ratio in ratio_columns(schema)]
    return [*(f.name for f in schema.numeric), *ratios, *(f.name for f in schema.categorical)]


def matrix(
    schema: FeatureSchema, numeric: npt.NDArray[np.float32], categorical: npt.NDArray[np.int64]
) -> npt.NDArray[np.float32]:
    """numeric [rows, N], categorical [rows, K] -> [rows, N + ratios + K], the columns of `column_names`."""
    defaults = np.array([np.nan if f.default is None else f.default for f in schema.numeric], np.float32)
    clean = np.where(np.isnan(numeric), defaults, numeric)
    places = {feature.name: place for place, feature in enumerate(schema.numeric)}
    ratios = [
        clean[:, places[ratio.numerator]] / (np.abs(clean[:, places[ratio.denominator]]) + np.float32(ratio.offset))
        for ratio in ratio_columns(schema)
    ]
    return np.column_stack([clean, *ratios, categorical.astype(np.float32)])


def fit(
    dataset: Dataset, *, seed: int = 0, grid: Sequence[Mapping[str, float]] = GRID, logs: bool = True
) -> dict[str, Boosted]:
    """task -> its boosters: fitted on training rows, stopped early and chosen from the grid on validation rows.

    logs: amounts get a booster of their logarithm as well; no release has one.

    Where the data set says what else is known before the test cutoffs, what was chosen is then fitted to all of that.
    """
    fitted = {}
    for position, task in enumerate(dataset.tasks):
        if task.kind == "probability":
            fitted[task.name] = Boosted(_fit(dataset, position, "binary", seed, grid))
        else:
            log = _fit(dataset, position, "regression", seed, grid) if logs else None
            fitted[task.name] = Boosted(_fit(dataset, position, "tweedie", seed, grid), log)
    return fitted


def predict(
    boosted: Mapping[str, Boosted], schema: FeatureSchema, tasks: Sequence[Task], rows: Rows
) -> npt.NDArray[np.float32]:
    """Scores [rows, T], uncalibrated."""
    columns = matrix(schema, rows.numeric, rows.categorical)
    return np.column_stack([_predict(boosted[task.name].score, columns) for task in tasks]).astype(np.float32)


def predict_log(booster: lgb.Booster, schema: FeatureSchema, rows: Rows) -> FloatArray:
    """Expected log1p of an amount [rows], never below 0."""
    return np.maximum(_predict(booster, matrix(schema, rows.numeric, rows.categorical)), 0.0)


def _predict(booster: lgb.Booster, columns: npt.NDArray[np.float32]) -> FloatArray:
    return np.asarray(booster.predict(columns, num_threads=1), np.float64)


def _fit(
    dataset: Dataset, position: int, objective: str, seed: int, grid: Sequence[Mapping[str, float]]
) -> lgb.Booster:
    fixed = {**FIXED, "objective": objective, "metric": METRICS[objective], "seed": seed}
    if objective == "tweedie":
        fixed["tweedie_variance_power"] = TWEEDIE_POWER
    best: tuple[float, lgb.Booster] | None = None
    for choice in grid:
        # A new one each time: what a Dataset is binned with depends on the parameters.
        train = _labelled(dataset.schema, dataset.train, position, objective)
        validation = _labelled(dataset.schema, dataset.validation, position, objective, reference=train)
        stop = lgb.early_stopping(PATIENCE, verbose=False)
        booster = lgb.train({**fixed, **choice}, train, ROUNDS, valid_sets=[validation], callbacks=[stop])
        loss = float(booster.best_score["valid_0"][METRICS[objective]]) * (-1 if objective == "binary" else 1)
        if best is None or loss < best[0]:
            best = loss, booster
    if best is None:
        raise ValueError("an empty grid")
    if dataset.known is None:
        return best[1]
    known = _labelled(dataset.schema, dataset.known, position, objective, weight=dataset.known.recency())
    # Among the booster's own parameters is the most that it might have had, which would win over an argument.
    return lgb.train({**best[1].params, "num_iterations": max(best[1].best_iteration, 1)}, known)


def _labelled(
    schema: FeatureSchema,
    rows: Rows,
    position: int,
    objective: str,
    *,
    reference: lgb.Dataset | None = None,
    weight: npt.NDArray[np.float32] | None = None,
) -> lgb.Dataset:
    keep = rows.eligible[:, position]
    label = rows.labels[keep, position].astype(np.float64)
    return lgb.Dataset(
        matrix(schema, rows.numeric[keep], rows.categorical[keep]),
        np.log1p(label) if objective == "regression" else label,
        weight=None if weight is None else weight[keep],
        reference=reference,
        feature_name=column_names(schema),
        free_raw_data=True,
    )
