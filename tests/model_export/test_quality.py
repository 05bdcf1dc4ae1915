"""`make quality` on the tiny data set: figures against other people's code, pairs in the bootstrap, the shape of the
JSON, and nothing of the test rows in what is fitted."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr  # type: ignore[import-untyped]
from sklearn.metrics import average_precision_score, roc_auc_score

from model_export.baselines import Forecast, best_feature, linear
from model_export.evaluate import amount_quality, area_under_curve, probability_quality
from model_export.measure import Measure, keys
from model_export.network import Network
from model_export.quality import Quality, measure
from model_export.resampling import Interval, draws
from model_export.rows import Dataset
from model_export.slices import slices
from model_export.train import predict_logs

PROBABILITY = {"auc", "ap", "ece"}
AMOUNT = {"rmse_log", "spearman", "rmse_capped", "sum_ratio"}


@pytest.fixture(scope="module")
def small(dataset: Dataset) -> Dataset:
    """Training rows fewer, so that it is quick; validation rows are known in the end, too."""
    known = dataset.validation
    return replace(dataset, train=known, validation=dataset.test, test=known, known=known)


@pytest.fixture(scope="module")
def found(small: Dataset) -> Quality:
    return measure(small, seeds=2, epochs=1, draws=4)


def test_the_json_has_every_figure_of_every_model(found: Quality) -> None:
    result = json.loads(json.dumps(found.result, allow_nan=False))
    assert set(result) == {"purchase_30d", "churn_90d", "spend_90d", "lightgbm", "logistic", "best_feature"}
    for model in (result, result["lightgbm"], result["logistic"], result["best_feature"]):
        assert set(model["purchase_30d"]) == set(model["churn_90d"]) == PROBABILITY
        assert set(model["spend_90d"]) == AMOUNT
        assert 0.6 < model["purchase_30d"]["auc"] < 1


def test_the_tables_name_slices_seeds_and_differences(found: Quality) -> None:
    for said in ("minus lightgbm [", "seeds ", "United Kingdom", "days_since_purchase", "best feature of churn_90d"):
        assert said in found.tables


def test_figures_are_those_of_scikit_learn_and_scipy() -> None:
    rng = np.random.default_rng(0)
    score = np.round(rng.random(500), 2)  # with ties
    label = (rng.random(500) < score).astype(float)
    quality = probability_quality(score, label)
    assert quality["auc"] == pytest.approx(roc_auc_score(label, score), abs=1e-12)
    assert quality["ap"] == pytest.approx(average_precision_score(label, score), abs=1e-12)

    spent = np.where(label > 0, rng.lognormal(4, 1, 500), 0.0)
    forecast, log = 90 * score, 4 * score
    amount = amount_quality(forecast, log, spent, cap=80.0)
    assert amount["rmse_log"] == pytest.approx(np.sqrt(np.mean((np.log(1 + spent) - log) ** 2)))
    assert amount["spearman"] == pytest.approx(spearmanr(forecast, spent).statistic)
    capped = [(min(a, 80.0) - min(b, 80.0)) ** 2 for a, b in zip(forecast, spent, strict=True)]
    assert amount["rmse_capped"] == pytest.approx(np.sqrt(sum(capped) / 500))
    assert amount["sum_ratio"] == pytest.approx(forecast.sum() / spent.sum())


def test_one_class_has_no_figures() -> None:
    assert np.isnan(area_under_curve(np.arange(3.0), np.ones(3)))
    assert all(np.isnan(value) for value in probability_quality(np.full(3, 0.5), np.zeros(3)).values())


def test_customers_are_drawn_with_all_their_rows() -> None:
    customers = np.array(["a", "b", "a", "c", "b", "a"], dtype=object)
    for rows in draws(customers, 20, seed=1):
        times = np.bincount(rows, minlength=6)
        assert times[0] == times[2] == times[5]
        assert times[1] == times[4]
        assert times[0] + times[1] + times[3] == 3


def test_models_are_compared_on_the_same_draws(small: Dataset) -> None:
    """A model that is always better by the same amount has a difference without an interval."""
    labels = small.test.labels.astype(np.float64)
    logs = np.log1p(labels)
    near, far = (Forecast(np.full_like(labels, 0.5), logs + error) for error in (1.0, 3.0))
    measured = Measure(small.test, small.tasks).all({"near": [near], "far": [far]}, 5)
    place = keys(small.tasks).index(("spend_90d", "rmse_log"))
    assert measured.difference("near", "far", place).high == pytest.approx(-2.0)
    assert measured.difference("near", "far", place).low == pytest.approx(-2.0)


def test_an_interval_holds_its_share() -> None:
    interval = Interval.of(np.array([*np.arange(1001.0), np.nan]))
    assert (interval.low, interval.high) == pytest.approx((25.0, 975.0))


def test_test_labels_change_no_forecast(small: Dataset) -> None:
    lies = replace(small, test=replace(small.test, labels=1 - small.test.labels))
    for honest, told in ((best_feature(small)[0], best_feature(lies)[0]), (linear(small), linear(lies))):
        np.testing.assert_array_equal(honest.scores, told.scores)
        np.testing.assert_array_equal(honest.logs, told.logs)


def test_slices_of_a_feature_cover_all_rows_once(small: Dataset) -> None:
    found = slices(small.schema, small.test)
    for by in ("country", "days_since_purchase"):
        rows = np.concatenate([part.rows for part in found if part.by == by])
        np.testing.assert_array_equal(np.sort(rows), np.arange(len(small.test)))


def test_expected_logarithms_are_those_of_draws(network: Network, dataset: Dataset) -> None:
    logs = predict_logs(network, dataset.test)[:3]
    assert np.isnan(logs[:, :2]).all()
    with torch.no_grad():
        inputs = (torch.from_numpy(values[:3]) for values in (dataset.test.numeric, dataset.test.categorical))
        logit, mu, sigma = (
            part.double().numpy() for part in network.ziln(2, network.raw(network.inputs.lift(*inputs))[2])
        )
    rng = np.random.default_rng(0)
    amounts = np.exp(mu + sigma * rng.standard_normal((1, 200_000)))
    expected = np.log1p(amounts).mean(axis=1) / (1 + np.exp(-logit[:, 0]))
    np.testing.assert_allclose(logs[:, 2], expected, rtol=0.01)
