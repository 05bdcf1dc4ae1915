"""Labels that are not known yet, as far as what came since the cutoff says.

Whether somebody stays silent for 90 days is known 90 days later. But who has bought within the first 30 days has not
stayed silent, and that is known two months sooner; of the others, the chance is what it was for those who were as quiet
for as long the last time it is known of. So levels are met that are two months newer than the newest label: as in
survival analysis, an outcome that is censored is not one that is unknown (Kaplan and Meier 1958; in statistics of
epidemics it is called nowcasting).
"""

from dataclasses import replace

import numpy as np
from scipy.special import expit  # type: ignore[import-untyped]

from feature_client.contract import eligible_rows
from feature_client.schema import FloatArray
from model_export.calibration import platt
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
    labels = rows.labels[:, task].astype(np.float64)
    unsettled = rows.eligible[:, task] & np.isnan(labels)
    if unsettled.any():
        quiet = rows.eligible[:, task] & ~np.isnan(labels) & (rows.labels[:, dataset.settled_by[task]] == 0)
        slope, shift = platt(logits[quiet], labels[quiet])
        labels[unsettled] = expit(slope * logits[unsettled] + shift)
    newest = rows.at_newest(task, CALIBRATING)
    return platt(logits[newest], labels[newest])


def _half_known(dataset: Dataset, known: Rows) -> Rows:
    """The same rows, with labels also where another task of a shorter horizon is known (`Dataset.settled_by`): 0 where
    it settles them, else NaN. Not of a task whose newest labels are all the same for the quiet."""
    labels, eligible = known.labels.copy(), known.eligible.copy()
    defined = eligible_rows(dataset.schema, dataset.tasks, known.numeric)
    for late, early in dataset.settled_by.items():
        quiet = known.labels[:, early] == 0
        if len(np.unique(known.labels[known.at_newest(late, CALIBRATING) & quiet, late])) < 2:
            continue
        begun = known.eligible[:, early] & defined[:, late] & ~known.eligible[:, late]
        labels[begun, late] = np.where(quiet[begun], np.nan, 0.0)
        eligible[begun, late] = True
    return replace(known, labels=labels, eligible=eligible)
