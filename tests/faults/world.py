"""Whom the clients ask for, what the store holds of them, and the releases that may answer."""

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from redis import Redis

from feature_client.release import Release, read_release
from feature_client.schema import DAY_S, FeatureBatch, FeatureSchema
from model_export.pipeline import publish_run
from model_export.publish import set_champion
from tests.feast_layout import Value, key_of, store
from tests.model_export.tiny_release import AS_OF, judged, tiny_run, tiny_schema, tiny_world, with_explainers

CUSTOMERS = 300
EXPLAINED = 60
"""Of them, those whose reasons are asked for: recomputing reasons costs thousands of rows each."""
NAMESPACE = "chaos"
"""In front of every id, so that these customers share a Redis with other tests'."""
WITHOUT = ("returns_365d", "sessions_30d", "top_category")
"""Features that one of the releases does not read; two whole groups go with them."""

NOW = AS_OF.timestamp()


@dataclass(frozen=True)
class Store:
    """What was written into Redis, column-wise.

    columns: stored field -> one value a customer, NaN or None where it is null. event_times: view -> epoch seconds, NaN
    where the view has no row of the customer.
    """

    customers: tuple[str, ...]
    columns: Mapping[str, npt.NDArray[Any]]
    event_times: Mapping[str, npt.NDArray[np.float64]]

    def batch(self, schema: FeatureSchema) -> FeatureBatch:
        """The rows of all customers, as a model with this schema would have to read them."""
        columns = {feature.field: self.columns[feature.field] for feature in schema.features if feature.field}
        return schema.batch(columns, np.stack([self.event_times[view] for view in schema.views], axis=1))

    def write(self, redis: "Redis") -> None:
        schema = tiny_schema()
        for row, customer in enumerate(self.customers):
            redis.delete(key_of(schema, customer))
            if rows := self._rows(schema, row, customer):
                store(redis, schema, customer, rows)

    def _rows(self, schema: FeatureSchema, row: int, customer: str) -> dict[str, tuple[float, Mapping[str, Value]]]:
        rows: dict[str, tuple[float, Mapping[str, Value]]] = {}
        for view in schema.views:
            if not np.isnan(at := self.event_times[view][row]):
                read = [feature for feature in schema.features if feature.view == view and feature.field]
                values = {str(one.field): _value(self.columns[str(one.field)][row], one.dtype) for one in read}
                rows[view] = (float(at), {schema.entity_fields[view]: customer, **values})
        return rows


def make_store(seed: int = 7) -> Store:
    """Customers of every kind: complete, with nulls, stale, without a view's row, without any row, long inactive."""
    schema, rng = tiny_schema(), np.random.default_rng(seed)
    world = tiny_world(schema, CUSTOMERS, AS_OF, rng)
    columns: dict[str, npt.NDArray[Any]] = {}
    for position, feature in enumerate(schema.stored_numbers):
        numbers = world.batch.numbers[:, position]
        # Feast stores whole seconds.
        columns[str(feature.field)] = np.floor(numbers) if feature.dtype == "timestamp" else numbers.copy()
    for position, feature in enumerate(schema.categorical):
        columns[str(feature.field)] = world.batch.strings[:, position].copy()
    event_times = {view: world.batch.event_times[:, position].copy() for position, view in enumerate(schema.views)}
    columns["country"][rng.random(CUSTOMERS) < 0.05] = "Atlantis"
    columns["orders_90d"][rng.random(CUSTOMERS) < 0.05] = np.nan
    event_times["orders"][rng.random(CUSTOMERS) < 0.05] = NOW - 40 * DAY_S
    nobody = rng.random(CUSTOMERS) < 0.03
    for view in schema.views:
        event_times[view][nobody] = np.nan
        for feature in schema.features:
            if feature.view == view and feature.field:
                absent = np.isnan(event_times[view])
                columns[feature.field][absent] = None if feature.kind == "category" else np.nan
    return Store(tuple(f"{NAMESPACE}{row}" for row in range(CUSTOMERS)), columns, event_times)


def build_releases(root: Path) -> list[Release]:
    """Three versions that differ in every answer; the third one reads fewer features, in fewer groups.

    With two explainers each: a Triton whose executor is a process for each graph loads all of them in every scenario.
    """
    runs = [tiny_run(1_500, seed, 2, without) for seed, without in enumerate(((), (), WITHOUT))]
    with tempfile.TemporaryDirectory() as scratch:
        made = [with_explainers(publish_run(judged(run), Path(scratch)), root, ("fast", "exact")) for run in runs]
    for release in made:
        set_champion(root, release.manifest.model, release.manifest.version)
    return made


def releases_in(root: Path) -> list[Release]:
    return [read_release(root, "engagement", version) for version in (1, 2, 3)]


def _value(value: Any, dtype: str | None) -> Value:
    """As Feast writes a feature of that type: a number of another one is none to a reader."""
    if value is None or isinstance(value, str):
        return value
    if np.isnan(value):
        return None
    return int(value) if dtype == "int64" else float(value)
