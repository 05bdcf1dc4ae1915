"""What every FeatureReader promises, and the honest statuses that follow: one body over all of them."""

import asyncio
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, cast

import numpy as np
import pytest
from redis import Redis

from feature_client.online.feast_sdk import FeastReader
from feature_client.online.memory import MemoryReader, ViewRow
from feature_client.online.plan import Entity, EntityError, ReadPlan
from feature_client.online.reader import FeatureReader, FeatureStoreUnavailable
from feature_client.online.redis_reader import RedisReader
from feature_client.schema import Encoded, Feature, FeatureBatch, FeatureSchema
from tests import feast_layout
from tests.feature_client.online.shop import DAY_S, NOW, SHOP, feature, schema_of

TIMEOUT_S = 5.0

SCHEMA = schema_of(
    feature("profile", "visits", "int64", max_age_s=DAY_S),
    feature("profile", "score", "float64", nullable=True, max_age_s=DAY_S, on_stale="default"),
    feature("profile", "country", "string", nullable=True),
    feature("profile", "joined_at", "timestamp", nullable=True),
    feature("orders", "orders", "int64"),
    feature("orders", "city", "string"),
    entity=SHOP.entity,
    profile="customer_copy",
).with_vocabularies({"country": ["France", "Eire"], "city": ["Paris"]})

PLAN = ReadPlan(SCHEMA)

Rows = Mapping[str, ViewRow]

FULL: Rows = {
    "profile": (NOW - 60, {"visits": 3, "score": 0.5, "country": "France", "joined_at": NOW - 10 * DAY_S}),
    "orders": (NOW - 30, {"orders": 7, "city": "Paris"}),
}


class Store(Protocol):
    def put(self, customer: str, rows: Rows) -> None: ...

    def reader(self) -> FeatureReader: ...


class InMemory:
    def __init__(self) -> None:
        self.rows: dict[str | int | tuple[str | int, ...], Rows] = {}

    def put(self, customer: str, rows: Rows) -> None:
        self.rows[customer] = rows

    def reader(self) -> FeatureReader:
        return MemoryReader(self.rows)


class InRedis:
    def __init__(self, redis: "Redis", reader: Callable[[], FeatureReader]) -> None:
        self.redis = redis
        self.reader = reader

    def put(self, customer: str, rows: Rows) -> None:
        feast_layout.store(self.redis, SCHEMA, customer, rows)


@pytest.fixture(params=["redis", "feast", "memory"])
def store(request: pytest.FixtureRequest) -> Store:
    if request.param == "memory":
        return InMemory()
    redis = request.getfixturevalue("redis")
    if request.param == "feast":
        feast_store = request.getfixturevalue("feast_store")
        return InRedis(redis, lambda: FeastReader(feast_store))
    redis_url = request.getfixturevalue("redis_url")
    return InRedis(redis, lambda: RedisReader.from_connection_string(redis_url, TIMEOUT_S))


def fetch(store: Store, *customers: str, schema: FeatureSchema = SCHEMA) -> FeatureBatch:
    async def scenario() -> FeatureBatch:
        reader = store.reader()
        try:
            plan = ReadPlan(schema)
            return await reader.fetch(plan, plan.keys([{"customer_id": c} for c in customers]), TIMEOUT_S)
        finally:
            await reader.close()

    return asyncio.run(scenario())


def encode(store: Store, *customers: str) -> Encoded:
    return SCHEMA.encode(fetch(store, *customers), NOW)


def named(encoded: Encoded, mask: str, row: int = 0) -> set[str]:
    """The features that a mask of `encoded` marks."""
    return {feature.name for feature, set_ in zip(SCHEMA.features, getattr(encoded, mask)[row], strict=True) if set_}


def test_values_and_times_are_those_stored(store: Store) -> None:
    store.put("c1", FULL)

    batch = fetch(store, "c1")

    assert batch.numbers.tolist() == [[3.0, 0.5, NOW - 10 * DAY_S, 7.0]]
    assert batch.strings.tolist() == [["France", "Paris"]]
    assert batch.event_times.tolist() == [[NOW - 60, NOW - 30]]
    assert batch.corrupt == frozenset()


def test_a_fresh_complete_row_has_nothing_to_report(store: Store) -> None:
    store.put("c1", FULL)

    encoded = encode(store, "c1")

    assert [named(encoded, mask) for mask in ("defaulted", "stale", "overridden")] == [set(), set(), set()]
    assert not encoded.unknown[0]
    assert encoded.age_s[0] == 60
    assert SCHEMA.decode_row(encoded, 0) == {
        "visits": 3.0, "score": 0.5, "country": "France", "joined_days": 10.0, "orders": 7.0, "city": "Paris",
    }  # fmt: skip


def test_a_customer_nobody_knows_is_unknown_and_all_missing(store: Store) -> None:
    batch = fetch(store, "nobody")
    encoded = SCHEMA.encode(batch, NOW)

    assert np.isnan(batch.numbers).all()
    assert np.isnan(batch.event_times).all()
    assert batch.strings.tolist() == [[None, None]]
    assert encoded.unknown[0]
    assert math.isnan(encoded.age_s[0])
    assert named(encoded, "defaulted") == {feature.name for feature in SCHEMA.features}
    assert named(encoded, "stale") == set()


def test_a_view_without_a_row_is_defaulted_and_the_customer_known(store: Store) -> None:
    store.put("c1", {"profile": FULL["profile"]})

    encoded = encode(store, "c1")

    assert not encoded.unknown[0]
    assert named(encoded, "defaulted") == {"orders", "city"}
    assert encoded.age_s[0] == 60


def test_a_null_is_missing_and_reported_only_where_it_means_nothing(store: Store) -> None:
    nulls: ViewRow = (NOW - 60, {"visits": None, "score": None, "country": None, "joined_at": None})
    store.put("c1", {**FULL, "profile": nulls})

    encoded = encode(store, "c1")

    assert named(encoded, "defaulted") == {"visits"}
    assert np.isnan(encoded.numeric[0, :3]).all()


def test_an_empty_string_is_a_value_and_no_known_category(store: Store) -> None:
    store.put("c1", {**FULL, "orders": (NOW, {"orders": 1, "city": ""})})

    encoded = encode(store, "c1")

    assert named(encoded, "defaulted") == set()
    assert SCHEMA.decode_row(encoded, 0)["city"] == "(unseen)"


def test_stale_values_are_used_or_not_as_declared_and_always_reported(store: Store) -> None:
    store.put("c1", {**FULL, "profile": (NOW - 2 * DAY_S, FULL["profile"][1])})

    encoded = encode(store, "c1")

    assert named(encoded, "stale") == {"visits", "score"}
    assert named(encoded, "defaulted") == set()
    assert SCHEMA.decode_row(encoded, 0)["visits"] == 3.0
    assert SCHEMA.decode_row(encoded, 0)["score"] is None
    assert encoded.age_s[0] == 2 * DAY_S


def test_a_row_from_the_future_is_not_fresh(store: Store) -> None:
    store.put("c1", {**FULL, "profile": (NOW + 3_600, FULL["profile"][1])})
    store.put("c2", {**FULL, "profile": (NOW + 59, FULL["profile"][1])})

    encoded = encode(store, "c1", "c2")

    assert {"visits", "score"} <= named(encoded, "stale", 0)
    assert named(encoded, "stale", 1) == set()


def test_a_value_of_another_type_is_corrupt_and_its_neighbours_are_not(store: Store) -> None:
    store.put("c1", {**FULL, "orders": (NOW, {"orders": "seven", "city": "Paris"})})
    store.put("c2", FULL)

    batch = fetch(store, "c1", "c2")

    assert batch.corrupt == {(0, "orders")}
    assert math.isnan(batch.numbers[0, 3])
    assert batch.strings[0, 1] == "Paris"
    assert named(SCHEMA.encode(batch, NOW), "defaulted", 0) == {"orders"}
    assert named(SCHEMA.encode(batch, NOW), "defaulted", 1) == set()


def test_rows_keep_the_order_of_the_request_and_duplicates_are_equal(store: Store) -> None:
    for number in range(5):
        store.put(f"c{number}", {"orders": (NOW, {"orders": number, "city": "Paris"})})

    batch = fetch(store, "c3", "c1", "nobody", "c3", "c0", "c3")

    assert np.array_equal(batch.numbers[:, 3], [3, 1, np.nan, 3, 0, 3], equal_nan=True)


def test_no_entities_are_no_rows(store: Store) -> None:
    assert len(fetch(store)) == 0


def test_any_valid_unicode_is_an_id(store: Store) -> None:
    for customer in ("é", "日本語", "🛒", "a b", "\x00", "{x}"):
        store.put(customer, FULL)

        assert fetch(store, customer).numbers[0, 3] == 7


@pytest.mark.parametrize("customer", ["", "secret\ud800", "secret" * 100])
def test_ids_that_cannot_be_are_named_by_row_and_not_repeated(store: Store, customer: str) -> None:
    with pytest.raises(EntityError) as caught:
        fetch(store, "c1", customer)

    assert caught.value.row == 1
    assert "secret" not in str(caught.value)


def test_ping_answers_while_the_store_does(store: Store) -> None:
    async def scenario() -> None:
        reader = store.reader()
        await reader.ping(TIMEOUT_S)
        await reader.close()

    asyncio.run(scenario())


def test_the_fake_fails_when_told_to_and_in_time_when_slow() -> None:
    async def scenario() -> None:
        for reader in (MemoryReader({}, failure="it is down"), MemoryReader({}, delay_s=60)):
            with pytest.raises(FeatureStoreUnavailable):
                await reader.fetch(PLAN, PLAN.keys([{"customer_id": "c1"}]), 0.01)
            with pytest.raises(FeatureStoreUnavailable):
                await reader.ping(0.01)

    asyncio.run(scenario())


class BrokenFeast:
    """Fails as an online store of Feast may: with an error of its own, that quotes the key."""

    def get_online_features(self, features: Sequence[str], entity_rows: Sequence[Entity], **_: object) -> object:
        raise RuntimeError(f"no such table for {entity_rows}")


def test_errors_of_other_stores_are_unavailability_without_values() -> None:
    async def scenario() -> None:
        reader = FeastReader(cast("Any", BrokenFeast()))
        with pytest.raises(FeatureStoreUnavailable, match="RuntimeError") as caught:
            await reader.fetch(PLAN, PLAN.keys([{"customer_id": "secret"}]), TIMEOUT_S)
        assert "secret" not in str(caught.value)
        await reader.close()

    asyncio.run(scenario())


def test_a_feature_that_depends_on_nothing_stored_needs_no_view(store: Store) -> None:
    season = Feature("season_sin", "calendar", "all", "Season")
    schema = FeatureSchema("shop", SCHEMA.entity, (*SCHEMA.features, season), SCHEMA.entity_fields, SCHEMA.groups)
    store.put("c1", FULL)

    encoded = schema.encode(fetch(store, "c1", schema=schema), NOW)

    assert not encoded.defaulted.any()
