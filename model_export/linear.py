"""scikit-learn's linear models of every task: what the others must beat, and the smallest model that can be released.

Logistic regression for probabilities; for amounts a Tweedie regression with a logarithmic link, which fits the
expectation where most amounts are zero. On `Columns(smooth=True)`: standardised numbers, one column a word of each
category.
"""

import numpy as np
import numpy.typing as npt
from sklearn.compose import make_column_transformer
from sklearn.linear_model import LinearRegression, LogisticRegression, TweedieRegressor
from sklearn.metrics import log_loss, mean_tweedie_deviance
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

from feature_client.contract import Task
from feature_client.schema import FloatArray
from model_export.boosted import TWEEDIE_POWER
from model_export.columns import Columns
from model_export.rows import Dataset, Rows
from model_export.train import TrainingError

PENALTIES = (1e-5, 1e-4, 1e-3, 1e-2)
"""Of squared coefficients, beside the mean loss of a row; the validation rows choose."""

STEPS = 1_000
TOLERANCE = 1e-3
"""Of the gradient; closer brings nothing that other rows would notice."""

Floats = npt.NDArray[np.float32]


def fit(dataset: Dataset, columns: Columns) -> list[Pipeline]:
    """One a task, in their order: what it decides or predicts is log-odds, or the logarithm of the expected amount.

    Raises TrainingError where a task has but one class.
    """
    train, validation = (columns.of(rows.numeric, rows.categorical) for rows in (dataset.train, dataset.validation))
    fitted = []
    for position, task in enumerate(dataset.tasks):
        keep, kept = dataset.train.eligible[:, position], dataset.validation.eligible[:, position]
        prepare = make_column_transformer(
            (StandardScaler(), list(range(columns.numbers))),
            (OneHotEncoder(handle_unknown="ignore", sparse_output=False), list(range(columns.numbers, columns.width))),
        )
        known, others = prepare.fit_transform(train[keep]), prepare.transform(validation[kept])
        labels, aims = _labels(dataset.train, position), _labels(dataset.validation, position)
        choose = _logistic if task.kind == "probability" else _tweedie
        fitted.append(make_pipeline(prepare, choose(task, known, labels, others, aims)))
    return fitted


def _logistic(task: Task, known: Floats, labels: FloatArray, others: Floats, aims: FloatArray) -> LogisticRegression:
    if len(np.unique(labels)) < 2:
        raise TrainingError(f"{task.name}: all training rows have the same label")
    models = [
        LogisticRegression(C=1 / (penalty * len(labels)), max_iter=STEPS, tol=TOLERANCE).fit(known, labels)
        for penalty in PENALTIES
    ]
    return min(models, key=lambda model: float(log_loss(aims, model.predict_proba(others)[:, 1], labels=[0, 1])))


def _tweedie(task: Task, known: Floats, labels: FloatArray, others: Floats, aims: FloatArray) -> LinearRegression:
    """Its linear predictor, as a model of its own: the exponential comes later, for all kinds of models alike."""
    mean = float(labels.mean())
    if not mean > 0:
        raise TrainingError(f"{task.name}: all training rows have the same label")
    models = []
    for penalty in PENALTIES:
        model = TweedieRegressor(
            power=TWEEDIE_POWER, link="log", alpha=penalty, solver="newton-cholesky", max_iter=STEPS
        )
        models.append(model.fit(known, labels / mean))
    best = min(
        models,
        key=lambda model: float(
            mean_tweedie_deviance(aims / mean, _bounded(model.predict(others)), power=TWEEDIE_POWER)
        ),
    )
    linear = LinearRegression()
    linear.coef_, linear.intercept_ = best.coef_, best.intercept_ + np.log(mean)
    linear.n_features_in_ = known.shape[1]
    return linear


def _bounded(amounts: FloatArray) -> FloatArray:
    """A deviance is of finite, positive amounts."""
    return np.clip(amounts, 1e-9, 1e9)


def _labels(rows: Rows, position: int) -> FloatArray:
    labels: FloatArray = rows.labels[rows.eligible[:, position], position].astype(np.float64)
    return labels
