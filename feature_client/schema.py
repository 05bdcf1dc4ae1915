"""What a model reads: its features, where each is stored, and how stored values become input tensors.

A `FeatureSchema` is compiled from the Feast registry (`offline/registry.py`), travels inside every release, and is
the only place where training and serving turn values into tensors: both call `FeatureSchema.encode`.
"""

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from dataclasses import field as dataclass_field
from functools import cached_property
from typing import Any, Literal

import msgspec
import numpy as np
import numpy.typing as npt

from feature_client.errors import RapportError
from feature_client.texts import ENGLISH, Texts

FloatArray = npt.NDArray[np.float64]
BoolArray = npt.NDArray[np.bool_]
Override = float | str | None

Kind = Literal["numeric", "category", "elapsed", "calendar"]
"""numeric: stored number. category: stored string. elapsed: days from a stored timestamp to `as_of`.
calendar: not stored, computed from `as_of` alone."""

DAY_S = 86_400.0
YEAR_S = 365.2425 * DAY_S
MISSING, UNSEEN = 0, 1
"""Category indices in front of the vocabulary."""
MOST_LANGUAGES = 32
"""A gateway puts every category into words in each of them when it loads a release."""
UNSEEN_WORD = "(unseen)"
"""What stands for a category that is not in the vocabulary, wherever people read."""

CLOCK_TOLERANCE_S = 60.0
"""How far a writer's clock may run ahead of ours before its rows count as dated in the future."""

CALENDAR = {
    "season_sin": lambda seconds: np.sin(2 * np.pi * seconds / YEAR_S),
    "season_cos": lambda seconds: np.cos(2 * np.pi * seconds / YEAR_S),
}


class SchemaError(RapportError):
    """A declaration that cannot be served; the message names the feature."""


class OverrideError(ValueError):
    """A request-time value that the schema does not know or cannot hold.

    `row` is the position of the entity; the message names the feature only when it is one of ours.
    """

    def __init__(self, message: str, row: int) -> None:
        super().__init__(message)
        self.row = row


@dataclass(frozen=True)
class Feature:
    """One input of the model.

    `field` is the stored Feast field (null for calendar features). `default` is what the graph puts in place of a
    missing number; categories have index 0 for that. `max_age_s` and `on_stale` rule freshness online.
    `actionable`: somebody can bring it about that the value changes, so what-if may propose it.
    """

    name: str
    kind: Kind
    group: str
    label: str
    unit: str = ""
    view: str | None = None
    field: str | None = None
    dtype: str | None = None
    default: float | None = None
    nullable: bool = False
    max_age_s: float | None = None
    on_stale: Literal["use", "default"] = "use"
    vocabulary: tuple[str, ...] = ()
    actionable: bool = False


@dataclass(frozen=True)
class JoinKey:
    """One part of the entity id, with the type under which Feast stores it."""

    name: str
    dtype: Literal["string", "int64", "int32"] = "string"


@dataclass(frozen=True)
class FeatureBatch:
    """What the store holds for some entities, column-wise, before any rule of the schema is applied.

    numbers: float64 [rows, stored numbers and timestamps], timestamps in epoch seconds, NaN where missing.
    strings: object  [rows, stored categories], None where missing.
    event_times: float64 [rows, views], epoch seconds at which the row was computed, NaN where the view has no row.
    corrupt: (row, feature name) of values that are there but cannot be read; they count as missing.
    refused: row -> why what the store answered for it cannot be used; such a row must not become a score.
    """

    numbers: FloatArray
    strings: npt.NDArray[np.object_]
    event_times: FloatArray
    corrupt: frozenset[tuple[int, str]] = frozenset()
    refused: Mapping[int, str] = dataclass_field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.event_times)

    def take(self, rows: Sequence[int]) -> "FeatureBatch":
        """These rows, in this order; each at most once."""
        places = {row: place for place, row in enumerate(rows)}
        return FeatureBatch(
            self.numbers[rows],
            self.strings[rows],
            self.event_times[rows],
            frozenset((places[row], name) for row, name in self.corrupt if row in places),
            {places[row]: why for row, why in self.refused.items() if row in places},
        )

    def refusal(self, rows: slice) -> str | None:
        """Why these rows cannot be scored; None where they can."""
        return next((reason for row, reason in self.refused.items() if rows.start <= row < rows.stop), None)

    @classmethod
    def join(cls, parts: Sequence["FeatureBatch"]) -> "FeatureBatch":
        """The rows of all parts, one after the other."""
        starts = np.cumsum([0, *(len(part) for part in parts)]).tolist()
        return cls(
            np.concatenate([part.numbers for part in parts]),
            np.concatenate([part.strings for part in parts]),
            np.concatenate([part.event_times for part in parts]),
            frozenset(
                (start + row, name) for start, part in zip(starts, parts, strict=False) for row, name in part.corrupt
            ),
            {start + row: why for start, part in zip(starts, parts, strict=False) for row, why in part.refused.items()},
        )


@dataclass(frozen=True)
class Encoded:
    """Input tensors with what must be said about them. Masks are [rows, features] in the order of the schema."""

    numeric: npt.NDArray[np.float32]  # [rows, numeric features]
    categorical: npt.NDArray[np.int64]  # [rows, category features]
    defaulted: BoolArray
    stale: BoolArray
    overridden: BoolArray
    unknown: BoolArray  # [rows]: no view has a row for the entity
    age_s: FloatArray  # [rows]: age of the oldest view read, NaN for unknown entities

    @property
    def tensors(self) -> dict[str, npt.NDArray[Any]]:
        return {"numeric": self.numeric, "categorical": self.categorical}

    def rows(self, rows: slice | Sequence[int]) -> "Encoded":
        return Encoded(**{field.name: getattr(self, field.name)[rows] for field in fields(self)})

    def __len__(self) -> int:
        return len(self.numeric)


@dataclass(frozen=True)
class FeatureSchema:
    """The features of one model, in the order of its input tensors.

    `entity_fields` maps a view to its stored copy of the entity id, which readers compare. `join_keys` maps a view to
    the names of its join keys where these are not all of `entity`: a model may read customers and shops. `texts` are
    what is said about features in each language.
    """

    project: str
    entity: tuple[JoinKey, ...]
    features: tuple[Feature, ...]
    entity_fields: Mapping[str, str]
    groups: Mapping[str, str]  # group -> label, in display order
    join_keys: Mapping[str, tuple[str, ...]] = dataclass_field(default_factory=dict)
    texts: Mapping[str, Texts] = dataclass_field(default_factory=lambda: {ENGLISH: Texts()})

    def __post_init__(self) -> None:
        names = [feature.name for feature in self.features]
        if duplicates := sorted({name for name in names if names.count(name) > 1}):
            raise SchemaError(f"declared twice: {', '.join(duplicates)}")
        for feature in self.features:
            _check(feature, self.groups)
        entity = {key.name for key in self.entity}
        for view, keys in self.join_keys.items():
            if not keys or not entity.issuperset(keys):
                raise SchemaError(f"{view}: its join keys are not among {', '.join(sorted(entity))}")
        if ENGLISH not in self.texts:
            raise SchemaError(f"texts: {ENGLISH} is always there")
        if len(self.texts) > MOST_LANGUAGES:
            raise SchemaError(f"texts in {len(self.texts):,} languages; there may be {MOST_LANGUAGES}")
        for language, texts in self.texts.items():
            if unknown := sorted(texts.features.keys() - set(names)):
                raise SchemaError(f"texts in {language} of unknown features: {', '.join(unknown)}")

    @cached_property
    def digest(self) -> str:
        # In the order of the mappings themselves: the order of the groups is part of what a schema says.
        return hashlib.sha256(msgspec.json.encode(self)).hexdigest()

    @cached_property
    def views(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(feature.view for feature in self.features if feature.view is not None))

    def join_keys_of(self, view: str) -> tuple[str, ...]:
        """Sorted, as Feast sorts them."""
        return tuple(sorted(self.join_keys.get(view) or (key.name for key in self.entity)))

    @cached_property
    def stored_numbers(self) -> tuple[Feature, ...]:
        return tuple(feature for feature in self.features if feature.kind in ("numeric", "elapsed"))

    @cached_property
    def numeric(self) -> tuple[Feature, ...]:
        """Columns of the `numeric` tensor."""
        return tuple(feature for feature in self.features if feature.kind != "category")

    @cached_property
    def categorical(self) -> tuple[Feature, ...]:
        """Columns of the `categorical` tensor."""
        return tuple(feature for feature in self.features if feature.kind == "category")

    @cached_property
    def by_name(self) -> Mapping[str, Feature]:
        return {feature.name: feature for feature in self.features}

    def with_vocabularies(self, vocabularies: Mapping[str, Sequence[str]]) -> "FeatureSchema":
        """The schema with the categories seen in training; features not named keep theirs."""
        if unknown := sorted(set(vocabularies) - {feature.name for feature in self.categorical}):
            raise SchemaError(f"not categories: {', '.join(unknown)}")
        return replace(
            self,
            features=tuple(
                replace(feature, vocabulary=tuple(vocabularies.get(feature.name, feature.vocabulary)))
                for feature in self.features
            ),
        )

    def batch(self, columns: Mapping[str, Any], event_times: FloatArray) -> FeatureBatch:
        """A FeatureBatch from columns of stored fields: what training reads from Feast's historical join.

        Numbers and timestamps (epoch seconds) as anything NumPy turns into float64; categories as sequences of
        str or None. event_times: [rows, views].
        """
        rows = len(event_times)
        numbers = np.full((rows, len(self.stored_numbers)), np.nan)
        for position, feature in enumerate(self.stored_numbers):
            numbers[:, position] = np.asarray(columns[_field(feature)], dtype=np.float64)
        strings = np.full((rows, len(self.categorical)), None, dtype=object)
        for position, feature in enumerate(self.categorical):
            strings[:, position] = columns[_field(feature)]
        return FeatureBatch(numbers, strings, event_times)

    def encode(
        self,
        batch: FeatureBatch,
        as_of: float | FloatArray,
        overrides: Sequence[Mapping[str, Override]] | None = None,
    ) -> Encoded:
        """Stored values to input tensors, with the freshness rules and the request's own values applied.

        as_of: epoch seconds, one for all rows or one a row ([rows]). overrides: one mapping a row, feature name ->
        value in the feature's unit (null: as if missing). Raises OverrideError.
        """
        rows = len(batch)
        # One instant, or one a row: [rows, 1].
        instant = as_of if isinstance(as_of, float) else np.asarray(as_of, dtype=np.float64).reshape(-1, 1)
        age = instant - batch.event_times  # [rows, views]
        nothing: BoolArray = np.zeros((rows, len(self.features)), dtype=bool)
        # NaN (no row) compares false both ways: an absent view is missing, not stale.
        fresh = bool(((age <= self._youngest_max_age) & (age >= -CLOCK_TOLERANCE_S)).all())
        stale: BoolArray = nothing if fresh else self._stale(age)
        drop = nothing if fresh else stale & self._dropped_when_stale

        numeric, not_a_number = self._numeric(batch, instant)
        categorical = self._categorical(batch)
        # A number that is there but no input (beyond float32, an event after `as_of`) is no null, nullable or not.
        unusable = np.count_nonzero(not_a_number) > np.count_nonzero(np.isnan(batch.numbers))
        missing = np.empty_like(nothing)
        missing[:, self._numeric_at] = not_a_number
        missing[:, self._categorical_at] = categorical == MISSING
        defaulted = missing & self._not_nullable
        if unusable:
            defaulted[:, self._stored_numbers_at] |= missing[:, self._stored_numbers_at] & ~np.isnan(batch.numbers)
        absent = np.isnan(batch.event_times)
        if not fresh:
            numeric[drop[:, self._numeric_at]] = np.nan
            categorical[drop[:, self._categorical_at]] = MISSING
            # A null of a nullable feature means something only where the view has a row.
            defaulted[:, self._stored_at] |= missing[:, self._stored_at] & absent[:, self._view_of]
            defaulted &= ~drop
        for row, name in batch.corrupt:
            defaulted[row, self._position[name]] = not drop[row, self._position[name]]

        overridden = nothing
        if overrides is not None and any(overrides):
            overridden = nothing.copy()
            self._apply(overrides, numeric, categorical, overridden)
            defaulted[overridden] = stale[overridden] = False
        unknown: BoolArray = np.all(absent, axis=1)
        known_age = (age if fresh else np.where(absent, -np.inf, age)).max(axis=1, initial=-np.inf)
        return Encoded(
            numeric=numeric,
            categorical=categorical,
            defaulted=defaulted,
            stale=stale,
            overridden=overridden,
            unknown=unknown,
            age_s=np.where(unknown, np.nan, known_age),
        )

    def check_overrides(self, overrides: Sequence[Mapping[str, Override]]) -> None:
        """Raises OverrideError where `encode` would: for one request, before it joins others in a batch."""
        for row, values in enumerate(overrides):
            for name, value in values.items():
                self._override(name, value, row)

    def vary(self, encoded: Encoded, variations: Sequence[Mapping[str, Override]]) -> Encoded:
        """The one row of `encoded` once for each variation, with these values in place, as `encode` puts overrides.

        Raises OverrideError.
        """
        varied = encoded.rows([0] * len(variations))
        self._apply(variations, varied.numeric, varied.categorical, varied.overridden)
        varied.defaulted[varied.overridden] = varied.stale[varied.overridden] = False
        return varied

    def decode_row(self, encoded: Encoded, row: int) -> dict[str, float | str | None]:
        """The model's inputs of one row by name, readable: categories as their text, missing as None."""
        numbers = [None if math.isnan(number) else number for number in encoded.numeric[row].tolist()]
        indices = encoded.categorical[row].tolist()
        words = [known[index] for known, index in zip(self._words, indices, strict=True)]
        inputs = [*numbers, *words]
        return {name: inputs[column] for name, column in self._readable}

    @cached_property
    def _numeric_at(self) -> list[int]:
        return [i for i, feature in enumerate(self.features) if feature.kind != "category"]

    @cached_property
    def _stored_numbers_at(self) -> list[int]:
        return [i for i, feature in enumerate(self.features) if feature.kind in ("numeric", "elapsed")]

    @cached_property
    def _categorical_at(self) -> list[int]:
        return [i for i, feature in enumerate(self.features) if feature.kind == "category"]

    @cached_property
    def _index(self) -> Mapping[str, Mapping[str, int]]:
        return {
            feature.name: {word: position + 2 for position, word in enumerate(feature.vocabulary)}
            for feature in self.categorical
        }

    @cached_property
    def _input_column(self) -> Mapping[str, int]:
        return {feature.name: i for inputs in (self.numeric, self.categorical) for i, feature in enumerate(inputs)}

    @cached_property
    def _stored_at(self) -> list[int]:
        return [i for i, feature in enumerate(self.features) if feature.view is not None]

    @cached_property
    def _view_of(self) -> list[int]:
        """Of each stored feature, its view."""
        return [self.views.index(str(self.features[i].view)) for i in self._stored_at]

    @cached_property
    def _max_age(self) -> FloatArray:
        """Of each stored feature."""
        max_ages = [self.features[i].max_age_s for i in self._stored_at]
        return np.array([np.inf if max_age is None else max_age for max_age in max_ages])

    @cached_property
    def _youngest_max_age(self) -> FloatArray:
        """Of each view: where no row is older, nothing is stale."""
        youngest = np.full(len(self.views), np.inf)
        np.minimum.at(youngest, self._view_of, self._max_age)
        return youngest

    @cached_property
    def _dropped_when_stale(self) -> BoolArray:
        return np.array([feature.on_stale == "default" for feature in self.features], dtype=bool)

    @cached_property
    def _not_nullable(self) -> BoolArray:
        return np.array([not feature.nullable for feature in self.features], dtype=bool)

    @cached_property
    def _sources(self) -> Mapping[str, tuple[list[int], list[int]]]:
        """Kind of number -> its columns in the stored numbers, and in the `numeric` tensor."""
        stored = {feature.name: column for column, feature in enumerate(self.stored_numbers)}
        columns: dict[str, tuple[list[int], list[int]]] = {"numeric": ([], []), "elapsed": ([], [])}
        for position, feature in enumerate(self.numeric):
            if feature.kind in columns:
                columns[feature.kind][0].append(stored[feature.name])
                columns[feature.kind][1].append(position)
        return columns

    @cached_property
    def _calendar(self) -> list[tuple[int, str]]:
        return [(position, feature.name) for position, feature in enumerate(self.numeric) if feature.kind == "calendar"]

    def _stale(self, age: FloatArray) -> BoolArray:
        """age: [rows, views]."""
        stale = np.zeros((len(age), len(self.features)), dtype=bool)
        of_feature = age[:, self._view_of]
        stale[:, self._stored_at] = (of_feature > self._max_age) | (of_feature < -CLOCK_TOLERANCE_S)
        return stale

    def _numeric(self, batch: FeatureBatch, instant: float | FloatArray) -> tuple[npt.NDArray[np.float32], BoolArray]:
        """The tensor, NaN where there is no number, and where that is."""
        columns = np.empty((len(batch), len(self.numeric)), dtype=np.float64)
        source, target = self._sources["numeric"]
        columns[:, target] = batch.numbers[:, source]
        source, target = self._sources["elapsed"]
        if target:
            seconds = instant - batch.numbers[:, source]
            # Later than `as_of` beyond what clocks may differ is an error in the data, not a fresh event.
            columns[:, target] = np.where(seconds < -CLOCK_TOLERANCE_S, np.nan, np.maximum(seconds, 0.0) / DAY_S)
        for position, name in self._calendar:
            columns[:, position] = CALENDAR[name](instant if isinstance(instant, float) else instant[:, 0])
        with np.errstate(over="ignore"):
            numeric = columns.astype(np.float32)
        not_a_number = ~np.isfinite(numeric)
        numeric[not_a_number] = np.nan
        return numeric, not_a_number

    def _categorical(self, batch: FeatureBatch) -> npt.NDArray[np.int64]:
        indices = np.empty((len(batch), len(self.categorical)), dtype=np.int64)
        for position, feature in enumerate(self.categorical):
            index = self._index[feature.name]
            indices[:, position] = [
                MISSING if word is None else index.get(word, UNSEEN) for word in batch.strings[:, position].tolist()
            ]
        return indices

    def _apply(
        self,
        overrides: Sequence[Mapping[str, Override]],
        numeric: npt.NDArray[np.float32],
        categorical: npt.NDArray[np.int64],
        overridden: BoolArray,
    ) -> None:
        for row, values in enumerate(overrides):
            for name, value in values.items():
                encoded = self._override(name, value, row)
                matrix = categorical if isinstance(encoded, int) else numeric
                matrix[row, self._input_column[name]] = encoded
                overridden[row, self._position[name]] = True

    def _override(self, name: str, value: Override, row: int) -> int | float:
        """The tensor's value: int for a category, float for a number."""
        feature = self.by_name.get(name)
        if feature is None:
            raise OverrideError("not a feature of this model", row)
        if feature.kind != "category":
            return _number_override(feature, value, row)
        if value is None:
            return MISSING
        if not isinstance(value, str):
            raise OverrideError(f"{feature.name} takes a string or null", row)
        return self._index[feature.name].get(value, UNSEEN)

    @cached_property
    def _position(self) -> Mapping[str, int]:
        return {feature.name: position for position, feature in enumerate(self.features)}

    @cached_property
    def _words(self) -> Sequence[Sequence[str | None]]:
        """Of each category, what its indices stand for."""
        return [(None, UNSEEN_WORD, *feature.vocabulary) for feature in self.categorical]

    @cached_property
    def _readable(self) -> Sequence[tuple[str, int]]:
        """Names in the order of the features, with where they are among the numbers followed by the categories."""
        inputs = [feature.name for feature in (*self.numeric, *self.categorical)]
        return [(feature.name, inputs.index(feature.name)) for feature in self.features]


def _number_override(feature: Feature, value: Override, row: int) -> float:
    if value is None:
        return float("nan")
    if isinstance(value, bool | str):
        raise OverrideError(f"{feature.name} takes a number or null", row)
    if not abs(value) <= float(np.finfo(np.float32).max):
        raise OverrideError(f"{feature.name} does not fit into float32", row)
    return float(value)


def _field(feature: Feature) -> str:
    if feature.field is None:
        raise SchemaError(f"{feature.name} is not stored")
    return feature.field


def _check(feature: Feature, groups: Mapping[str, str]) -> None:
    if feature.group not in groups:
        raise SchemaError(f"{feature.name}: group {feature.group!r} has no label")
    if feature.kind == "calendar":
        if feature.name not in CALENDAR:
            raise SchemaError(f"{feature.name}: calendar features are {', '.join(CALENDAR)}")
        return
    if feature.view is None or feature.field is None or feature.dtype is None:
        raise SchemaError(f"{feature.name}: a stored feature needs view, field and dtype")
    if feature.kind != "category" and feature.default is None and not feature.nullable:
        raise SchemaError(f"{feature.name}: a number that may not be null needs a default")
