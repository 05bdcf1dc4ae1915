"""What anybody would try before a network: one feature, the last year's spend, a linear model, boosted trees.

All of them are chosen on the validation rows, fitted to what is known before the test cutoffs and calibrated on the
newest of it, as the network is; no test row is looked at. docs/model-quality.md says how they compare.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.special import expit  # type: ignore[import-untyped]
from sklearn.linear_model import LogisticRegression, Ridge

from feature_client.errors import RapportError
from feature_client.schema import FeatureSchema, FloatArray
from model_export import boosted
from model_export.calibration import factor, logit, platt
from model_export.evaluate import area_under_curve
from model_export.rows import Dataset, Rows

PENALTIES = (0.003, 0.03, 0.3, 3.0)
"""scikit-learn's C, inverse penalties of the linear models, which the validation rows choose from."""

NAIVE_FEATURE, NAIVE_DAYS = "spend_365d", 365.0


class BaselineError(RapportError):
    """A baseline that this data cannot have."""


@dataclass(frozen=True)
class Forecast:
    """What a model says of some rows, float64 [rows, T]: scores, and of amounts their expected log1p (else NaN)."""

    scores: FloatArray
    logs: FloatArray


def best_feature(dataset: Dataset) -> tuple[Forecast, dict[str, str]]:
    """The single numeric feature that ranks the validation rows best, for each probability; amounts by the last year's
    spend. Also task -> which feature, with its sign."""
    forecast, chosen = _empty(dataset), {}
    for position, task in enumerate(dataset.tasks):
        if task.kind == "amount":
            name = f"{NAIVE_FEATURE} x {task.horizon_days}/{NAIVE_DAYS:.0f}"
            forecast.scores[:, position] = _naive(dataset, task.horizon_days)
            forecast.logs[:, position] = np.log1p(forecast.scores[:, position])
        else:
            name, scores = _best_of(dataset, position)
            forecast.scores[:, position] = scores
        chosen[task.name] = name
    return forecast, chosen


def linear(dataset: Dataset) -> Forecast:
    """Logistic regression for probabilities, ridge regression of log1p for amounts, on standardised columns."""
    columns = _columns(dataset.train, dataset.schema)
    train, validation, test = (columns(rows) for rows in (dataset.train, dataset.validation, dataset.test))
    newest, latest = dataset.calibrating, columns(dataset.calibrating)
    final, finals = (dataset.train, train) if dataset.known is None else (dataset.known, columns(dataset.known))
    forecast = _empty(dataset)
    for position, task in enumerate(dataset.tasks):
        keep, kept = dataset.train.eligible[:, position], dataset.validation.eligible[:, position]
        target, aim = _labels(dataset.train, position), _labels(dataset.validation, position)
        ends, last = final.eligible[:, position], newest.eligible[:, position]
        goal, level, weight = _labels(final, position), _labels(newest, position), final.recency()[ends]
        if task.kind == "probability":
            fits = [LogisticRegression(C=c, max_iter=500).fit(train[keep], target) for c in PENALTIES]
            best = max(fits, key=lambda fit: area_under_curve(fit.decision_function(validation[kept]), aim))
            best.fit(finals[ends], goal, weight)
            raw, raws = best.decision_function(latest[last]), best.decision_function(test)
            forecast.scores[:, position] = _calibrated(raw, level, raws)
        else:
            ridges = [Ridge(alpha=1 / c).fit(train[keep], np.log1p(target)) for c in PENALTIES]
            ridge = min(ridges, key=lambda fit: float(((fit.predict(validation[kept]) - np.log1p(aim)) ** 2).mean()))
            ridge.fit(finals[ends], np.log1p(goal), weight)
            logs, other = (np.maximum(ridge.predict(columns), 0.0) for columns in (latest[last], test))
            forecast.logs[:, position] = other
            forecast.scores[:, position] = np.expm1(other) * _smearing(logs, level)
    return forecast


def trees(dataset: Dataset, *, seed: int = 0) -> Forecast:
    """LightGBM, calibrated as the network is."""
    fitted = boosted.fit(dataset, seed=seed)
    forecast = _empty(dataset)
    newest = dataset.calibrating
    known, test = (
        boosted.predict(fitted, dataset.schema, dataset.tasks, rows).astype(np.float64)
        for rows in (newest, dataset.test)
    )
    for position, task in enumerate(dataset.tasks):
        kept, aim = newest.eligible[:, position], _labels(newest, position)
        own, others = known[kept, position], test[:, position]
        if task.kind == "probability":
            forecast.scores[:, position] = _calibrated(logit(own), aim, logit(others))
        else:
            forecast.scores[:, position] = others * factor(own, aim)
            log = fitted[task.name].log
            if log is not None:
                forecast.logs[:, position] = boosted.predict_log(log, dataset.schema, dataset.test)
    return forecast


def _empty(dataset: Dataset) -> Forecast:
    shape = (len(dataset.test), len(dataset.tasks))
    return Forecast(np.full(shape, np.nan), np.full(shape, np.nan))


def _labels(rows: Rows, position: int) -> FloatArray:
    return np.asarray(rows.labels[rows.eligible[:, position], position], np.float64)


def _calibrated(logits: FloatArray, labels: FloatArray, others: FloatArray) -> FloatArray:
    """The probabilities of other rows, from logits, with what makes these logits meet their labels."""
    slope, shift = platt(logits, labels)
    return np.asarray(expit(others * slope + shift))


def _smearing(logs: FloatArray, labels: FloatArray) -> float:
    """The mean of an amount is above the exponential of its mean logarithm, by how much these rows say (Duan 1983,
    "Smearing Estimate")."""
    return float(labels.sum() / max(np.expm1(logs).sum(), 1e-9))


def _naive(dataset: Dataset, days: int) -> FloatArray:
    """The last year's spend goes on as it was."""
    names = [feature.name for feature in dataset.schema.numeric]
    if NAIVE_FEATURE not in names:
        raise BaselineError(f"the naive forecast needs the feature {NAIVE_FEATURE}, which the schema does not have")
    spend = np.nan_to_num(dataset.test.numeric[:, names.index(NAIVE_FEATURE)].astype(np.float64))
    return np.asarray(spend * (days / NAIVE_DAYS))


def _best_of(dataset: Dataset, position: int) -> tuple[str, FloatArray]:
    """The feature, with its sign, and calibrated scores of the test rows."""
    keep, aim = dataset.validation.eligible[:, position], _labels(dataset.validation, position)
    newest = dataset.calibrating
    last, level = newest.eligible[:, position], _labels(newest, position)
    found = []
    for column, feature in enumerate(dataset.schema.numeric):
        middle = _middle(dataset.train.numeric[:, column]) if feature.default is None else feature.default
        own, latest, others = (
            _signed_log(np.nan_to_num(rows.numeric[:, column].astype(np.float64), nan=middle))
            for rows in (dataset.validation, newest, dataset.test)
        )
        area = area_under_curve(own[keep], aim)
        sign = 1.0 if area >= 0.5 else -1.0
        said = f"{'-' if sign < 0 else ''}{feature.name}"
        found.append((max(area, 1 - area), said, sign * latest[last], sign * others))
    _, name, best, rest = max(found, key=lambda one: one[0])
    return name, _calibrated(best, level, rest)


def _middle(values: npt.NDArray[np.float32]) -> float:
    """The median of what is known, 0 where nothing is."""
    known = values[~np.isnan(values)]
    return float(np.median(known)) if len(known) else 0.0


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
