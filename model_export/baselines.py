"""What anybody would try before a network: one feature, the last year's spend, a linear model, boosted trees.

All of them are chosen on the validation rows, fitted to what is known before the test cutoffs and calibrated on the
newest of it, as the network is; no test row is looked at. docs/model-quality.md says how they compare.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.special import expit  # type: ignore[import-untyped]
from sklearn.linear_model import LogisticRegression, Ridge

from feature_client.errors import RapportError
from feature_client.schema import FeatureSchema, FloatArray
from model_export import boosted, naive
from model_export.calibration import factor, logit
from model_export.evaluate import area_under_curve
from model_export.nowcast import calibrating, slope_and_shift
from model_export.rows import Dataset, Rows

PENALTIES = (0.003, 0.03, 0.3, 3.0)
"""scikit-learn's C, inverse penalties of the linear models, which the validation rows choose from."""


class BaselineError(RapportError):
    """A baseline that this data cannot have."""


@dataclass(frozen=True)
class Forecast:
    """What a model says of some rows, float64 [rows, T]: scores, and of amounts their expected log1p (else NaN)."""

    scores: FloatArray
    logs: FloatArray


def best_feature(dataset: Dataset) -> tuple[Forecast, dict[str, str]]:
    """The single numeric feature that ranks the validation rows best, for each probability, calibrated; amounts by the
    last year's spend. Also task -> which feature, with its sign. Raises BaselineError where there is none."""
    forecast, chosen, newest = _empty(dataset), {}, calibrating(dataset)
    found = naive.baselines(dataset.schema, dataset.tasks, dataset.validation)
    for position, (task, baseline) in enumerate(zip(dataset.tasks, found, strict=True)):
        if baseline is None:
            raise BaselineError(f"{task.name}: nothing to forecast it by without a model")
        level, scores = (
            baseline.scores(dataset.schema, rows.numeric).astype(np.float64) for rows in (newest, dataset.test)
        )
        if task.kind == "amount":
            chosen[task.name] = f"{baseline.feature} x {task.horizon_days}/{naive.YEAR_DAYS}"
            forecast.scores[:, position], forecast.logs[:, position] = scores, np.log1p(scores)
        else:
            chosen[task.name] = f"{'-' if baseline.factor < 0 else ''}{baseline.feature}"
            slope, shift = slope_and_shift(dataset, newest, position, _signed_log(level))
            forecast.scores[:, position] = expit(slope * _signed_log(scores) + shift)
    return forecast, chosen


def linear(dataset: Dataset) -> Forecast:
    """Logistic regression for probabilities, ridge regression of log1p for amounts, on standardised columns."""
    columns = _columns(dataset.train, dataset.schema)
    train, validation, test = (columns(rows) for rows in (dataset.train, dataset.validation, dataset.test))
    newest = calibrating(dataset)
    latest = columns(newest)
    final, finals = (dataset.train, train) if dataset.known is None else (dataset.known, columns(dataset.known))
    forecast = _empty(dataset)
    for position, task in enumerate(dataset.tasks):
        keep, kept = dataset.train.eligible[:, position], dataset.validation.eligible[:, position]
        target, aim = _labels(dataset.train, position), _labels(dataset.validation, position)
        ends, last = final.eligible[:, position], newest.eligible[:, position]
        goal, weight = _labels(final, position), final.recency()[ends]
        if task.kind == "probability":
            fits = [LogisticRegression(C=c, max_iter=500).fit(train[keep], target) for c in PENALTIES]
            best = max(fits, key=lambda fit: area_under_curve(fit.decision_function(validation[kept]), aim))
            best.fit(finals[ends], goal, weight)
            slope, shift = slope_and_shift(dataset, newest, position, best.decision_function(latest))
            forecast.scores[:, position] = expit(slope * best.decision_function(test) + shift)
        else:
            ridges = [Ridge(alpha=1 / c).fit(train[keep], np.log1p(target)) for c in PENALTIES]
            ridge = min(ridges, key=lambda fit: float(((fit.predict(validation[kept]) - np.log1p(aim)) ** 2).mean()))
            ridge.fit(finals[ends], np.log1p(goal), weight)
            logs, other = (np.maximum(ridge.predict(columns), 0.0) for columns in (latest[last], test))
            forecast.logs[:, position] = other
            forecast.scores[:, position] = np.expm1(other) * _smearing(logs, _labels(newest, position))
    return forecast


def trees(dataset: Dataset, *, seed: int = 0) -> Forecast:
    """LightGBM, calibrated as the network is."""
    fitted = boosted.fit(dataset, seed=seed)
    forecast = _empty(dataset)
    newest = calibrating(dataset)
    known, test = (
        boosted.predict(fitted, dataset.schema, dataset.tasks, rows).astype(np.float64)
        for rows in (newest, dataset.test)
    )
    for position, task in enumerate(dataset.tasks):
        own, others = known[:, position], test[:, position]
        if task.kind == "probability":
            slope, shift = slope_and_shift(dataset, newest, position, logit(own))
            forecast.scores[:, position] = expit(slope * logit(others) + shift)
        else:
            kept = newest.eligible[:, position]
            forecast.scores[:, position] = others * factor(own[kept], _labels(newest, position))
            log = fitted[task.name].log
            if log is not None:
                forecast.logs[:, position] = boosted.predict_log(log, dataset.schema, dataset.test)
    return forecast


def _empty(dataset: Dataset) -> Forecast:
    shape = (len(dataset.test), len(dataset.tasks))
    return Forecast(np.full(shape, np.nan), np.full(shape, np.nan))


def _labels(rows: Rows, position: int) -> FloatArray:
    return np.asarray(rows.labels[rows.eligible[:, position], position], np.float64)


def _smearing(logs: FloatArray, labels: FloatArray) -> float:
    """The mean of an amount is above the exponential of its mean logarithm, by how much these rows say (Duan 1983,
    "Smearing Estimate")."""
    return float(labels.sum() / max(np.expm1(logs).sum(), 1e-9))


def _signed_log(values: FloatArray) -> FloatArray:
    return np.asarray(np.sign(values) * np.log1p(np.abs(values)))


def _columns(fitted: Rows, schema: FeatureSchema) -> Callable[[Rows], FloatArray]:
    """Logarithms of numbers, standardised by the fitted rows, with their median in place of what is missing; whether it
    was; categories as one column a word."""
    train = _signed_log(fitted.numeric.astype(np.float64))
    known = ~np.isnan(train).all(axis=0)
    middle = np.nanmedian(train[:, known], axis=0)
    filled = np.where(np.isnan(train[:, known]), middle, train[:, known])
    centre, scale = filled.mean(axis=0), np.maximum(filled.std(axis=0), 1e-9)
    varies = filled.std(axis=0) > 1e-9

    def columns(rows: Rows) -> FloatArray:
        numbers = _signed_log(rows.numeric[:, known].astype(np.float64))
        absent = np.isnan(numbers)
        standard = np.clip((np.where(absent, middle, numbers) - centre) / scale, -6.0, 6.0)[:, varies]
        words = [
            np.eye(len(feature.vocabulary) + 2)[rows.categorical[:, place]]
            for place, feature in enumerate(schema.categorical)
        ]
        return np.column_stack([standard, absent, *words])

    return columns
