"""Intervals by drawing customers anew: a customer's rows are drawn together, since they resemble each other.

A draw is a weight for each row, how often its customer was drawn; every figure here takes weights. Two models that are
compared are given the same draws (a paired bootstrap): what is hard in the rows is hard for both.
Efron and Tibshirani 1993, "An Introduction to the Bootstrap"; percentile intervals.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from feature_client.schema import FloatArray
from model_export.evaluate import amount_cap

DRAWS = 400
LEVEL = 0.95
AT_ONCE = 4_000_000
"""Weights in memory at once: a few draws at a time of many rows."""

Figure = Callable[[FloatArray], FloatArray]
"""weights [draws, rows] -> the figure under each of them [draws], NaN where it is not defined."""


@dataclass(frozen=True)
class Interval:
    """value: of the rows themselves. NaN ends: it could not be told."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Draws:
    """Draws of whole customers. customers [rows]: equal numbers are one customer's rows."""

    customers: npt.NDArray[np.int64]
    draws: int = DRAWS
    seed: int = 0

    def weights(self) -> Iterator[FloatArray]:
        """The same ones at each call, some draws at a time: [some, rows]."""
        counts, places = self._counts
        step = max(AT_ONCE // max(len(places), 1), 1)
        for start in range(0, self.draws, step):
            yield counts[start : start + step, places].astype(np.float64)

    @cached_property
    def _counts(self) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
        """How often each customer was drawn [draws, customers], and each row's customer [rows].

        Poisson's counts, each customer on its own: the total varies a little, and every figure is a ratio.
        """
        names, places = np.unique(self.customers, return_inverse=True)
        drawn = np.random.default_rng(self.seed).poisson(1.0, (self.draws, len(names)))
        return drawn.astype(np.uint8), places

    def figures(self, figure: Figure) -> FloatArray:
        """[draws]"""
        return np.concatenate([figure(weights) for weights in self.weights()])

    def interval(self, figure: Figure, level: float = LEVEL) -> Interval:
        """The figure of the rows as they are, and the middle `level` of those of the draws."""
        value = float(figure(np.ones((1, len(self.customers))))[0])
        return Interval(value, *ends(self.figures(figure), level))


def ends(found: FloatArray, level: float = LEVEL) -> tuple[float, float]:
    """Of the middle `level` of what was drawn. NaN (a draw without both classes) is left out; NaN where all are."""
    known = found[~np.isnan(found)]
    if not len(known):
        return math.nan, math.nan
    low, high = np.quantile(known, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def auc(score: FloatArray, label: FloatArray) -> Figure:
    """Area under the ROC curve; ties count half."""
    order = np.argsort(score, kind="stable")
    positive = label[order] > 0
    starts = _starts(score[order])

    def figure(weights: FloatArray) -> FloatArray:
        ordered = weights[:, order]
        hits = np.add.reduceat(ordered * positive, starts, axis=1)
        misses = np.add.reduceat(ordered * ~positive, starts, axis=1)
        below = np.cumsum(misses, axis=1) - misses
        pairs = (hits * (below + misses / 2)).sum(axis=1)
        return _ratio(pairs, hits.sum(axis=1) * misses.sum(axis=1))

    return figure


def average_precision(score: FloatArray, label: FloatArray) -> Figure:
    """Mean precision over the positives, the highest scores first; ties come in together."""
    order = np.argsort(-score, kind="stable")
    positive = label[order] > 0
    starts = _starts(score[order])

    def figure(weights: FloatArray) -> FloatArray:
        ordered = weights[:, order]
        hits = np.add.reduceat(ordered * positive, starts, axis=1)
        taken = np.cumsum(np.add.reduceat(ordered, starts, axis=1), axis=1)
        precision = np.cumsum(hits, axis=1) / np.maximum(taken, 1.0)
        return _ratio((precision * hits).sum(axis=1), hits.sum(axis=1))

    return figure


def log_rmse(score: FloatArray, label: FloatArray) -> Figure:
    """Root mean square of the difference of log1p."""
    squares = (np.log1p(score) - np.log1p(label)) ** 2
    return lambda weights: np.sqrt(_ratio(weights @ squares, weights.sum(axis=1)))


def rmse_capped(score: FloatArray, label: FloatArray) -> Figure:
    """Root mean square of the difference, both cut off (`amount_cap`)."""
    cap = amount_cap(label)
    squares = (np.minimum(score, cap) - np.minimum(label, cap)) ** 2
    return lambda weights: np.sqrt(_ratio(weights @ squares, weights.sum(axis=1)))


def sum_ratio(score: FloatArray, label: FloatArray) -> Figure:
    """Sum of the scores over sum of the labels."""
    return lambda weights: _ratio(weights @ score, weights @ label)


def mean(values: FloatArray) -> Figure:
    return lambda weights: _ratio(weights @ values, weights.sum(axis=1))


def spearman(score: FloatArray, label: FloatArray) -> Figure:
    """Correlation of the ranks, ties sharing their mean."""
    ranks = (_ranks(score), _ranks(label))

    def figure(weights: FloatArray) -> FloatArray:
        total = weights.sum(axis=1, keepdims=True)
        first, second = (rank(weights) for rank in ranks)
        first = first - _ratio((weights * first).sum(axis=1, keepdims=True), total)
        second = second - _ratio((weights * second).sum(axis=1, keepdims=True), total)
        spread = (weights * first**2).sum(axis=1) * (weights * second**2).sum(axis=1)
        return _ratio((weights * first * second).sum(axis=1), np.sqrt(spread))

    return figure


def total(values: FloatArray) -> Figure:
    """As many rows as there are, whoever is drawn: the draws' own number varies."""
    return lambda weights: len(values) * mean(values)(weights)


def difference(new: Figure, old: Figure) -> Figure:
    """new - old, under the same draws."""
    return lambda weights: new(weights) - old(weights)


def saving(new: Figure, old: Figure) -> Figure:
    """By what share of the old one the new one is less, under the same draws."""
    return lambda weights: 1 - _ratio(new(weights), old(weights))


def _ranks(values: FloatArray) -> Figure:
    """weights [draws, rows] -> mid-ranks [draws, rows] of rows that count so often."""
    _, groups, counts = np.unique(values, return_inverse=True, return_counts=True)
    order = np.argsort(groups, kind="stable")
    starts = np.cumsum(counts) - counts

    def figure(weights: FloatArray) -> FloatArray:
        per_group = np.add.reduceat(weights[:, order], starts, axis=1)
        return np.asarray((np.cumsum(per_group, axis=1) - per_group / 2)[:, groups])

    return figure


def _starts(ordered: FloatArray) -> npt.NDArray[np.int64]:
    """Where a new value begins."""
    return np.flatnonzero(np.concatenate([[True], ordered[1:] != ordered[:-1]]))


def _ratio(above: FloatArray, below: FloatArray) -> FloatArray:
    """NaN for nothing of nothing."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(np.where(below > 0, above / below, np.nan), dtype=np.float64)
