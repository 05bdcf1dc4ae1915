"""What to read for a schema, computed once: everything of a read but the entity values is constant."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

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
    """An entity as the store knows it, a part for each hash of the plan.

    redis_keys: where its rows are. owners: its id as a row that holds a copy of it stores it; b"" where none does.
    values: in the order of the plan's join keys, whole numbers as such.
    """

    redis_keys: tuple[bytes, ...]
    owners: tuple[bytes, ...]
    values: tuple[str | int, ...]


@dataclass(frozen=True)
class Column:
    """One stored feature. at: its position in a reply. index: its column in the batch's numbers, or its strings."""

    feature: Feature
    at: int
    index: int


@dataclass(frozen=True)
class ViewColumns:
    """What belongs to one view. time_at, id_at: positions in a reply; id_at is None where rows hold no entity id.

    index: the view's column in the batch's event times.
    """

    name: str
    index: int
    time_at: int
    id_at: int | None
    columns: tuple[Column, ...]


@dataclass(frozen=True)
class Block:
    """Neighbours in a reply that are stored alike. index: their columns in the batch's numbers, or its strings."""

    dtype: str
    at: slice
    index: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Hash:
    """What one Redis hash holds for an entity: all views with the same join keys, read by one command.

    key_positions: its join keys among the plan's. names: (view, field) of the values in a reply; behind them come the
    event times of `views`. fields: the same by their names in Redis.
    """

    key_positions: tuple[int, ...]
    key_head: bytes
    key_tail: bytes
    names: tuple[tuple[str, str], ...]
    fields: tuple[bytes, ...]
    views: tuple[ViewColumns, ...]
    blocks: tuple[Block, ...]

    @cached_property
    def has_copies(self) -> bool:
        return any(view.id_at is not None for view in self.views)

    @cached_property
    def _hmget(self) -> tuple[bytes, bytes]:
        """Everything of an HMGET but the key, packed once (RESP)."""
        return b"*%d\r\n" % (2 + len(self.fields)) + _bulk(b"HMGET"), b"".join(map(_bulk, self.fields))

    def hmget(self, key: bytes) -> bytes:
        """The command that reads the fields of the plan. Its reply is `fields`, in order."""
        head, tail = self._hmget
        return b"%b$%d\r\n%b\r\n%b" % (head, len(key), key, tail)

    def hgetall(self, key: bytes) -> bytes:
        """The command that reads everything. Its reply is names and values in turns."""
        return b"*2\r\n$7\r\nHGETALL\r\n$%d\r\n%b\r\n" % (len(key), key)


class ReadPlan:
    """hashes: what to read for an entity. views: in the order of `schema.views`, over all hashes.

    Raises SchemaError for what cannot be read.
    """

    def __init__(self, schema: FeatureSchema) -> None:
        self.schema = schema
        self.join_keys = tuple(sorted(schema.entity, key=lambda key: key.name))  # Feast's order
        self._key_names = frozenset(key.name for key in self.join_keys)
        columns: defaultdict[str, list[tuple[int, Feature]]] = defaultdict(list)
        for features in (schema.stored_numbers, schema.categorical):
            for index, feature in enumerate(features):
                columns[_stored_name(feature)[0]].append((index, feature))
        sharing: defaultdict[tuple[str, ...], list[str]] = defaultdict(list)
        for view in schema.views:
            sharing[schema.join_keys_of(view)].append(view)
        self.hashes = tuple(_hash(self, keys, views, columns) for keys, views in sharing.items())
        self.views = tuple(sorted((view for h in self.hashes for view in h.views), key=lambda view: view.index))
        self._lone: tuple[str, bytes, bytes] | None = None
        if len(self.hashes) == 1 and [key.dtype for key in self.join_keys] == ["string"]:
            [one] = self.hashes
            self._lone = (self.join_keys[0].name, one.key_head + wire.entity_value("", "string")[:4], one.key_tail)
        # Where the columns of a batch are among the values of all replies.
        blocks = [block for h in self.hashes for block in h.blocks]
        self.numbers_at = _order([i for block in blocks if block.dtype != "string" for i in block.index])
        self.strings_at = _order([i for block in blocks if block.dtype == "string" for i in block.index])
        self.times_at = _order([view.index for h in self.hashes for view in h.views])

    def keys(self, entities: Sequence[Entity]) -> list[EntityKey]:
        """Where the store holds each entity. Raises EntityError."""
        key_of = self._key if self._lone is None else self._lone_key
        return [key_of(entity, row) for row, entity in enumerate(entities)]

    def _lone_key(self, entity: Entity, row: int) -> EntityKey:
        """As `_key`, where all is in one hash under one string, as it mostly is: in a fifth of the time."""
        name, head, tail = self._lone or ("", b"", b"")
        try:
            raw = entity[name].encode()
        except (KeyError, UnicodeEncodeError):
            return self._key(entity, row)  # which says what is wrong
        size = len(raw)
        if len(entity) != 1 or not 1 <= size < wire.LONG_STRING:
            return self._key(entity, row)
        return EntityKey((b"%b%c\0\0\0%b%b" % (head, size, raw, tail),), (b"\x12%c%b" % (size, raw),), (entity[name],))

    def _key(self, entity: Entity, row: int) -> EntityKey:
        if entity.keys() != self._key_names:
            raise EntityError(f"an entity of this model has exactly: {', '.join(sorted(self._key_names))}", row)
        values = tuple([_value(key, entity[key.name], row) for key in self.join_keys])
        parts = [wire.entity_value(value, key.dtype) for key, value in zip(self.join_keys, values, strict=True)]
        redis_keys, owners = [], []
        for h in self.hashes:
            redis_keys.append(h.key_head + b"".join([parts[at] for at in h.key_positions]) + h.key_tail)
            owners.append(wire.string_value(str(values[h.key_positions[0]])) if h.has_copies else b"")
        return EntityKey(tuple(redis_keys), tuple(owners), values)


def _hash(
    plan: ReadPlan,
    keys: tuple[str, ...],
    views: Sequence[str],
    columns: Mapping[str, Sequence[tuple[int, Feature]]],
) -> Hash:
    """keys: the join keys that `views` share. columns: view -> its stored features with their columns in a batch."""
    schema = plan.schema
    copies = {view: schema.entity_fields[view] for view in views if view in schema.entity_fields}
    if copies and len(keys) != 1:
        raise SchemaError(f"{', '.join(copies)}: rows can hold the entity id only where it is one join key")
    # By type, so that what is stored alike is decoded in one go.
    stored = sorted(((index, f) for view in views for index, f in columns[view]), key=lambda entry: str(entry[1].dtype))
    names = (*(_stored_name(feature) for _, feature in stored), *copies.items())
    _refuse_collisions(names)
    placed = [Column(feature, at, index) for at, (index, feature) in enumerate(stored)]
    id_at = {view: at for at, view in enumerate(copies, start=len(placed))}
    blocks = []
    for dtype, group in groupby(placed, key=lambda column: str(column.feature.dtype)):
        members = list(group)
        at = slice(members[0].at, members[-1].at + 1)
        blocks.append(Block(dtype, at, tuple(column.index for column in members)))
    names_of_keys = [key.name for key in plan.join_keys]
    return Hash(
        key_positions=tuple(names_of_keys.index(name) for name in keys),
        key_head=wire.entity_key_head(keys),
        key_tail=schema.project.encode(),
        names=names,
        fields=(
            *(wire.value_name(view, field) for view, field in names),
            *(wire.event_time_name(view) for view in views),
        ),
        views=tuple(
            ViewColumns(
                view,
                schema.views.index(view),
                time_at,
                id_at.get(view),
                tuple(column for column in placed if column.feature.view == view),
            )
            for time_at, view in enumerate(views, start=len(names))
        ),
        blocks=tuple(blocks),
    )


def _order(columns: Sequence[int]) -> npt.NDArray[np.intp]:
    """Where each column is."""
    return np.argsort(np.array(columns, dtype=np.intp))


def _bulk(value: bytes) -> bytes:
    return b"$%d\r\n%b\r\n" % (len(value), value)


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
