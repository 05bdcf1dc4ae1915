from dataclasses import replace

import numpy as np
import pytest

from model_export import holdout
from model_export.holdout import Holdout, hold_out
from model_export.naive import baselines
from model_export.pipeline import Run
from model_export.rows import Dataset


def test_a_run_keeps_its_test_rows_and_nobodys_id(run: Run, dataset: Dataset) -> None:
    kept = run.holdout
    np.testing.assert_array_equal(kept.labels, dataset.test.labels)
    np.testing.assert_array_equal(kept.numeric, dataset.test.numeric)
    assert kept.scores.shape == kept.labels.shape
    assert kept.customers_of_test == len(set(dataset.test.customers))
    assert set(kept.customers) == set(range(kept.customers_of_test))
    assert all(array.dtype.kind != "O" for array in kept.arrays().values())


def test_of_many_rows_whole_customers_are_kept(dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    test = dataset.test
    of = np.array([f"c{row // 3}" for row in range(len(test))], dtype=object)
    many = replace(dataset, test=replace(test, customers=of))
    monkeypatch.setattr(holdout, "MAX_ROWS", 100)

    kept = hold_out(many, test.labels)

    counts = np.unique(kept.customers, return_counts=True)[1]
    assert 90 < len(kept) <= 100
    assert (counts == 3).sum() >= len(counts) - 1
    assert kept.customers_of_test == len(set(of))
    assert any((kept.scores[0] == label).all() for label in test.labels)


def test_baselines_are_the_best_single_feature_and_the_spend_of_a_year(dataset: Dataset) -> None:
    buys, stays, spends = baselines(dataset.schema, dataset.tasks, dataset.validation)
    assert buys
    assert stays
    assert spends
    assert (stays.feature, spends.feature) == ("days_since_purchase", "spend_365d")
    assert stays.factor > 0
    assert buys.factor == (-1 if buys.feature == "days_since_purchase" else 1)
    column = [feature.name for feature in dataset.schema.numeric].index("spend_365d")
    year = dataset.test.numeric[:, column]
    np.testing.assert_allclose(spends.scores(dataset.schema, dataset.test.numeric), year * 90 / 365, rtol=1e-6)

    one_class = replace(dataset.validation, labels=np.zeros_like(dataset.validation.labels))
    assert baselines(dataset.schema, dataset.tasks, one_class)[:2] == (None, None)


def test_rows_that_do_not_belong_together_are_no_holdout(run: Run) -> None:
    arrays = run.holdout.arrays()
    with pytest.raises(ValueError, match="belong together"):
        Holdout.from_arrays({**arrays, "labels": arrays["labels"][:-1]})
    with pytest.raises(KeyError):
        Holdout.from_arrays({name: array for name, array in arrays.items() if name != "naive"})
