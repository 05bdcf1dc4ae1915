"""One read for several versions of a model: everything stored that any of them needs, and each one's own part of it."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from functools import cached_property

import numpy as np

from feature_client.errors import RapportError
from feature_client.online.decoding import MIX_UP
from feature_client.online.plan import EntityKey, ReadPlan
from feature_client.schema import Feature, FeatureBatch, FeatureSchema, Kind, SchemaError

MAX_FACTOR = 2
"""How many times the fields of the first version the union may read: those who wait pay for it."""

KINDS: Mapping[str, Kind] = {"string": "category", "timestamp": "elapsed"}
"""How a stored type is read; everything else is a number."""

GROUP = "stored"

Stored = tuple[str, str]
"""View and field."""


class NoUnion(RapportError):
    """These versions cannot share a read; the message says why."""


def union(schemas: Sequence[FeatureSchema]) -> FeatureSchema:
    """What to read so that all of `schemas` have what they need, under names of its own; no model reads it as it is.

    The first is the version whose answers count: its keys (`ReadPlan.keys`) are those of the union, which reads no
    other hash and refuses no other row than the first alone would. Raises NoUnion.
    """
    first = schemas[0]
    hashes = {first.join_keys_of(view) for view in first.views}
    join_keys: dict[str, tuple[str, ...]] = {}
    stored: dict[Stored, str] = {}
    for schema in schemas:
        if schema.project != first.project or _entity(schema) != _entity(first):
            raise NoUnion("they are of different projects, or of different entities")
        for view in schema.views:
            keys = schema.join_keys_of(view)
            if keys not in hashes or join_keys.setdefault(view, keys) != keys:
                raise NoUnion(f"{view} has other join keys than the views of the first: it is a read of its own")
        for name, dtype in (*_fields(schema), *((copy, "string") for copy in _unchecked_copies(first, schema))):
            if stored.setdefault(name, dtype) != dtype:
                raise NoUnion(f"{name[0]}:{name[1]} is {stored[name]} to one and {dtype} to another")
    if len(stored) > MAX_FACTOR * len(dict(_fields(first))):
        raise NoUnion(f"together they read more than {MAX_FACTOR} times what the first reads")
    together = FeatureSchema(
        first.project,
        first.entity,
        tuple(_column(name, dtype) for name, dtype in stored.items()),
        {view: first.entity_fields[view] for view in first.views if view in first.entity_fields},
        {GROUP: GROUP},
        join_keys,
    )
    try:
        ReadPlan(together)
    except SchemaError as exc:
        raise NoUnion(str(exc)) from exc
    return together


class Projection:
    """What `schema` would have read, out of what the union read."""

    def __init__(self, together: FeatureSchema, schema: FeatureSchema) -> None:
        """together: `union` of schemas, of which `schema` is one."""
        self.schema = schema
        numbers = [feature.name for feature in together.stored_numbers]
        strings = [feature.name for feature in together.categorical]
        self._numbers = _columns([numbers.index(_name_of(feature)) for feature in schema.stored_numbers])
        self._strings = _columns([strings.index(_name_of(feature)) for feature in schema.categorical])
        self._views = _columns([together.views.index(view) for view in schema.views])
        self._names = defaultdict[str, list[str]](list)  # in the union -> in the schema
        for feature in schema.features:
            if feature.view is not None:
                self._names[_name_of(feature)].append(feature.name)
        # Copies of the entity id that the reader of the union does not compare: view -> its column, and which key.
        keys = sorted(key.name for key in together.entity)
        self._copies = {
            view: (strings.index(_name(view, field)), keys.index(schema.join_keys_of(view)[0]))
            for view, field in schema.entity_fields.items()
            if view in schema.views and together.entity_fields.get(view) != field
        }

    def of(self, batch: FeatureBatch, keys: Sequence[EntityKey]) -> FeatureBatch:
        """batch: what the union's plan read for `keys`. As `schema`'s own plan would have read it, but for rows that
        were refused for the first version's sake: these stay refused."""
        corrupt = frozenset((row, name) for row, stored in batch.corrupt for name in self._names.get(stored, ()))
        own = FeatureBatch(
            batch.numbers[:, self._numbers],
            batch.strings[:, self._strings],
            batch.event_times[:, self._views],
            corrupt,
            batch.refused,
        )
        return self._checked(own, batch, keys) if self._copies else own

    def foreign(self, batch: FeatureBatch) -> bool:
        """Whether anything that cannot be read is nothing that `schema` reads."""
        return any(stored not in self._names for _, stored in batch.corrupt)

    def _checked(self, own: FeatureBatch, batch: FeatureBatch, keys: Sequence[EntityKey]) -> FeatureBatch:
        """As the reader does it (decoding.py): a row of somebody else is refused, one without a legible owner lost."""
        refused = dict(batch.refused)
        lost: list[tuple[int, str]] = []
        for view, (column, key_at) in self._copies.items():
            name = _name(view, self.schema.entity_fields[view])
            present = set((~np.isnan(own.event_times[:, self.schema.views.index(view)])).nonzero()[0].tolist())
            for row, copy in enumerate(batch.strings[:, column].tolist()):
                if (row, name) in batch.corrupt:
                    lost.append((row, view))
                elif copy is not None and copy != str(keys[row].values[key_at]) and row in present:
                    refused[row] = MIX_UP
        if not lost and len(refused) == len(batch.refused):
            return own
        numbers, strings, times = own.numbers.copy(), own.strings.copy(), own.event_times.copy()
        for row, view in lost:
            at_numbers, at_strings = self._columns_of[view]
            numbers[row, at_numbers], strings[row, at_strings] = np.nan, None
            times[row, self.schema.views.index(view)] = np.nan
        for row in refused:
            numbers[row], strings[row], times[row] = np.nan, None, np.nan
        corrupt = own.corrupt | {
            (row, feature.name) for row, view in lost for feature in self.schema.features if feature.view == view
        }
        return FeatureBatch(numbers, strings, times, corrupt, refused)

    @cached_property
    def _columns_of(self) -> Mapping[str, tuple[list[int], list[int]]]:
        """View -> its columns in the numbers and in the strings."""
        return {
            view: (
                [at for at, feature in enumerate(self.schema.stored_numbers) if feature.view == view],
                [at for at, feature in enumerate(self.schema.categorical) if feature.view == view],
            )
            for view in self.schema.views
        }


def _entity(schema: FeatureSchema) -> object:
    return sorted((key.name, key.dtype) for key in schema.entity)


def _fields(schema: FeatureSchema) -> list[tuple[Stored, str]]:
    """Everything stored that it reads, numbers first: the union keeps the order, so that the first has all in front."""
    return [((str(f.view), str(f.field)), str(f.dtype)) for f in (*schema.stored_numbers, *schema.categorical)]


def _unchecked_copies(first: FeatureSchema, schema: FeatureSchema) -> list[Stored]:
    """Copies of the entity id that `schema` compares and the first does not: read as values, compared afterwards."""
    return [
        (view, field)
        for view, field in schema.entity_fields.items()
        if view in schema.views and not (view in first.views and first.entity_fields.get(view) == field)
    ]


def _name(view: str, field: str) -> str:
    return f"{len(view)}:{view}:{field}"


def _name_of(feature: Feature) -> str:
    return _name(str(feature.view), str(feature.field))


def _column(stored: Stored, dtype: str) -> Feature:
    view, field = stored
    kind = KINDS.get(dtype, "numeric")
    return Feature(_name(view, field), kind, GROUP, field, view=view, field=field, dtype=dtype, nullable=True)


def _columns(places: Sequence[int]) -> slice | list[int]:
    """A slice where it can be one: that copies nothing."""
    if places and list(places) == list(range(places[0], places[0] + len(places))):
        return slice(places[0], places[0] + len(places))
    return list(places)
