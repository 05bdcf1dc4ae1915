"""The kinds of models that can be trained: which fits what, and how one is read back from its weights."""

from collections.abc import Mapping
from typing import Literal

from torch import Tensor

from feature_client.contract import Task
from feature_client.schema import FeatureSchema
from model_export import boosted, linear
from model_export.classical import CONVERTED, Classical
from model_export.columns import Columns
from model_export.convert import from_boosters, from_sklearn
from model_export.network import Network
from model_export.rows import Dataset
from model_export.scorer import Scorer
from model_export.train import EPOCHS, calibrate, train

Estimator = Literal["network", "lightgbm", "logistic"]

ESTIMATOR = "estimator"
"""Where the contract's account of the training, and with it the card, says which it was."""


def fit(estimator: Estimator, dataset: Dataset, *, seed: int, epochs: int = EPOCHS) -> Scorer:
    """Fitted, chosen and calibrated without the test rows. epochs: of the network. Deterministic for a seed."""
    if estimator == "network":
        return train(dataset, seed=seed, epochs=epochs)
    schema, tasks, smooth = dataset.schema, dataset.tasks, estimator == "logistic"
    columns = Columns(schema, smooth=smooth)
    fitted = dataset.fitted
    columns.fit(fitted.numeric, fitted.categorical)
    if estimator == "lightgbm":
        found = boosted.fit(dataset, seed=seed, logs=False)
        model = from_boosters([found[task.name].score for task in tasks])
    else:
        model = from_sklearn(linear.fit(dataset, columns), columns.width)
    classical = Classical.of(columns, tasks, model, dataset.train.labels)
    calibrate(classical, dataset)
    return classical


def restore(schema: FeatureSchema, tasks: tuple[Task, ...], weights: Mapping[str, Tensor]) -> Scorer:
    """The model whose `state_dict` this is. Raises KeyError, RuntimeError where it is of none."""
    if CONVERTED in weights:
        return Classical.from_state(schema, tasks, weights)
    network = Network(schema, tasks)
    network.load_state_dict(dict(weights))
    return network.eval()
