"""Training rows as arrays, and how features and labels become them."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace

import numpy as np
import numpy.typing as npt

from feature_client.contract import Task, eligible_rows
from feature_client.schema import DAY_S, FeatureBatch, FeatureSchema, FloatArray

BoolArray = npt.NDArray[np.bool_]

HALF_LIFE_DAYS = 180.0
"""Of what a row counts: a season of a year ago still counts a quarter. docs/model-quality.md: what was tried."""

LEAST_EVIDENCE = 0.5
"""A feature that whole cutoffs lack is learned from if every task has it at the cutoffs of this share of its rows."""

CALIBRATING = 3
"""Cutoffs that a model is calibrated on: the newest, because levels drift."""

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
    silence: FloatArray  # [rows], days from the cutoff to the next purchase; infinite where none is known of

    def __len__(self) -> int:
        return len(self.numeric)

    def take(self, rows: npt.NDArray[np.bool_]) -> "Rows":
        """rows: bool [rows]."""
        return Rows(*(getattr(self, field.name)[rows] for field in fields(self)))

    def recency(self) -> npt.NDArray[np.float32]:
        """Weights [rows] that halve every HALF_LIFE_DAYS into the past, of mean 1: customers and seasons drift."""
        weights = 0.5 ** ((self.cutoffs.max() - self.cutoffs) / DAY_S / HALF_LIFE_DAYS)
        return np.asarray(weights / weights.mean(), np.float32)

    def evidenced(self) -> npt.NDArray[np.bool_]:
        """Numeric features [N] that can be learned from: those that customers lack, but not those that cutoffs lack.

        What looks a year back is missing for everybody in a history's first year. Of two tasks that share a trunk, one
        whose labels mature late may then never have seen it, and would make of it whatever the other has learned.
        Rows count alike, however old: whether a few new cutoffs are enough to tell the feature from the season is no
        question of their weight.
        """
        moments, which = np.unique(self.cutoffs, return_inverse=True)
        there = np.stack([~np.isnan(self.numeric[which == place]).all(axis=0) for place in range(len(moments))])
        defined = [self.eligible[:, task] for task in range(self.eligible.shape[1]) if self.eligible[:, task].any()]
        shares = [there[which[rows]].mean(axis=0) for rows in defined]
        if not shares:
            return np.asarray(there.any(axis=0))
        return np.asarray(np.all(np.stack(shares) >= LEAST_EVIDENCE, axis=0))

    def at_newest(self, task: int, cutoffs: int) -> BoolArray:
        """Where the task is eligible [rows], at the last cutoffs of those at which it is for anybody."""
        eligible = self.eligible[:, task]
        return eligible & np.isin(self.cutoffs, np.unique(self.cutoffs[eligible])[-cutoffs:])

    def newest(self, cutoffs: int) -> "Rows":
        """The rows at the last cutoffs of each task, of those at which it is defined for anybody; eligible alike."""
        eligible = np.stack([self.at_newest(task, cutoffs) for task in range(self.eligible.shape[1])], axis=1)
        return replace(self, eligible=eligible).take(np.asarray(eligible.any(axis=1)))


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
    known: Rows | None = None  # of all cutoffs with a label known at the first test cutoff; there alone eligible
    known_at: float = math.inf  # epoch seconds; what came later is not in `known`
    silences: frozenset[int] = frozenset()  # tasks whose label is 1 unless somebody buys within the horizon

    @property
    def fitted(self) -> Rows:
        """What a model is fitted to in the end: everything known, where the data set says what that is."""
        return self.train if self.known is None else self.known


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
    silence: FloatArray,
) -> Rows:
    """Through the very `encode` that serving calls. as_of [rows]: the cutoffs; labels [rows, T]; silence [rows]."""
    encoded = schema.encode(batch, as_of)
    eligible = eligible_rows(schema, tasks, encoded.numeric)
    labels = np.array(labels, np.float32)
    return Rows(encoded.numeric, encoded.categorical, labels, eligible, customers, as_of, silence)
