"""Makes scores mean what they say, alike for every kind of model.

Fitted on `nowcast.calibrating`. Where the data set says what is known before the test cutoffs, those are the newest
rows of which a label is known or half known; many of them the model was fitted to: their level is corrected,
overconfidence on other rows is not. Else they are the validation rows, which chose the model but did not fit it.
"""

import numpy as np
from sklearn.linear_model import LogisticRegression

from feature_client.schema import FloatArray

MOST = 2.0
"""A few enormous orders can rule the sum of a small data set: amounts are moved by no more than this factor."""


def platt(logits: FloatArray, labels: FloatArray) -> tuple[float, float]:
    """Slope and shift of the logits [rows] with which labels [rows] are met (Platt 1999, "Probabilistic Outputs for
    Support Vector Machines"); (1, 0) where there is no `line`.

    A label between 0 and 1 is a chance: the row counts that much as a 1, and the rest as a 0.
    """
    return line(logits, labels) or (1.0, 0.0)


def line(logits: FloatArray, labels: FloatArray) -> tuple[float, float] | None:
    """As `platt`; None where the rows have one class only, or where ranking would be turned round."""
    if not 0 < labels.sum() < len(labels):
        return None
    weights = np.concatenate([labels, 1 - labels])
    ones = np.concatenate([np.ones(len(labels)), np.zeros(len(labels))])
    fitted = LogisticRegression(C=1e4).fit(np.tile(logits, 2)[:, None], ones, weights)
    slope, shift = float(fitted.coef_[0, 0]), float(fitted.intercept_[0])
    return (slope, shift) if slope > 0 else None


def factor(amounts: FloatArray, labels: FloatArray) -> float:
    """What amounts [rows] are multiplied by, so that they sum to the labels' sum; within 1 / MOST and MOST."""
    predicted, actual = float(amounts.sum()), float(labels.sum())
    return float(np.clip(actual / predicted, 1 / MOST, MOST)) if predicted > 0 and actual > 0 else 1.0


def logit(probabilities: FloatArray) -> FloatArray:
    inside = np.clip(probabilities, 1e-7, 1 - 1e-7)
    return np.log(inside / (1 - inside))
