"""What a release promises: the features it reads, the tasks it answers, and how its reasons are computed."""

import hashlib
import math
from bisect import bisect_left, bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, Literal

import msgspec
import numpy as np
import numpy.typing as npt

from feature_client.errors import RapportError
from feature_client.schema import Encoded, FeatureSchema, SchemaError
from feature_client.texts import TextError

ATOL = RTOL = 1e-5
"""DESIGN.md 3: two answers are equal where |a - b| <= ATOL + RTOL * |b|, at equal batch composition."""

CONTRACT_FORMAT = 3

CONTRACT_KEY = "rapport.contract"
"""Where a graph's metadata and its config.pbtxt hold the digest of their contract."""

ENTITIES_AT_ONCE_KEY = "rapport.entities_at_once"
"""Where the config.pbtxt of an explainer says how many entities its graph explains in one run."""


class ContractError(RapportError):
    """A contract that cannot be read, or that disagrees with itself."""


@dataclass(frozen=True)
class Segment:
    """Scores of at least `at_least` (in the task's unit) are called `name`; the highest matching segment wins."""

    name: str
    at_least: float


@dataclass(frozen=True)
class Eligibility:
    """The task is defined for customers whose `feature` is at most `at_most`; missing values are not eligible."""

    feature: str
    at_most: float


@dataclass(frozen=True)
class Task:
    """One output of the model. unit: `probability`, or a currency code (an amount over the horizon)."""

    name: str
    label: str
    kind: Literal["probability", "amount"]
    unit: str
    horizon_days: int
    segments: tuple[Segment, ...] = ()  # highest first
    eligibility: Eligibility | None = None

    def segment(self, score: float) -> str | None:
        return next((segment.name for segment in self.segments if score >= segment.at_least), None)


@dataclass(frozen=True)
class Errors:
    """Mean |estimate - exact| over mean |exact| of the attributions of each task, on rows that took no part in the fit.

    scores: of attributions in the score's own unit. margins: of those in log-odds, and logarithms of amounts.
    shifted: of `scores` again, on rows whose features were shuffled among customers: no customer is like them.
    """

    scores: Mapping[str, float]
    margins: Mapping[str, float]
    shifted: Mapping[str, float]


NETWORK_ROWS_AT_ONCE = 4_096
"""Rows of the network in one run of an explanation graph, which works on many for each entity: more at once are no
faster (cost grows with rows), but hold memory, and nobody else's explanation starts before the run is over."""


@dataclass(frozen=True)
class Explainer:
    """One explanation graph of a release. method: what computes its attributions, as in `shapley-fitted-64`.

    rows: how many rows of the network one explained customer costs. by_feature: attributions are of single features,
    in the order of the schema, and not of groups. bound: of its errors in scores and in margins; what errs more is not
    released.
    """

    method: str
    rows: int
    error: Errors
    by_feature: bool = False
    bound: float = 1.0

    @property
    def entities_at_once(self) -> int:
        """How many are explained in one run, on CPUs: larger batches are cut."""
        return max(NETWORK_ROWS_AT_ONCE // max(self.rows, 1), 1)


BY_FEATURE = "features"
"""The explainer whose attributions are of single features."""


@dataclass(frozen=True)
class Importance:
    """Mean |contribution| over a sample of customers, in the score's own unit. task -> group, or feature -> mean.

    rows: of the sample; a mean is over those for whom the task is defined. groups: by the explainer GROUPS_BY,
    features: by FEATURES_BY; empty where the release has no figures.
    """

    GROUPS_BY: ClassVar = "precise"
    FEATURES_BY: ClassVar = BY_FEATURE

    rows: int
    groups: Mapping[str, Mapping[str, float]]
    features: Mapping[str, Mapping[str, float]]


EXPLAINERS = ("fast", "precise", "exact", BY_FEATURE)
"""What explanation graphs are called. The first is what answers where nothing else is asked for."""


@dataclass(frozen=True)
class Explanation:
    """How scores are explained: interventional Shapley values of feature groups, against weighted background rows.

    base, margin_base: mean score, and mean margin, of the background, per task. explainers: by name, a graph each.
    """

    background_rows: int
    base: Mapping[str, float]
    margin_base: Mapping[str, float]
    explainers: Mapping[str, Explainer]
    importance: Importance


LARGEST = float(np.finfo(np.float32).max)


@dataclass(frozen=True)
class Distribution:
    """Reference values of one feature in the training rows. quantiles: at 0, 0.05, ..., 1 (numbers only)."""

    missing_share: float
    quantiles: tuple[float, ...] = ()
    shares: Mapping[str, float] | None = None  # categories only

    def __post_init__(self) -> None:
        within = all(abs(number) <= LARGEST for number in self.quantiles)  # never true of NaN
        if not within or list(self.quantiles) != sorted(self.quantiles):
            raise ContractError("quantiles are float32 numbers, the smallest first")

    def percentile(self, value: float) -> float | None:
        """How many of 100 rows that have a number have a smaller one, in tenths, interpolated between the quantiles.

        Of a number that many rows share, the middle of theirs: where 40 % have nothing, nothing is at 20. Null without
        a reference.
        """
        quantiles = self.quantiles
        steps = len(quantiles) - 1
        if steps < 1:
            return None
        first = bisect_left(quantiles, value)
        after = bisect_right(quantiles, value, first)
        if first < after:
            place = (first + after - 1) / 2
        elif 0 < first <= steps:
            below = quantiles[first - 1]
            place = first - 1 + (value - below) / (quantiles[first] - below)
        else:
            place = min(first, steps)
        return round(100 * place / steps, 1)


@dataclass(frozen=True)
class Contract:
    """Travels in a release as contract.json; holds no hash of the graphs, whose metadata hold its digest."""

    model: str
    schema: FeatureSchema
    tasks: tuple[Task, ...]
    explanation: Explanation
    reference: Mapping[str, Distribution]
    training: Mapping[str, str]  # window, cutoffs, rows
    metrics: Mapping[str, Mapping[str, float]]  # task -> metric -> value on the test cutoffs
    digests: Mapping[str, str]  # data, code
    format: int = CONTRACT_FORMAT

    def __post_init__(self) -> None:
        if self.format != CONTRACT_FORMAT:
            raise ContractError(f"contract format {self.format}; this version reads format {CONTRACT_FORMAT}")
        self._check_explanation()
        self._check_parts()
        for task in self.tasks:
            thresholds = [segment.at_least for segment in task.segments]
            if thresholds != sorted(thresholds, reverse=True):
                raise ContractError(f"{task.name}: its segments are not named from the highest to the lowest")
            if task.eligibility and task.eligibility.feature not in {f.name for f in self.schema.numeric}:
                raise ContractError(f"{task.name}: eligibility by unknown feature {task.eligibility.feature}")

    def _check_explanation(self) -> None:
        names = tuple(self.explanation.explainers)
        if names[:1] != EXPLAINERS[:1] or not set(names) <= set(EXPLAINERS):
            raise ContractError(f"explainers are some of {', '.join(EXPLAINERS)}, the first of them always and first")
        for task in self.tasks:
            for promised in (self.explanation.base, self.explanation.margin_base):
                if not math.isfinite(promised.get(task.name, math.nan)):
                    raise ContractError(f"{task.name}: the explanation says no base")
            for name, explainer in self.explanation.explainers.items():
                error = explainer.error
                for stated in (error.scores, error.margins, error.shifted):
                    if not 0 <= stated.get(task.name, math.nan) < math.inf:  # never true of NaN
                        raise ContractError(f"{task.name}: the explainer {name} says no error")
                if not max(error.scores[task.name], error.margins[task.name]) <= explainer.bound:
                    raise ContractError(f"{task.name}: the explainer {name} errs more than its bound")

    def _check_parts(self) -> None:
        """What attributions and importance are of."""
        for name, explainer in self.explanation.explainers.items():
            if explainer.by_feature != (name == BY_FEATURE):
                raise ContractError(f"{BY_FEATURE} explains by feature, and no other explainer: not {name}")
        importance = self.explanation.importance
        features = [feature.name for feature in self.schema.features]
        for figures, known in ((importance.groups, list(self.schema.groups)), (importance.features, features)):
            for task_name, means in figures.items():
                if unknown := sorted(means.keys() - set(known)):
                    raise ContractError(f"{task_name}: importance of what is not explained: {', '.join(unknown[:3])}")
                if not all(0 <= mean < math.inf for mean in means.values()):
                    raise ContractError(f"{task_name}: importance is a mean of sizes")

    def to_json(self) -> bytes:
        return msgspec.json.format(self._canonical, indent=1)

    @classmethod
    def from_json(cls, data: bytes) -> "Contract":
        """Raises ContractError on anything that is not a contract of this format."""
        try:
            return msgspec.json.decode(data, type=cls)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, SchemaError, TextError) as exc:
            raise ContractError(f"not a contract: {exc}") from exc

    @cached_property
    def digest(self) -> str:
        """SHA-256 over content, not over formatting."""
        return hashlib.sha256(self._canonical).hexdigest()

    @cached_property
    def _canonical(self) -> bytes:
        # In the order of the mappings themselves, which JSON keeps: sorted keys would lose the order of the groups,
        # and with it which column of the attributions is whose.
        return msgspec.json.encode(self)

    @cached_property
    def task_names(self) -> tuple[str, ...]:
        """Columns of the `scores` tensor."""
        return tuple(task.name for task in self.tasks)

    def outputs(self, rows: int, explainer: str | None) -> dict[str, tuple[int, ...]]:
        """Output -> shape, for that many rows, of the score graph (None) or of an explainer's graph."""
        tasks = len(self.tasks)
        scores: dict[str, tuple[int, ...]] = {"scores": (rows, tasks)}
        if explainer is None:
            return scores
        by_feature = self.explanation.explainers[explainer].by_feature
        parts = len(self.schema.features if by_feature else self.schema.groups)
        return {
            **scores,
            "attributions": (rows, tasks, parts),
            "base": (rows, tasks),
            "margins": (rows, tasks),
            "margin_attributions": (rows, tasks, parts),
            "margin_base": (rows, tasks),
        }

    def eligible(self, encoded: Encoded) -> npt.NDArray[np.bool_]:
        """Which tasks are defined for which rows: [rows, tasks]."""
        return eligible_rows(self.schema, self.tasks, encoded.numeric)


def eligible_rows(
    schema: FeatureSchema, tasks: Sequence[Task], numeric: npt.NDArray[np.float32]
) -> npt.NDArray[np.bool_]:
    """Which tasks are defined for which rows of the `numeric` tensor: [rows, tasks]. Training and serving call it."""
    eligible = np.ones((len(numeric), len(tasks)), dtype=bool)
    columns = [feature.name for feature in schema.numeric]
    for position, task in enumerate(tasks):
        if task.eligibility is not None:
            values = numeric[:, columns.index(task.eligibility.feature)]
            eligible[:, position] = values <= task.eligibility.at_most  # false for NaN
    return eligible


def discrepancy(actual: npt.ArrayLike, expected: npt.ArrayLike, scale: npt.ArrayLike = 0.0) -> npt.NDArray[np.float64]:
    """|a - b| in units of what DESIGN.md 3 allows: two answers are equal where it is at most 1, which NaN never is.

    scale: the size of the whole that the compared value is a part of, for values that are differences of larger ones
    (`attribution_scale`): float32 cannot resolve a part below the rounding of its whole.
    """
    expected = np.asarray(expected, dtype=np.float64)
    difference = np.abs(np.asarray(actual, dtype=np.float64) - expected)
    return np.asarray(difference / (ATOL + RTOL * np.maximum(np.abs(expected), scale)))


def attribution_scale(attributions: npt.ArrayLike, base: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """attributions [B, T, G], base [B, T] -> [B, T, 1]: the size of what is split up, an upper bound of the score."""
    parts = np.abs(np.asarray(attributions, dtype=np.float64)).sum(axis=-1, keepdims=True)
    return np.asarray(parts + np.abs(np.asarray(base, dtype=np.float64))[..., None])
