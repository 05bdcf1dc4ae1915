"""Training rows as arrays, and how features and labels become them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from feature_client.contract import Task, eligible_rows
from feature_client.schema import FeatureBatch, FeatureSchema, FloatArray

VOCABULARY_WORDS = 20
VOCABULARY_MIN_SHARE = 0.002
"""A category enters the vocabulary with at least this share of the training rows; rarer ones count as unseen."""


@dataclass(frozen=True)
class Rows:
    """Model inputs with their labels; one row is one customer at one cutoff."""

    numeric: npt.NDArray[np.float32]  # [rows, N], NaN is missing
    categorical: npt.NDArray[np.int64]  # [rows, K]
    labels: npt.NDArray[np.float32]  # [rows, T]
    eligible: npt.NDArray[np.bool_]  # [rows, T]
    customers: npt.NDArray[np.object_]  # [rows]
    cutoffs: FloatArray  # [rows], epoch seconds

    def __len__(self) -> int:
        return len(self.numeric)


@dataclass(frozen=True)
class Dataset:
    """Everything that training needs; `schema` holds the vocabularies of the training rows."""

    schema: FeatureSchema
    tasks: tuple[Task, ...]
    train: Rows
    validation: Rows
    test: Rows
    about: Mapping[str, str]  # for people: data, windows, cutoffs, rows
    digest: str


def fit_vocabularies(schema: FeatureSchema, batch: FeatureBatch) -> FeatureSchema:
    """The schema with the most frequent words of these (training) rows for each category without a vocabulary."""
    least = max(VOCABULARY_MIN_SHARE * len(batch), 2)
    vocabularies = {}
    for position, feature in enumerate(schema.categorical):
        known = [word for word in batch.strings[:, position] if word is not None]
        words, counts = np.unique(np.array(known, dtype=str), return_counts=True)
        frequent = sorted(zip(-counts, words.tolist(), strict=True))[:VOCABULARY_WORDS]
        vocabularies[feature.name] = feature.vocabulary or [word for count, word in frequent if -count >= least]
    return schema.with_vocabularies(vocabularies)


def make_rows(
    schema: FeatureSchema,
    tasks: Sequence[Task],
    batch: FeatureBatch,
    as_of: FloatArray,
    *,
    labels: npt.NDArray[np.float32],
    customers: npt.NDArray[np.object_],
) -> Rows:
    """Through the very `encode` that serving calls. as_of [rows]: the cutoffs; labels [rows, T]."""
    encoded = schema.encode(batch, as_of)
    eligible = eligible_rows(schema, tasks, encoded.numeric)
    return Rows(encoded.numeric, encoded.categorical, np.array(labels, np.float32), eligible, customers, as_of)
