"""What a model is held against that takes no training: the best single feature, and last year's spend, spread evenly.

Which feature is best is decided on validation rows, as everything is that is decided.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from sklearn.metrics import roc_auc_score

from feature_client.contract import Task
from feature_client.schema import FeatureSchema
from model_export.rows import Rows

YEAR_OF_SPEND, YEAR_DAYS = "spend_365d", 365
"""The naive forecast of an amount: this feature, in the proportion of the horizon to a year."""

SELECTING_ROWS = 50_000


@dataclass(frozen=True)
class Baseline:
    """factor x one feature; where that is missing, `missing` stands for it. A probability is only ranked by it."""

    feature: str
    factor: float
    missing: float

    def scores(self, schema: FeatureSchema, numeric: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """numeric [rows, N] -> [rows]."""
        column = [feature.name for feature in schema.numeric].index(self.feature)
        return np.asarray(self.factor * np.nan_to_num(numeric[:, column], nan=self.missing), dtype=np.float32)


def baselines(schema: FeatureSchema, tasks: Sequence[Task], rows: Rows) -> tuple[Baseline | None, ...]:
    """One a task, chosen on these rows; None where there is none: no spend of a year, or one class alone."""
    return tuple(
        _best_single(schema, rows, position) if task.kind == "probability" else _naive_spend(schema, task)
        for position, task in enumerate(tasks)
    )


def _naive_spend(schema: FeatureSchema, task: Task) -> Baseline | None:
    if YEAR_OF_SPEND not in {feature.name for feature in schema.numeric}:
        return None
    return Baseline(YEAR_OF_SPEND, task.horizon_days / YEAR_DAYS, 0.0)


def _best_single(schema: FeatureSchema, rows: Rows, position: int) -> Baseline | None:
    """The one with the largest AUC, high or low values first."""
    kept = np.flatnonzero(rows.eligible[:, position])
    if len(kept) > SELECTING_ROWS:
        kept = np.sort(np.random.default_rng(0).choice(kept, SELECTING_ROWS, replace=False))
    label = rows.labels[kept, position]
    if not 0 < label.sum() < len(label):
        return None
    best, found = 0.5, None
    for column, feature in enumerate(schema.numeric):
        values = rows.numeric[kept, column]
        if np.isnan(values).all():
            continue
        missing = float(np.nanmedian(values))
        auc = float(roc_auc_score(label, np.nan_to_num(values, nan=missing)))
        if max(auc, 1 - auc) > best:
            best, found = max(auc, 1 - auc), Baseline(feature.name, 1.0 if auc >= 0.5 else -1.0, missing)
    return found
