"""Labels that are not known yet, as far as what came since the cutoff says.

Whether somebody stays silent for 90 days is known 90 days later. But who has bought since has not stayed silent, and
that is known as soon as it happens; of the others, the chance is what it was for those who were as quiet for as long,
among the newest rows whose label is known. So levels are met that are two months newer than the newest label: as in
survival analysis, an outcome that is censored is not one that is unknown (Kaplan and Meier 1958; in statistics of
epidemics it is called nowcasting).
"""

from dataclasses import replace

import numpy as np
from scipy.special import expit  # type: ignore[import-untyped]

from feature_client.contract import eligible_rows
from feature_client.schema import DAY_S, FloatArray
from model_export.calibration import line, platt
from model_export.rows import CALIBRATING, Dataset, Rows


def calibrating(dataset: Dataset) -> Rows:
    """What scores are made to meet: of each task the newest cutoffs whose labels are known before the first test
    cutoff, and the newest that are half known, where a label is 0 or, not settled, NaN.

    Without `Dataset.known`, the validation rows.
    """
    if dataset.known is None:
        return dataset.validation
    known, half = dataset.known, _half_known(dataset, dataset.known)
    tasks = range(len(dataset.tasks))
    wanted = [known.at_newest(task, CALIBRATING) | half.at_newest(task, CALIBRATING) for task in tasks]
    eligible = np.stack(wanted, axis=1)
    return replace(half, eligible=eligible).take(np.asarray(eligible.any(axis=1)))


def slope_and_shift(dataset: Dataset, rows: Rows, task: int, logits: FloatArray) -> tuple[float, float]:
    """`platt` of the task at its newest cutoffs. rows: of `calibrating`. logits: float64 [rows], of the model.

    What is not settled counts as the chance that rows with labels and as much silence so far had with that logit.
    """
    labels, since = rows.labels[:, task].astype(np.float64), _days_since(dataset, rows)
    over = rows.eligible[:, task] & (since >= dataset.tasks[task].horizon_days)
    unsettled = rows.eligible[:, task] & np.isnan(labels)
    for days in np.unique(since[unsettled]):
        quiet, here = over & (rows.silence >= days), unsettled & (since == days)
        labels[here] = chances(logits[quiet], labels[quiet], logits[here])
    newest = rows.at_newest(task, CALIBRATING)
    return platt(logits[newest], labels[newest])


def chances(logits: FloatArray, labels: FloatArray, at: FloatArray) -> FloatArray:
    """Of a 1 at these logits, [rows of at], told from rows with labels: by `platt`; or their share of ones, where
    higher logits were no more often a 1."""
    fitted = line(logits, labels)
    if fitted is None:
        return np.full(len(at), labels.mean())
    return np.asarray(expit(fitted[0] * at + fitted[1]))


def _half_known(dataset: Dataset, known: Rows) -> Rows:
    """The same rows, with labels also of tasks of silence whose horizon is not over: 0 where somebody has bought since,
    else NaN. Not where nobody with a label was as quiet for as long."""
    labels, eligible = known.labels.copy(), known.eligible.copy()
    defined = eligible_rows(dataset.schema, dataset.tasks, known.numeric)
    since = _days_since(dataset, known)
    for task in dataset.silences:
        newest = known.at_newest(task, CALIBRATING)
        for days in np.unique(since[since < dataset.tasks[task].horizon_days]):
            if not (newest & (known.silence >= days)).any():
                continue
            begun = defined[:, task] & (since == days)
            labels[begun, task] = np.where(known.silence[begun] < days, 0.0, np.nan)
            eligible[begun, task] = True
    return replace(known, labels=labels, eligible=eligible)


def _days_since(dataset: Dataset, rows: Rows) -> FloatArray:
    """[rows] from the cutoff to the moment until which things are known."""
    return (dataset.known_at - rows.cutoffs) / DAY_S
