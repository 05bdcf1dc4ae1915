"""What to read for a schema, computed once: everything of a read but the entity values is constant."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from feature_client.online import wire
from feature_client.schema import Feature, FeatureSchema, JoinKey, SchemaError

MAX_ID_BYTES = 512
"""UTF-8 bytes of one entity id. Nobody's customer id is longer; keys and memory stay bounded."""

MAX_DIGITS = 20
"""Characters of a whole number: none of 64 bits is longer with its sign."""

INTEGER_RANGES = {"int64": range(-(1 << 63), 1 << 63), "int32": range(-(1 << 31), 1 << 31)}

STORED_AS = {
    "numeric": ("float64", "float32", "int64", "int32", "bool"),
    "category": ("string",),
    "elapsed": ("timestamp",),
}
"""Kind of feature -> how it may be stored. Lists, maps and bytes are no model inputs."""

Entity = Mapping[str, str]
"""Join key -> value, as the request wrote it: {"customer_id": "17850"}."""


class EntityError(ValueError):
    """An entity id that cannot be a key of this model. `row` is its position; the message never echoes the value."""

    def __init__(self, message: str, row: int) -> None:
        super().__init__(message)
        self.row = row


class EntityKey(NamedTuple):
    """An entity as the store knows it. values: in the order of the plan's join keys, whole numbers as such."""

    redis_key: bytes
    values: tuple[str | int, ...]


@dataclass(frozen=True)
class Column:
    """One stored feature. at: its position in a reply. index: its column in the batch's numbers, or its strings."""

    feature: Feature
    at: int
    index: int


@dataclass(frozen=True)
class ViewColumns:
    """What belongs to one view. time_at, id_at: positions in a reply; id_at is None where rows hold no entity id."""

    time_at: int
    id_at: int | None
    columns: tuple[Column, ...]


class ReadPlan:
    """One hash an entity: all views have the same join keys, so one reply holds everything.

    names: (view, field) of the values in a reply; behind them come the event times of `schema.views`.
    fields: what a reply holds, by its names in Redis. views: in the order of `schema.views`.
    Raises SchemaError for what cannot be read.
    """

    def __init__(self, schema: FeatureSchema) -> None:
        self.schema = schema
        self.join_keys = tuple(sorted(schema.entity, key=lambda key: key.name))  # Feast's order
        columns = [
            Column(feature, at, index)
            for at, (index, feature) in enumerate((*enumerate(schema.stored_numbers), *enumerate(schema.categorical)))
        ]
        copies = {view: schema.entity_fields[view] for view in schema.views if view in schema.entity_fields}
        if copies and len(self.join_keys) != 1:
            raise SchemaError(f"{', '.join(copies)}: rows can hold the entity id only where it is one join key")
        self.names = (*(_stored_name(column.feature) for column in columns), *copies.items())
        _refuse_collisions(self.names)
        self.fields = (
            *(wire.value_name(view, field) for view, field in self.names),
            *(wire.event_time_name(view) for view in schema.views),
        )
        id_at = {view: at for at, view in enumerate(copies, start=len(columns))}
        self.views = tuple(
            ViewColumns(time_at, id_at.get(view), tuple(column for column in columns if column.feature.view == view))
            for time_at, view in enumerate(schema.views, start=len(self.names))
        )
        self._key_names = [key.name for key in self.join_keys]
        self._key_head = wire.entity_key_head(self._key_names)
        self._key_tail = schema.project.encode()

    def keys(self, entities: Sequence[Entity]) -> list[EntityKey]:
        """Where the store holds each entity. Raises EntityError."""
        keys = []
        for row, entity in enumerate(entities):
            if entity.keys() != set(self._key_names):
                raise EntityError(f"an entity of this model has exactly: {', '.join(self._key_names)}", row)
            values = tuple(_value(key, entity[key.name], row) for key in self.join_keys)
            parts = (wire.entity_value(value, key.dtype) for key, value in zip(self.join_keys, values, strict=True))
            keys.append(EntityKey(self._key_head + b"".join(parts) + self._key_tail, values))
        return keys


def _stored_name(feature: Feature) -> tuple[str, str]:
    if feature.view is None or feature.field is None or feature.dtype not in STORED_AS[feature.kind]:
        allowed = ", ".join(STORED_AS[feature.kind])
        raise SchemaError(
            f"{feature.name}: {feature.dtype} is no {feature.kind} input of a model; store it as {allowed}"
        )
    return feature.view, feature.field


def _refuse_collisions(names: Sequence[tuple[str, str]]) -> None:
    """Feast names a value by 4 bytes of hash: two that share them overwrite each other."""
    named: defaultdict[bytes, set[str]] = defaultdict(set)
    for view, field in names:
        named[wire.value_name(view, field)].add(f"{view}:{field}")
    for same in named.values():
        if len(same) > 1:
            raise SchemaError(f"{' and '.join(sorted(same))} share one field in Feast's Redis layout: rename one")


def _value(key: JoinKey, text: str, row: int) -> str | int:
    """Coerced as Feast coerces it, less what only looks like a number: "1_000", " 7", other alphabets' digits."""
    if key.dtype == "string":
        try:
            size = len(text.encode())
        except UnicodeEncodeError:  # a lone surrogate
            size = 0
        if not 1 <= size <= MAX_ID_BYTES:
            raise EntityError(f"{key.name} takes 1 to {MAX_ID_BYTES} bytes of valid UTF-8", row)
        return text
    digits = text.removeprefix("-")
    number = int(text) if len(text) <= MAX_DIGITS and digits.isascii() and digits.isdigit() else None
    if number is None or number not in INTEGER_RANGES[key.dtype]:
        raise EntityError(f"{key.name} takes a whole number ({key.dtype}), as a string", row)
    return number
