"""One read for several versions: whatever the union reads, each version finds in it what it would have read alone."""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from redis import Redis

from feature_client.online.memory import MemoryReader, ViewRow
from feature_client.online.plan import ReadPlan
from feature_client.online.reader import FeatureReader
from feature_client.online.redis_reader import RedisReader
from feature_client.online.union import NoUnion, Projection, union
from feature_client.schema import Feature, FeatureBatch, FeatureSchema, JoinKey
from tests import feast_layout
from tests.feature_client.online.shop import NOW, PAIRS, TOGETHER, feature, schema_of

TIMEOUT_S = 5.0
CUSTOMER = (JoinKey("customer_id"),)

FIELDS = {
    ("profile", "visits"): "int64",
    ("profile", "score"): "float64",
    ("profile", "country"): "string",
    ("profile", "joined_at"): "timestamp",
    ("orders", "orders"): "int64",
    ("orders", "spend"): "float64",
    ("orders", "city"): "string",
    ("extra", "clicks"): "float64",
    ("extra", "channel"): "string",
}
"""What a store holds, over three views."""

COPIES = {"profile": "customer_copy", "orders": "customer_id", "extra": "customer_id"}

VALUES: dict[str, st.SearchStrategy[float | int | str | None]] = {
    "int64": st.none() | st.integers(0, 1 << 40),
    "float64": st.none() | st.floats(-1e6, 1e6),
    "string": st.none() | st.sampled_from(["", "Paris", "Zürich", "x" * 200]),
    "timestamp": st.none() | st.integers(1, int(NOW)).map(float),
}

Rows = Mapping[str, ViewRow]


@st.composite
def schemas(draw: st.DrawFn, *, at_least: int = 0) -> FeatureSchema:
    """Some of the fields under names of its own, one perhaps under two, in any order, with or without copies."""
    names = draw(st.lists(st.sampled_from(list(FIELDS)), min_size=at_least, max_size=12))
    features = []
    for position, (view, field) in enumerate(names):
        # "n0" is another field in every schema; a second mention of a field is a second feature.
        own = replace(feature(view, field, FIELDS[view, field], nullable=True), name=f"n{position}")
        features.append(own)
    if draw(st.booleans()):
        features.append(Feature("season_sin", "calendar", "all", "Season"))
    copies = {view: field for view, field in COPIES.items() if draw(st.booleans())}
    return schema_of(*features, entity=CUSTOMER, **copies)


@st.composite
def stores(draw: st.DrawFn) -> dict[str, Rows]:
    """Customers c0 to c3, some without any row, some views without one."""
    found: dict[str, Rows] = {}
    for customer in ("c0", "c1", "c2", "c3"):
        rows: dict[str, ViewRow] = {}
        for view in ("profile", "orders", "extra"):
            if draw(st.booleans()):
                values = {field: draw(VALUES[dtype]) for (of, field), dtype in FIELDS.items() if of == view}
                rows[view] = (float(draw(st.integers(1, int(NOW)))), {**values, COPIES[view]: customer})
        found[customer] = rows
    return found


ASKED = ["c1", "c0", "nobody", "c3", "c1", "c2"]


async def fetch(reader: FeatureReader, schema: FeatureSchema, customers: Sequence[str] = ASKED) -> FeatureBatch:
    plan = ReadPlan(schema)
    return await reader.fetch(plan, plan.keys([{"customer_id": c} for c in customers]), TIMEOUT_S)


async def projected(
    reader: FeatureReader, schemas: Sequence[FeatureSchema], customers: Sequence[str] = ASKED
) -> list[FeatureBatch]:
    """Each schema's part of one read, with the keys of the first schema's own plan."""
    together = union(schemas)
    keys = ReadPlan(schemas[0]).keys([{"customer_id": customer} for customer in customers])
    read = await reader.fetch(ReadPlan(together), keys, TIMEOUT_S)
    return [Projection(together, schema).of(read, keys) for schema in schemas]


def same(one: FeatureBatch, other: FeatureBatch) -> None:
    np.testing.assert_array_equal(one.numbers, other.numbers)
    np.testing.assert_array_equal(one.event_times, other.event_times)
    assert one.strings.tolist() == other.strings.tolist()
    assert one.corrupt == other.corrupt
    assert dict(one.refused) == dict(other.refused)


def shared(schemas: Sequence[FeatureSchema]) -> bool:
    try:
        union(schemas)
    except NoUnion:
        return False
    return True


@given(st.lists(schemas(at_least=1), min_size=2, max_size=3), stores())
@settings(deadline=None)
def test_of_one_read_each_version_has_what_it_would_have_read_alone(
    versions: list[FeatureSchema], rows: dict[str, Rows]
) -> None:
    reader = MemoryReader(rows)  # type: ignore[arg-type]

    async def scenario() -> None:
        if not shared(versions):
            with pytest.raises(NoUnion, match="more than"):
                union(versions)
            return
        for version, part in zip(versions, await projected(reader, versions), strict=True):
            same(part, await fetch(reader, version))

    asyncio.run(scenario())


@pytest.fixture
def store(redis: "Redis", redis_url: str) -> "InRedis":
    return InRedis(redis, redis_url)


class InRedis:
    def __init__(self, redis: "Redis", url: str) -> None:
        self.redis = redis
        self.url = url

    def put(self, customer: str, rows: Mapping[str, tuple[float, Mapping[str, feast_layout.Value]]]) -> None:
        feast_layout.store(self.redis, schema_of(entity=CUSTOMER), customer, rows)

    def read(
        self, versions: Sequence[FeatureSchema], customers: Sequence[str] = ASKED
    ) -> tuple[list[FeatureBatch], list[FeatureBatch]]:
        """Projected from one read, and read one by one."""

        async def scenario() -> tuple[list[FeatureBatch], list[FeatureBatch]]:
            reader = RedisReader.from_connection_string(self.url, TIMEOUT_S)
            try:
                parts = await projected(reader, versions, customers)
                return parts, [await fetch(reader, version, customers) for version in versions]
            finally:
                await reader.close()

        return asyncio.run(scenario())


@given(st.lists(schemas(at_least=1), min_size=2, max_size=3), stores())
@settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_so_it_is_in_redis(store: "InRedis", versions: list[FeatureSchema], rows: dict[str, Rows]) -> None:
    store.redis.flushall()
    for customer, views in rows.items():
        if views:
            store.put(customer, views)
    if shared(versions):
        for part, alone in zip(*store.read(versions), strict=True):
            same(part, alone)


CHAMPION = schema_of(
    feature("profile", "visits", "int64"),
    feature("profile", "country", "string", nullable=True),
    feature("orders", "orders", "int64"),
    entity=CUSTOMER,
    **COPIES,
)
SHADOW = schema_of(
    feature("profile", "visits", "int64"),
    feature("extra", "clicks", "float64"),
    feature("extra", "channel", "string", nullable=True),
    entity=CUSTOMER,
    **COPIES,
)
Row = tuple[float, Mapping[str, float | str | None]]

PROFILE: Row = (NOW, {"visits": 3, "country": "France", "customer_copy": "c1"})
ORDERS: Row = (NOW, {"orders": 7, "customer_id": "c1"})
EXTRA: Row = (NOW, {"clicks": 2.0, "channel": "web", "customer_id": "c1"})


@pytest.mark.parametrize(
    ("extra", "shadow_refused", "shadow_corrupt"),
    [
        (EXTRA, False, set()),
        ((NOW, {"clicks": b"\x12\x01x", "channel": "web", "customer_id": "c1"}), False, {"clicks"}),
        ((NOW, {"clicks": 2.0, "channel": "web", "customer_id": "somebody"}), True, set()),
        ((NOW, {"clicks": 2.0, "channel": "web", "customer_id": b"\xff"}), False, {"clicks", "channel"}),
        ((NOW, {"clicks": 2.0, "channel": "web", "customer_id": None}), False, set()),
    ],
    ids=["whole", "a value of another type", "somebody else's", "an illegible owner", "no copy of the id"],
)
def test_what_is_wrong_with_a_view_that_only_the_shadow_reads_is_nothing_to_the_champion(
    store: "InRedis",
    extra: tuple[float, dict[str, feast_layout.Value]],
    shadow_refused: bool,  # noqa: FBT001  (a case)
    shadow_corrupt: set[str],
) -> None:
    store.put("c1", {"profile": PROFILE, "orders": ORDERS, "extra": extra})

    parts, alone = store.read([CHAMPION, SHADOW], ["c1", "nobody"])

    for part, own in zip(parts, alone, strict=True):
        same(part, own)
    champion, shadow = parts
    assert champion.corrupt == frozenset()
    assert not champion.refused
    assert champion.numbers[0].tolist() == [3.0, 7.0]
    assert bool(shadow.refused) == shadow_refused
    assert {name for _, name in shadow.corrupt} == shadow_corrupt


def test_a_row_that_is_refused_to_the_champion_is_refused_to_all(store: "InRedis") -> None:
    store.put("c1", {"profile": PROFILE, "orders": (NOW, {"orders": 7, "customer_id": "somebody"}), "extra": EXTRA})

    [champion, shadow], [alone, _] = store.read([CHAMPION, SHADOW], ["c1"])

    same(champion, alone)
    assert list(champion.refused) == list(shadow.refused) == [0]
    assert np.isnan(shadow.numbers).all()


def test_the_union_is_asked_with_the_keys_of_the_first() -> None:
    together = union([CHAMPION, SHADOW])
    entities = [{"customer_id": "c1"}, {"customer_id": "é" * 100}]

    assert ReadPlan(together).keys(entities) == ReadPlan(CHAMPION).keys(entities)
    assert len(ReadPlan(together).hashes) == 1
    assert together.views == ("profile", "orders", "extra")


def test_over_several_hashes_too() -> None:
    other = replace(
        schema_of(
            feature("accounts", "balance", "float64"),
            replace(feature("profile", "visits", "int64"), name="seen"),
            feature("profile", "country", "string"),
            entity=tuple(reversed(TOGETHER.entity)),
        ),
        join_keys={"profile": ("customer_id",), "accounts": ("account_id",)},
    )
    together = union([TOGETHER, other])
    entities = [{"customer_id": "c1", "account_id": "7"}]
    rows: dict[str | int | tuple[str | int, ...], Rows] = {
        (7, "c1"): {"profile": PROFILE, "accounts": (NOW, {"balance": 1.5})}
    }

    async def scenario() -> None:
        plan, reader = ReadPlan(TOGETHER), MemoryReader(rows)
        keys = plan.keys(entities)
        assert ReadPlan(together).keys(entities) == keys
        read = await reader.fetch(ReadPlan(together), keys, TIMEOUT_S)
        for schema in (TOGETHER, other):
            alone = await reader.fetch(ReadPlan(schema), ReadPlan(schema).keys(entities), TIMEOUT_S)
            same(Projection(together, schema).of(read, keys), alone)

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("other", "why"),
    [
        (replace(CHAMPION, project="other"), "different projects"),
        (replace(CHAMPION, entity=(JoinKey("customer_id", "int64"),)), "different entities"),
        (PAIRS, "different entities"),
        (replace(CHAMPION, features=(feature("profile", "visits", "float64"),)), "visits is int64 to one and float64"),
        (
            replace(CHAMPION, features=tuple(feature("big", f"f{n}", "float64") for n in range(4))),
            "more than 2 times",
        ),
    ],
)
def test_versions_that_cannot_share_a_read_are_told_apart(other: FeatureSchema, why: str) -> None:
    with pytest.raises(NoUnion, match=why):
        union([CHAMPION, other])


def test_a_hash_that_only_another_version_needs_is_a_read_of_its_own() -> None:
    customers = replace(
        schema_of(feature("profile", "score", "float64"), entity=PAIRS.entity), join_keys={"profile": ("customer_id",)}
    )

    with pytest.raises(NoUnion, match="pairs has other join keys"):
        union([customers, PAIRS])
