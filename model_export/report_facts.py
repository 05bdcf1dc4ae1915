"""The figures of `rapport report`, recomputed from the test rows that a run keeps: no words, no pictures.

Shares have Wilson's intervals (1927), in which a customer counts once however many rows are theirs; other figures have
bootstrap intervals by customer.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from feature_client.contract import Contract, Task
from feature_client.schema import FloatArray
from model_export import bootstrap
from model_export.bootstrap import Draws, Figure, Interval
from model_export.evaluate import calibration_bins
from model_export.gates import calibration_error
from model_export.holdout import Holdout
from model_export.naive import YEAR_OF_SPEND
from model_export.slices import Slice, slices

Ints = npt.NDArray[np.int64]

TENTHS = 10
TOP = 100
Z = 1.959964
"""Of a 95 % interval of a normal distribution."""

MIN_CUSTOMERS, MIN_EITHER = 100, 20
"""Below so many customers, or rows of either outcome, nothing is drawn or said but that they are too few."""

SLICE_MIN_ROWS, SLICE_MIN_EITHER = 60, 15


@dataclass(frozen=True)
class Rows:
    """The test rows for which one task is defined, [rows] each. naive: None where there is no baseline.

    risked: what each spent in the year before, or None. dates: how many test cutoffs there are.
    """

    task: Task
    score: FloatArray
    label: FloatArray
    naive: FloatArray | None
    naive_feature: str
    customers: Ints
    cutoffs: FloatArray
    risked: FloatArray | None
    slices: Sequence[Slice]

    def __len__(self) -> int:
        return len(self.score)

    @property
    def dates(self) -> int:
        return len(np.unique(self.cutoffs))

    @property
    def people(self) -> int:
        return len(np.unique(self.customers))

    @property
    def are_enough(self) -> bool:
        positive = int((self.label > 0).sum())
        return self.people >= MIN_CUSTOMERS and min(positive, len(self) - positive) >= MIN_EITHER

    @property
    def draws(self) -> Draws:
        return Draws(self.customers)


@dataclass(frozen=True)
class Bin:
    """Rows of like scores. said: the mean score. came: the share, or mean amount, that came true. share: of all that
    came true. risked: last year's spend of these customers, per test date, NaN where it is not known."""

    rows: int
    said: float
    came: Interval
    share: float
    risked: float


@dataclass(frozen=True)
class Top:
    """The customers ranked highest on each test date: how many, and for what share of them it came true."""

    size: int
    came: Interval


@dataclass(frozen=True)
class Metric:
    """naive: the baseline's value, NaN where there is none."""

    name: str
    own: Interval
    naive: float


@dataclass(frozen=True)
class SliceFacts:
    """quality: AUC of a probability, sum ratio of an amount; None where there are too few rows."""

    title: str
    name: str
    rows: int
    said: float
    came: float
    quality: Interval | None


@dataclass(frozen=True)
class Facts:
    """All that is told of one task. tenths, bins: the highest scores first. gains, naive_gains [101]: share of all that
    came true that is among the highest 0, 1, ..., 100 percent."""

    rows: Rows
    base: float
    top: Top
    tenths: Sequence[Bin]
    bins: Sequence[Bin]
    gains: FloatArray
    naive_gains: FloatArray | None
    metrics: Sequence[Metric]
    noise: float  # of the ECE, what may be chance; 0 of amounts
    advantage: Interval | None  # in AUC over the baseline, under the same draws; None of amounts, or without a baseline
    slices: Sequence[SliceFacts]


def rows_of(contract: Contract, holdout: Holdout, position: int) -> Rows:
    kept = holdout.eligible[:, position]
    positions = np.cumsum(kept) - 1
    numeric = holdout.numeric[kept]
    columns = [feature.name for feature in contract.schema.numeric]
    feature = holdout.naive_features[position]
    risked = np.nan_to_num(numeric[:, columns.index(YEAR_OF_SPEND)]) if YEAR_OF_SPEND in columns else None
    return Rows(
        task=contract.tasks[position],
        score=holdout.scores[kept, position].astype(np.float64),
        label=holdout.labels[kept, position].astype(np.float64),
        naive=holdout.naive[kept, position].astype(np.float64) if feature else None,
        naive_feature=feature,
        customers=holdout.customers[kept],
        cutoffs=holdout.cutoffs[kept],
        risked=None if risked is None else risked.astype(np.float64),
        slices=[replace(one, rows=positions[one.rows[kept[one.rows]]]) for one in slices(contract.schema, holdout)],
    )


def facts_of(rows: Rows) -> Facts:
    """Of rows that are enough."""
    return Facts(
        rows=rows,
        base=float(rows.label.mean()),
        top=_top(rows),
        tenths=_bins(rows, TENTHS),
        bins=_bins(rows, TENTHS * 2 if len(rows) >= 4_000 else TENTHS),
        gains=_gains(rows.score, rows.label),
        naive_gains=None if rows.naive is None else _gains(rows.naive, rows.label),
        metrics=_metrics(rows),
        noise=calibration_error(rows.score, rows.label, rows.draws)[1] if rows.task.kind == "probability" else 0.0,
        advantage=_advantage(rows),
        slices=[_slice(rows, one) for one in rows.slices if len(one.rows)],
    )


def wilson(share: float, trials: float) -> Interval:
    """A share of so many independent trials (Wilson 1927)."""
    middle = (share + Z**2 / (2 * trials)) / (1 + Z**2 / trials)
    half = Z / (1 + Z**2 / trials) * np.sqrt(share * (1 - share) / trials + Z**2 / (4 * trials**2))
    return Interval(share, float(max(middle - half, 0.0)), float(min(middle + half, 1.0)))


def _top(rows: Rows) -> Top:
    """The mean of the test dates. As few as a tenth of a date's customers, where they are not many."""
    of_dates = [np.flatnonzero(rows.cutoffs == date) for date in np.unique(rows.cutoffs)]
    size = min(TOP, *(max(len(here) // 10, 1) for here in of_dates))
    chosen = np.concatenate([here[np.argsort(-rows.score[here], kind="stable")[:size]] for here in of_dates])
    return Top(size, _share(rows, chosen) if rows.task.kind == "probability" else _mean(rows, chosen))


def _bins(rows: Rows, count: int) -> list[Bin]:
    whole = max(float(rows.label.sum()), np.finfo(float).tiny)
    return [
        Bin(
            rows=len(here),
            said=float(rows.score[here].mean()),
            came=_share(rows, here) if rows.task.kind == "probability" else _mean(rows, here),
            share=float(rows.label[here].sum() / whole),
            risked=np.nan if rows.risked is None else float(rows.risked[here].sum() / rows.dates),
        )
        for here in reversed(calibration_bins(rows.score, count))
    ]


def _share(rows: Rows, here: Ints) -> Interval:
    return wilson(float(rows.label[here].mean()), len(np.unique(rows.customers[here])))


def _mean(rows: Rows, here: Ints) -> Interval:
    return Draws(rows.customers[here]).interval(bootstrap.mean(rows.label[here]))


def _gains(score: FloatArray, label: FloatArray) -> FloatArray:
    """Of rows with equal scores, the mean of every order: each brings as much as the others."""
    _, groups = np.unique(-score, return_inverse=True)
    means = np.bincount(groups, label) / np.bincount(groups)
    order = np.argsort(groups, kind="stable")
    brought = np.concatenate([[0.0], np.cumsum(means[groups[order]])])
    places = np.linspace(0, len(score), 101)
    return np.asarray(np.interp(places, np.arange(len(score) + 1), brought) / brought[-1])


def _metrics(rows: Rows) -> list[Metric]:
    ranked = {"auc": bootstrap.auc, "average_precision": bootstrap.average_precision}
    of_amounts = {
        "rmse_capped": bootstrap.rmse_capped,
        "log_rmse": bootstrap.log_rmse,
        "spearman": bootstrap.spearman,
        "sum_ratio": bootstrap.sum_ratio,
    }
    found = []
    for name, make in (ranked if rows.task.kind == "probability" else of_amounts).items():
        naive = np.nan if rows.naive is None else _value(make(rows.naive, rows.label), len(rows))
        found.append(Metric(name, rows.draws.interval(make(rows.score, rows.label)), naive))
    if rows.task.kind == "probability":
        error, noise = calibration_error(rows.score, rows.label, rows.draws)
        found.append(Metric("ece", Interval(error, max(error - noise, 0.0), error + noise), np.nan))
        squares = bootstrap.mean((rows.score - rows.label) ** 2)
        found.append(Metric("brier", rows.draws.interval(squares), np.nan))
    return found


def _advantage(rows: Rows) -> Interval | None:
    if rows.naive is None or rows.task.kind == "amount":
        return None
    own, naive = (bootstrap.auc(score, rows.label) for score in (rows.score, rows.naive))
    return rows.draws.interval(bootstrap.difference(own, naive))


def _value(figure: Figure, rows: int) -> float:
    return float(figure(np.ones((1, rows)))[0])


def _slice(rows: Rows, one: Slice) -> SliceFacts:
    here = one.rows
    score, label = rows.score[here], rows.label[here]
    positive = int((label > 0).sum())
    enough = len(here) >= SLICE_MIN_ROWS and min(positive, len(here) - positive) >= SLICE_MIN_EITHER
    measure = bootstrap.auc if rows.task.kind == "probability" else bootstrap.sum_ratio
    quality = Draws(rows.customers[here]).interval(measure(score, label)) if enough else None
    return SliceFacts(one.title, one.name, len(here), float(score.mean()), float(label.mean()), quality)
