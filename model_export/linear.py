"""scikit-learn's linear models of every task: what the others must beat, and the smallest model that can be released.

Logistic regression for probabilities; for amounts a Tweedie regression with a logarithmic link, which fits the
expectation where most amounts are zero. On `Columns(smooth=True)`: standardised numbers, one column a word of each
category.
"""

import numpy as np
import numpy.typing as npt
from sklearn.compose import ColumnTransformer, make_column_transformer
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

    Where the data set says what else is known before the test cutoffs, what the validation rows chose is then fitted to
    all of that, newer rows counting more. Raises TrainingError where a task has but one class.
    """
    final = dataset.fitted
    train, validation, last = (
        columns.of(rows.numeric, rows.categorical) for rows in (dataset.train, dataset.validation, final)
    )
    fitted = []
    for position, task in enumerate(dataset.tasks):
        keep, kept, ends = (rows.eligible[:, position] for rows in (dataset.train, dataset.validation, final))
        labels, aims, goals = (_labels(rows, position) for rows in (dataset.train, dataset.validation, final))
        prepare = _prepare(columns)
        known, others = prepare.fit_transform(train[keep]), prepare.transform(validation[kept])
        make, loss = (_logistic, _log_loss) if task.kind == "probability" else (_tweedie, _deviance)
        alike = np.ones(len(labels))
        models = [make(task, penalty, known, labels, alike) for penalty in PENALTIES]
        losses = [loss(model, others, aims) for model in models]
        best = int(np.argmin(losses))
        model = models[best]
        if dataset.known is not None:
            prepare = _prepare(columns)
            rows, weights = prepare.fit_transform(last[ends]), final.recency()[ends].astype(np.float64)
            model = make(task, PENALTIES[best], rows, goals, weights)
        fitted.append(make_pipeline(prepare, model))
    return fitted


def _prepare(columns: Columns) -> ColumnTransformer:
    return make_column_transformer(
        (StandardScaler(), list(range(columns.numbers))),
        (OneHotEncoder(handle_unknown="ignore", sparse_output=False), list(range(columns.numbers, columns.width))),
    )


def _logistic(task: Task, penalty: float, known: Floats, labels: FloatArray, weights: FloatArray) -> LogisticRegression:
    if len(np.unique(labels)) < 2:
        raise TrainingError(f"{task.name}: all training rows have the same label")
    model = LogisticRegression(C=1 / (penalty * weights.sum()), max_iter=STEPS, tol=TOLERANCE)
    return model.fit(known, labels, weights)


def _log_loss(model: LogisticRegression, others: Floats, aims: FloatArray) -> float:
    return float(log_loss(aims, model.predict_proba(others)[:, 1], labels=[0, 1]))


def _tweedie(task: Task, penalty: float, known: Floats, labels: FloatArray, weights: FloatArray) -> LinearRegression:
    """Its linear predictor, as a model of its own: the exponential comes later, for all kinds of models alike."""
    mean = float(np.average(labels, weights=weights))
    if not mean > 0:
        raise TrainingError(f"{task.name}: all training rows have the same label")
    model = TweedieRegressor(
        power=TWEEDIE_POWER, link="log", alpha=penalty, solver="newton-cholesky", max_iter=STEPS
    ).fit(known, labels / mean, weights)
    linear = LinearRegression()
    linear.coef_, linear.intercept_ = model.coef_, model.intercept_ + np.log(mean)
    linear.n_features_in_ = known.shape[1]
    return linear


def _deviance(model: LinearRegression, others: Floats, aims: FloatArray) -> float:
    """Of the exponential of what the model predicts."""
    with np.errstate(over="ignore"):
        return float(mean_tweedie_deviance(aims, _bounded(np.exp(model.predict(others))), power=TWEEDIE_POWER))


def _bounded(amounts: FloatArray) -> FloatArray:
    """A deviance is of finite, positive amounts."""
    return np.clip(amounts, 1e-9, 1e9)


def _labels(rows: Rows, position: int) -> FloatArray:
    labels: FloatArray = rows.labels[rows.eligible[:, position], position].astype(np.float64)
    return labels
