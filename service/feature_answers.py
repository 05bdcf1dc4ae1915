"""What is answered of stored features: for every feature of a release the model's value, the stored one, its age."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import msgspec

from feature_client.clock import to_iso
from feature_client.contract import Contract
from feature_client.schema import Encoded, Feature, FeatureBatch, Override
from service.answers import reports_of
from service.features_protocol import EntityFeatures, FeatureState, ValueStatus


class Looked(msgspec.Struct, frozen=True):
    """What a batch found for one request. as_of: epoch seconds. stages: stage -> seconds.

    stored, encoded: of the whole batch, in which the request's entities begin at `first`.
    """

    as_of: float
    entities: Sequence[dict[str, str]]
    stored: FeatureBatch
    encoded: Encoded
    first: int
    stages: dict[str, float]


class _Place(NamedTuple):
    """Where a feature is in a FeatureBatch. column: of its numbers, or its strings. view: of its event times."""

    feature: Feature
    column: int
    view: int


class FeatureWriter:
    """Writes the features of one release: whatever does not depend on the entity is worked out once."""

    def __init__(self, contract: Contract, version: str) -> None:
        self.schema = schema = contract.schema
        self.version = version
        self.names = [feature.name for feature in schema.features]
        columns = {f.name: at for stored in (schema.stored_numbers, schema.categorical) for at, f in enumerate(stored)}
        self.places = [
            None if feature.view is None else _Place(feature, columns[feature.name], schema.views.index(feature.view))
            for feature in schema.features
        ]

    def write(self, looked: Looked, rows: slice) -> list[EntityFeatures]:
        """rows: of the request's part of the batch."""
        entities = looked.entities[rows]
        part = list(range(looked.first + rows.start, looked.first + rows.start + len(entities)))
        stored, encoded = looked.stored.take(part), looked.encoded.rows(part)
        numbers, strings, times = (columns.tolist() for columns in (stored.numbers, stored.strings, stored.event_times))
        flags = [mask.tolist() for mask in (encoded.overridden, encoded.defaulted, encoded.stale)]
        as_of = to_iso(looked.as_of)
        written = []
        for row, (entity, (status, report)) in enumerate(zip(entities, reports_of(encoded, self.names), strict=True)):
            computed = [(_instant(time), _age(looked.as_of, time)) for time in times[row]]
            states = {}
            of_row = zip(
                self.schema.decode_row(encoded, row).items(), self.places, *(flag[row] for flag in flags), strict=True
            )
            for (name, value), place, is_overridden, is_defaulted, is_stale in of_row:
                if place is None:
                    states[name] = FeatureState(value, "overridden" if is_overridden else "ok")
                    continue
                computed_at, age_s = computed[place.view]
                state = _status(value, age_s, is_overridden=is_overridden, is_defaulted=is_defaulted, is_stale=is_stale)
                held = strings[row][place.column] if place.feature.kind == "category" else numbers[row][place.column]
                states[name] = FeatureState(value, state, _readable(place.feature, held), computed_at, age_s)
            written.append(
                EntityFeatures(
                    entity,
                    self.version,
                    status,
                    as_of,
                    report.age_s,
                    report.defaulted,
                    report.stale,
                    report.overridden,
                    states,
                )
            )
        return written


def _status(
    value: Override, age_s: float | None, *, is_overridden: bool, is_defaulted: bool, is_stale: bool
) -> ValueStatus:
    if is_overridden:
        return "overridden"
    if age_s is None:
        return "missing"
    if is_defaulted:
        return "defaulted"
    if is_stale:
        return "stale"
    return "null" if value is None else "ok"


def _readable(feature: Feature, stored: Override) -> Override:
    if not isinstance(stored, float):
        return stored
    if stored != stored:  # noqa: PLR0124  (NaN, asked a million times)
        return None
    # An instant that no calendar has is an error in the data: its seconds show it.
    return (_instant(stored) or stored) if feature.kind == "elapsed" else stored


def _instant(seconds: float) -> str | None:
    try:
        return to_iso(seconds)
    except (ValueError, OverflowError, OSError):
        return None


def _age(as_of: float, event_time: float) -> float | None:
    return None if math.isnan(event_time) else round(as_of - event_time, 3)
