"""The test rows that a run keeps: what its gates judge it by and its report is made of, without events or features.

They are of cutoffs that the model never saw. Nobody's id is among them.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from feature_client.schema import FloatArray
from model_export.naive import baselines
from model_export.rows import Dataset

MAX_ROWS = 100_000
"""Of more than so many test rows, whole customers are drawn: intervals are narrow by then, and a run stays small."""


@dataclass(frozen=True)
class Holdout:
    """One row is one customer at one cutoff."""

    numeric: npt.NDArray[np.float32]  # [rows, N], NaN is missing
    categorical: npt.NDArray[np.int64]  # [rows, K]
    scores: npt.NDArray[np.float32]  # [rows, T]
    labels: npt.NDArray[np.float32]  # [rows, T]
    eligible: npt.NDArray[np.bool_]  # [rows, T]
    naive: npt.NDArray[np.float32]  # [rows, T]: scores of the baselines, NaN where there is none
    naive_features: tuple[str, ...]  # [T]: what those are made of, empty where there is none
    customers: npt.NDArray[np.int64]  # [rows]: the same number for the same customer
    cutoffs: FloatArray  # [rows], epoch seconds
    customers_of_test: int  # of all test rows

    def __len__(self) -> int:
        return len(self.labels)

    def arrays(self) -> dict[str, npt.NDArray[Any]]:
        """As they are kept on disk, none of them of objects."""
        return {name: np.asarray(value) for name, value in vars(self).items()}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, npt.NDArray[Any]]) -> "Holdout":
        """Raises KeyError and ValueError on what is not one."""
        kept = {name: arrays[name] for name in cls.__dataclass_fields__}
        kept["naive_features"] = tuple(kept["naive_features"].tolist())  # type: ignore[assignment]
        kept["customers_of_test"] = int(kept["customers_of_test"])  # type: ignore[assignment]
        holdout = cls(**kept)  # type: ignore[arg-type]
        rows, tasks = holdout.scores.shape
        same = [holdout.labels.shape, holdout.eligible.shape, holdout.naive.shape] == [(rows, tasks)] * 3
        each = (holdout.numeric, holdout.categorical, holdout.customers, holdout.cutoffs)
        if not same or {len(array) for array in each} != {rows} or len(holdout.naive_features) != tasks:
            raise ValueError("its test rows do not belong together")
        return holdout


def hold_out(dataset: Dataset, scores: npt.NDArray[np.float32], seed: int = 0) -> Holdout:
    """The dataset's test rows with their scores [rows, T]. seed: which customers, of more rows than are kept."""
    # Here, not above: it takes a second to import, and reading a run needs none of it.
    import pandas as pd  # noqa: PLC0415

    test = dataset.test
    customers, known = pd.factorize(test.customers)
    rows = _drawn(customers, seed)
    numeric = test.numeric[rows]
    naive = baselines(dataset.schema, dataset.tasks, dataset.validation)
    columns = [
        np.full(len(rows), np.nan, np.float32) if baseline is None else baseline.scores(dataset.schema, numeric)
        for baseline in naive
    ]
    return Holdout(
        numeric=numeric,
        categorical=test.categorical[rows],
        scores=scores[rows],
        labels=test.labels[rows],
        eligible=test.eligible[rows],
        naive=np.stack(columns, axis=1),
        naive_features=tuple("" if baseline is None else baseline.feature for baseline in naive),
        customers=np.asarray(customers[rows], dtype=np.int64),
        cutoffs=test.cutoffs[rows],
        customers_of_test=len(known),
    )


def _drawn(customers: npt.NDArray[np.int64], seed: int) -> npt.NDArray[np.int64]:
    """Rows of whole customers, MAX_ROWS at most. customers [rows]: numbers from 0."""
    if len(customers) <= MAX_ROWS:
        return np.arange(len(customers))
    counts = np.bincount(customers)
    order = np.random.default_rng(seed).permutation(len(counts))
    chosen = order[np.cumsum(counts[order]) <= MAX_ROWS]
    return np.flatnonzero(np.isin(customers, chosen))
