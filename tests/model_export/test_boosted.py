"""Boosted trees on the tiny data set of this package, whose effects are planted."""

from dataclasses import replace

import numpy as np
import pytest

from model_export.boosted import ROUNDS, Boosted, column_names, fit, matrix, predict, predict_log, ratio_columns
from model_export.evaluate import evaluate
from model_export.rows import Dataset

SMALL = ({"num_leaves": 7, "min_data_in_leaf": 50, "feature_fraction": 1.0},)


@pytest.fixture(scope="module")
def boosted(dataset: Dataset) -> dict[str, Boosted]:
    return fit(dataset, seed=0, grid=SMALL)


def test_trees_learn_the_planted_effects(boosted: dict[str, Boosted], dataset: Dataset) -> None:
    scores = predict(boosted, dataset.schema, dataset.tasks, dataset.test)
    metrics = evaluate(scores, dataset.test, dataset.tasks)
    assert metrics["purchase_30d"]["auc"] > 0.75
    assert metrics["churn_90d"]["auc"] > 0.75
    assert metrics["spend_90d"]["spearman"] > 0.5
    log = boosted["spend_90d"].log
    assert log is not None
    forecast = predict_log(log, dataset.schema, dataset.test)
    label = np.log1p(dataset.test.labels[:, 2].astype(np.float64))
    assert ((forecast - label) ** 2).mean() < 0.8 * label.var()


def test_a_seed_gives_the_same_trees(boosted: dict[str, Boosted], dataset: Dataset) -> None:
    again = fit(dataset, seed=0, grid=SMALL)
    other = fit(dataset, seed=1, grid=SMALL)
    first, second, third = (
        predict(found, dataset.schema, dataset.tasks, dataset.test) for found in (boosted, again, other)
    )
    np.testing.assert_array_equal(first, second)
    assert not np.array_equal(first, third)


def test_what_is_known_in_the_end_gets_as_many_trees_as_validation_chose(
    boosted: dict[str, Boosted], dataset: Dataset
) -> None:
    final = fit(replace(dataset, known=dataset.validation), seed=0, grid=SMALL)
    for task, chosen in boosted.items():
        assert final[task].score.num_trees() == chosen.score.best_iteration < ROUNDS
    chosen_log, log = boosted["spend_90d"].log, final["spend_90d"].log
    assert chosen_log is not None
    assert log is not None
    assert log.num_trees() == chosen_log.best_iteration < ROUNDS


def test_columns_are_raw_and_ratios_one_division(dataset: Dataset) -> None:
    schema, rows = dataset.schema, dataset.test
    names = column_names(schema)
    columns = matrix(schema, rows.numeric, rows.categorical)
    assert columns.dtype == np.float32
    assert columns.shape == (len(rows), len(names))
    ratio = ratio_columns(schema)[0]
    numerator, denominator = (columns[:, names.index(name)] for name in (ratio.numerator, ratio.denominator))
    expected = numerator / (np.abs(denominator) + np.float32(ratio.offset))
    np.testing.assert_array_equal(columns[:, names.index(f"{ratio.numerator}_per_{ratio.denominator}")], expected)
    np.testing.assert_array_equal(columns[:, len(names) - len(schema.categorical) :], rows.categorical)

    missing = matrix(schema, np.full_like(rows.numeric[:1], np.nan), rows.categorical[:1])[0]
    for feature in schema.numeric:
        value = missing[names.index(feature.name)]
        assert np.isnan(value) if feature.default is None else value == np.float32(feature.default)
