"""Value for value, what Feast's own get_online_features answers over the same Redis."""

import asyncio
import math
import random
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pytest
from redis import Redis

from feature_client.online.plan import Entity, ReadPlan
from feature_client.online.redis_reader import RedisReader
from feature_client.schema import FeatureBatch, FeatureSchema
from tests import feast_layout
from tests.feature_client.online.shop import ACCOUNTS, DEVICES, NOW, PAIRS, SHOP, TOGETHER

if TYPE_CHECKING:
    from feast import FeatureStore

AT = datetime.fromtimestamp(NOW, UTC)
TIMEOUT_S = 5.0

DTYPES = {
    "visits": "Int64", "level": "Int32", "score": "float64", "ratio": "float32", "active": "boolean",
    "joined_at": "datetime64[ns, UTC]", "orders": "Int64", "spend": "float64", "balance": "float64", "uses": "Int64",
    "weight": "float64", "event_timestamp": "datetime64[us, UTC]", "device_id": "int32", "account_id": "int64",
}  # fmt: skip


OTHER_PROFILE_FIELDS = {"level": 1, "ratio": 0.5, "active": True, "country": "France", "joined_at": AT}


def write(store: "FeatureStore", view: str, rows: Sequence[Mapping[str, Any]]) -> None:
    # Column by column: by rows, pandas takes whole numbers beside nulls through float64.
    columns = {name: [row[name] for row in rows] for name in rows[0]}
    series = {name: pd.Series(values, dtype=DTYPES.get(name, "object")) for name, values in columns.items()}
    store.write_to_online_store(view, pd.DataFrame(series))


def read(redis_url: str, schema: FeatureSchema, entities: Sequence[Entity]) -> FeatureBatch:
    async def scenario() -> FeatureBatch:
        reader = RedisReader.from_connection_string(redis_url, TIMEOUT_S)
        try:
            plan = ReadPlan(schema)
            return await reader.fetch(plan, plan.keys(entities), TIMEOUT_S)
        finally:
            await reader.close()

    return asyncio.run(scenario())


def assert_feast_agrees(
    store: "FeatureStore",
    redis_url: str,
    schema: FeatureSchema,
    entities: Sequence[Entity],
    as_feast_wants: Sequence[Mapping[str, Any]],
) -> FeatureBatch:
    ours = read(redis_url, schema, entities)
    stored = (*schema.stored_numbers, *schema.categorical)
    response = store.get_online_features([f"{f.view}:{f.field}" for f in stored], [dict(row) for row in as_feast_wants])
    theirs = response.to_dict()
    vectors = dict(zip(response.proto.metadata.feature_names.val, response.proto.results, strict=True))
    for row in range(len(entities)):
        for column, feature in enumerate(schema.stored_numbers):
            assert_same_number(theirs[str(feature.field)][row], float(ours.numbers[row, column]), feature.name)
        for column, feature in enumerate(schema.categorical):
            assert ours.strings[row, column] == theirs[str(feature.field)][row], feature.name
        for column, view in enumerate(schema.views):
            field = next(str(feature.field) for feature in stored if feature.view == view)
            seconds = vectors[field].event_timestamps[row].ToNanoseconds() / 1e9
            # Feast says 1970 where there is no row.
            assert_same_number(seconds or None, float(ours.event_times[row, column]), view)
    assert ours.corrupt == frozenset()
    return ours


def assert_same_number(theirs: Any, ours: float, name: str) -> None:
    if theirs is None:
        assert math.isnan(ours), name
    else:
        expected = theirs.timestamp() if isinstance(theirs, datetime) else float(theirs)
        assert math.copysign(1.0, ours) == math.copysign(1.0, expected), name
        assert ours == pytest.approx(expected, rel=0, abs=1e-6 if name in ("profile", "orders") else 0), name


def test_every_type_reads_as_feast_reads_it(feast_store: "FeatureStore", redis_url: str, redis: "Redis") -> None:
    """300 customers at random: extremes, nulls, empty strings, absent rows and views, times to the microsecond."""
    draw = random.Random(7)
    ids = [f"c{n}" for n in range(290)] + ["é", "日本", "🛒", "a b", "1", "-1", "x:y", "\x00", "z" * 512]

    def maybe(value: Any) -> Any:
        return None if draw.random() < 0.2 else value

    profiles, orders = [], []
    for customer in ids:
        at = AT - timedelta(microseconds=draw.randrange(10**14))
        if draw.random() < 0.8:
            profiles.append(
                {
                    "customer_id": customer,
                    "customer_copy": maybe(customer),
                    "event_timestamp": at,
                    "visits": maybe(draw.choice([0, 1, -1, 127, 128, -(2**53), 2**53, draw.randrange(10**9)])),
                    "level": maybe(draw.choice([0, -1, 2**31 - 1, -(2**31), draw.randrange(1000)])),
                    "score": maybe(draw.choice([0.0, -0.0, 1e308, 5e-324, math.inf, -math.inf, draw.gauss(0, 1)])),
                    "ratio": maybe(draw.choice([0.0, -0.0, 3.4e38, 0.1, draw.random()])),
                    "active": maybe(draw.random() < 0.5),
                    "country": maybe(draw.choice(["", "France", "Côte d'Ivoire", "中国", "x" * 300])),
                    "joined_at": maybe(AT - timedelta(seconds=draw.randrange(10**10))),
                }
            )
        if draw.random() < 0.8:
            orders.append(
                {
                    "customer_id": customer,
                    "event_timestamp": at + timedelta(seconds=1),
                    "orders": draw.randrange(100),
                    "spend": maybe(draw.random()),
                    "city": maybe("Łódź"),
                }
            )
    write(feast_store, "profile", profiles)
    write(feast_store, "orders", orders)
    asked = [{"customer_id": draw.choice([*ids, "nobody"])} for _ in range(400)]

    ours = assert_feast_agrees(feast_store, redis_url, SHOP, asked, asked)

    assert 0 < sum(math.isnan(time) for time in ours.event_times[:, 0]) < 400


def test_int64_keys_are_feasts(feast_store: "FeatureStore", redis_url: str, redis: "Redis") -> None:
    ids = ["0", "1", "-1", "9223372036854775807", "-9223372036854775808", "404"]
    rows = [{"account_id": int(n), "event_timestamp": AT, "balance": 1.5 * int(n)} for n in ids[:-1]]
    write(feast_store, "accounts", rows)

    ours = assert_feast_agrees(
        feast_store, redis_url, ACCOUNTS, [{"account_id": n} for n in ids], [{"account_id": int(n)} for n in ids]
    )

    assert list(ours.numbers[:3, 0]) == [0.0, 1.5, -1.5]


def test_int32_keys_are_feasts(feast_store: "FeatureStore", redis_url: str, redis: "Redis") -> None:
    write(feast_store, "devices", [{"device_id": n, "event_timestamp": AT, "uses": 7} for n in (5, -5)])

    ours = assert_feast_agrees(
        feast_store,
        redis_url,
        DEVICES,
        [{"device_id": "-5"}, {"device_id": "6"}],
        [{"device_id": -5}, {"device_id": 6}],
    )

    assert ours.numbers[0, 0] == 7.0


def test_two_join_keys_are_one_key_as_feast_sorts_them(
    feast_store: "FeatureStore", redis_url: str, redis: "Redis"
) -> None:
    write(feast_store, "pairs", [{"customer_id": "c", "account_id": 3, "event_timestamp": AT, "weight": 0.25}])
    asked = [{"customer_id": "c", "account_id": "3"}, {"account_id": "4", "customer_id": "c"}]

    ours = assert_feast_agrees(
        feast_store, redis_url, PAIRS, asked, [{**row, "account_id": int(row["account_id"])} for row in asked]
    )

    assert ours.numbers[0, 0] == 0.25


def test_views_of_several_entities_are_read_together(
    feast_store: "FeatureStore", redis_url: str, redis: "Redis"
) -> None:
    draw = random.Random(3)
    for customer in ("a", "b"):
        profile = {"customer_id": customer, "customer_copy": customer, "event_timestamp": AT, "score": draw.random()}
        write(feast_store, "profile", [{**profile, "visits": draw.randrange(99), **OTHER_PROFILE_FIELDS}])
        write(feast_store, "pairs", [{"customer_id": customer, "account_id": 3, "event_timestamp": AT, "weight": 0.5}])
    write(feast_store, "accounts", [{"account_id": n, "event_timestamp": AT, "balance": draw.random()} for n in (3, 4)])
    rows = [(customer, account) for customer in ("a", "b", "nobody") for account in (3, 4, 5)]

    ours = assert_feast_agrees(
        feast_store,
        redis_url,
        TOGETHER,
        [{"account_id": str(account), "customer_id": customer} for customer, account in rows],
        [{"account_id": account, "customer_id": customer} for customer, account in rows],
    )

    known = ~np.isnan(ours.event_times[:, [TOGETHER.views.index(v) for v in ("profile", "accounts", "pairs")]])
    assert known.tolist() == [
        [True, True, True], [True, True, False], [True, False, False],
        [True, True, True], [True, True, False], [True, False, False],
        [False, True, False], [False, True, False], [False, False, False],
    ]  # fmt: skip


def test_the_layout_that_tests_write_by_hand_is_feasts_byte_for_byte(
    feast_store: "FeatureStore", redis: "Redis"
) -> None:
    joined = AT - timedelta(days=400)
    profile: dict[str, Any] = {
        "customer_copy": "c1", "visits": 300, "level": None, "score": 0.5, "ratio": None, "active": None,
        "country": "Österreich", "joined_at": joined,
    }  # fmt: skip
    row = {"customer_id": "c1", "event_timestamp": AT, **profile}
    write(feast_store, "profile", [row])
    theirs = {key: redis.hgetall(key) for key in redis.scan_iter()}
    redis.flushall()

    by_hand = {**profile, "joined_at": joined.timestamp()}
    feast_layout.store(redis, SHOP, "c1", {"profile": (NOW, by_hand)})

    assert {key: redis.hgetall(key) for key in redis.scan_iter()} == theirs
