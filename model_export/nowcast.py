"""Labels that are not known yet, as far as what came since the cutoff says.

Whether somebody stays silent for 90 days is known 90 days later. But who has bought within the first 30 days has not
stayed silent, and that is known two months sooner; of the others, the chance is what it was for those who were as quiet
for as long the last time it is known of. So levels are met that are two months newer than the newest label: as in
survival analysis, an outcome that is censored is not one that is unknown (Kaplan and Meier 1958; in statistics of
epidemics it is called nowcasting).
"""

from dataclasses import replace

import numpy as np
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler

from feature_client.contract import eligible_rows
from feature_client.schema import FloatArray
from model_export.rows import CALIBRATING, Dataset, Rows

INVERSE_PENALTY = 0.1
"""scikit-learn's C, of the chances of those who have been quiet so far."""


def calibrating(dataset: Dataset) -> Rows:
    """What scores are made to meet: the newest rows whose labels are known before the first test cutoff, or half known.

    Labels that are not settled are chances, between 0 and 1. Without `Dataset.known`, the validation rows.
    """
    return dataset.validation if dataset.known is None else nowcast(dataset, dataset.known).newest(CALIBRATING)


def nowcast(dataset: Dataset, known: Rows) -> Rows:
    """The rows `known`, with labels also where another task of a shorter horizon is known: 0 where it settles them
    (`Dataset.settled_by`), else the chance that those had who had been quiet for as long at the newest cutoffs with
    labels. A task of which these have one class only stays as it is."""
    labels, eligible = known.labels.copy(), known.eligible.copy()
    defined = eligible_rows(dataset.schema, dataset.tasks, known.numeric)
    # A season that these few cutoffs have not seen would be extrapolated.
    lasting = [place for place, feature in enumerate(dataset.schema.numeric) if feature.kind != "calendar"]
    columns = known.numeric[:, lasting].astype(np.float64)
    for late, early in dataset.settled_by.items():
        begun = known.eligible[:, early] & defined[:, late] & ~known.eligible[:, late]
        quiet = known.labels[:, early] == 0
        like = quiet & known.eligible[:, early] & known.at_newest(late, CALIBRATING)
        if not begun.any() or len(np.unique(known.labels[like, late])) < 2:
            continue
        chance = make_pipeline(
            FunctionTransformer(_signed_log),
            SimpleImputer(strategy="median", add_indicator=True, keep_empty_features=True),
            StandardScaler(),
            LogisticRegression(C=INVERSE_PENALTY, max_iter=1_000),
        ).fit(columns[like], known.labels[like, late])
        labels[begun, late] = np.where(quiet[begun], chance.predict_proba(columns[begun])[:, 1], 0.0)
        eligible[begun, late] = True
    return replace(known, labels=labels, eligible=eligible)


def _signed_log(values: FloatArray) -> FloatArray:
    return np.asarray(np.sign(values) * np.log1p(np.abs(values)))
