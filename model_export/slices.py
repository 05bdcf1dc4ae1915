"""Kinds of customers to look at one by one: where is a model worse than on the whole?"""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Protocol

import numpy as np
import numpy.typing as npt

from feature_client.schema import FeatureSchema, FloatArray

COUNTRY, TENURE, RECENCY = "country", "tenure_days", "days_since_purchase"
"""The features that slices are made by, where a schema has them."""

WORDS, LEAST_ROWS = 4, 100
"""The most frequent words of a category are slices of their own, where they have so many rows."""

BANDS = {
    TENURE: (("less than 3 months", 0, 91), ("3 to 12 months", 91, 365), ("more than a year", 365, np.inf)),
    RECENCY: (
        ("within 30 days", 0, 30),
        ("31 to 90 days ago", 30, 90),
        ("91 to 180 days ago", 90, 180),
        ("longer ago", 180, np.inf),
    ),
}
DATE = "date"
TITLES = {COUNTRY: "Country", TENURE: "A customer for", RECENCY: "Last purchase", DATE: "Test date"}


@dataclass(frozen=True)
class Slice:
    """Rows of one kind, by their positions. by: a feature, or DATE."""

    by: str
    name: str
    rows: npt.NDArray[np.int64]

    @property
    def title(self) -> str:
        """`by`, for people."""
        return TITLES[self.by]


class Tested(Protocol):
    """Rows of customers at cutoffs: of a dataset, or those that a run keeps."""

    @property
    def numeric(self) -> npt.NDArray[np.float32]: ...

    @property
    def categorical(self) -> npt.NDArray[np.int64]: ...

    @property
    def cutoffs(self) -> FloatArray: ...


def slices(schema: FeatureSchema, rows: Tested) -> list[Slice]:
    """By country, tenure and recency, wherever the schema has them, and by test date; a slice without rows is left
    out."""
    found = [*_countries(schema, rows.categorical), *_bands(schema, rows.numeric), *_dates(rows.cutoffs)]
    return [one for one in found if len(one.rows)]


def _countries(schema: FeatureSchema, categorical: npt.NDArray[np.int64]) -> Iterator[Slice]:
    for column, feature in enumerate(schema.categorical):
        if feature.name == COUNTRY:
            indices = categorical[:, column]
            counts = np.bincount(indices, minlength=len(feature.vocabulary) + 2)[2:]
            most = [place for place in np.argsort(-counts, kind="stable")[:WORDS] if counts[place] >= LEAST_ROWS]
            for place in most:
                yield Slice(COUNTRY, feature.vocabulary[place], np.flatnonzero(indices == place + 2))
            yield Slice(COUNTRY, "others", np.flatnonzero(~np.isin(indices, np.add(most, 2))))


def _bands(schema: FeatureSchema, numeric: npt.NDArray[np.float32]) -> Iterator[Slice]:
    columns = [feature.name for feature in schema.numeric]
    for name, bands in BANDS.items():
        if name in columns:
            values = numeric[:, columns.index(name)]
            for label, low, high in bands:
                yield Slice(name, label, np.flatnonzero((values >= low) & (values < high)))


def _dates(cutoffs: FloatArray) -> Iterator[Slice]:
    instants = np.unique(cutoffs)
    if len(instants) > 1:
        for instant in instants:
            date = f"{datetime.fromtimestamp(float(instant), UTC):%Y-%m-%d}"
            yield Slice(DATE, date, np.flatnonzero(cutoffs == instant))
