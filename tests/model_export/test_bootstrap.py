"""Figures under weights are those of others' functions on rows repeated so often; intervals hold what they say."""

import numpy as np
import pytest
from scipy.stats import spearmanr  # type: ignore[import-untyped]
from sklearn.metrics import average_precision_score, roc_auc_score

from model_export import bootstrap
from model_export.bootstrap import Draws


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(7)


def test_weights_are_rows_that_count_so_often(rng: np.random.Generator) -> None:
    score = rng.integers(0, 30, 200) / 10  # with ties
    label = (rng.random(200) < score / 3).astype(np.float64)
    amount = label * rng.lognormal(3.0, 1.0, 200)
    weights = rng.poisson(1.0, (5, 200)).astype(np.float64)
    repeated = [np.repeat(np.arange(200), row.astype(int)) for row in weights]

    auc = bootstrap.auc(score, label)(weights)
    precision = bootstrap.average_precision(score, label)(weights)
    ranks = bootstrap.spearman(score, amount)(weights)
    error = bootstrap.log_rmse(score, amount)(weights)
    cap = np.quantile(amount, 0.99)
    capped = bootstrap.rmse_capped(score, amount)(weights)
    np.testing.assert_allclose(
        capped, [np.sqrt(np.mean((score[rows] - np.minimum(amount[rows], cap)) ** 2)) for rows in repeated]
    )
    ratio = bootstrap.sum_ratio(score, amount)(weights)

    np.testing.assert_allclose(auc, [roc_auc_score(label[rows], score[rows]) for rows in repeated])
    np.testing.assert_allclose(precision, [average_precision_score(label[rows], score[rows]) for rows in repeated])
    np.testing.assert_allclose(ranks, [spearmanr(score[rows], amount[rows]).statistic for rows in repeated])
    np.testing.assert_allclose(
        error, [np.sqrt(np.mean((np.log1p(score[rows]) - np.log1p(amount[rows])) ** 2)) for rows in repeated]
    )
    np.testing.assert_allclose(ratio, [score[rows].sum() / amount[rows].sum() for rows in repeated])


def test_with_one_class_there_is_no_auc_and_no_interval() -> None:
    found = Draws(np.arange(9)).interval(bootstrap.auc(np.arange(9.0), np.zeros(9)))

    assert np.isnan([found.value, found.low, found.high]).all()


def test_an_interval_holds_the_truth_as_often_as_it_says(rng: np.random.Generator) -> None:
    """Of customers with two rows that are alike, which rows drawn one by one would take for twice as many."""
    customers = np.repeat(np.arange(60), 2)
    held = 0
    for trial in range(200):
        values = np.repeat(rng.normal(0.0, 1.0, 60), 2) + rng.normal(0.0, 0.1, 120)
        found = Draws(customers, draws=200, seed=trial).interval(bootstrap.mean(values), 0.9)
        held += found.low <= 0.0 <= found.high

    assert 0.82 <= held / 200 <= 0.96


def test_the_same_draws_whatever_the_memory(rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    values = rng.normal(size=50)
    draws = Draws(np.arange(50) // 2, draws=20)
    at_once = draws.figures(bootstrap.mean(values))
    monkeypatch.setattr(bootstrap, "AT_ONCE", 120)

    np.testing.assert_allclose(draws.figures(bootstrap.mean(values)), at_once, rtol=1e-12)
    paired = draws.figures(bootstrap.difference(bootstrap.mean(values + 1), bootstrap.mean(values)))
    np.testing.assert_allclose(paired, 1.0)
