"""The bulk loader writes what Feast's materialize writes, byte for byte, and says so where it cannot."""

import asyncio
import shutil
import tracemalloc
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from feast import FeatureService, Field
from feast.types import Array, Float32
from redis import Redis

from feature_client.offline import bulk, registry
from feature_client.offline.bulk import load
from feature_client.offline.materialize import REACH, MaterializeError
from feature_client.offline.store import open_store, reading
from feature_client.offline.workspace import Workspace
from feature_client.online.local_redis import LocalRedis
from feature_client.online.plan import ReadPlan
from feature_client.online.redis_reader import RedisReader
from feature_client.schema import FeatureBatch, FeatureSchema
from service import cli
from tests.feature_client.online import shop

SECOND = timedelta(seconds=1)
MICROSECOND = timedelta(microseconds=1)
NOW = datetime.fromtimestamp(shop.NOW, UTC)

Dump = Mapping[bytes, Mapping[bytes, bytes]]

TYPES = {
    "customer_id": pa.string(), "customer_copy": pa.string(), "account_id": pa.int64(), "device_id": pa.int32(),
    "visits": pa.int64(), "level": pa.int32(), "score": pa.float64(), "ratio": pa.float32(), "active": pa.bool_(),
    "country": pa.string(), "city": pa.string(), "joined_at": pa.timestamp("us", "UTC"), "orders": pa.int64(),
    "spend": pa.float64(), "balance": pa.float64(), "uses": pa.int64(), "weight": pa.float64(),
    "event_timestamp": pa.timestamp("us", "UTC"),
}  # fmt: skip
"""Columns of the shop's files."""

EXTREMES: Mapping[str, Sequence[Any]] = {
    "visits": [0, 1, -1, 127, 128, 16_383, 16_384, -(2**53), 2**53, 10**9],
    "level": [0, -1, 2**31 - 1, -(2**31), 300],
    "score": [0.0, -0.0, 1e308, 5e-324, float("inf"), float("-inf"), float("nan"), 0.1],
    "ratio": [0.0, -0.0, 3.4e38, 1e-45, float("inf"), float("nan"), 0.1],
    "active": [True, False],
    "country": ["", "France", "Côte d'Ivoire", "中国", "🛒", "a\x00", "\r\n", "x" * 127, "x" * 128, "x" * 20_000],
    "joined_at": [
        datetime(1, 1, 1, tzinfo=UTC), datetime(1969, 12, 31, 23, 59, 59, 999_999, UTC),
        datetime(1970, 1, 1, tzinfo=UTC), datetime(2026, 5, 31, 23, 59, 59, 999_999, UTC),
        datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC),
    ],
}  # fmt: skip


@pytest.fixture
def own_redis(tmp_path: Path) -> Iterator[LocalRedis]:
    with LocalRedis(tmp_path / "redis") as redis:
        yield redis


@pytest.fixture(scope="module")
def shop_files(tmp_path_factory: pytest.TempPathFactory, redis_url: str) -> Workspace:
    """tests/feature_client/online/shop.py, with a service for every entity, as a workspace; no rows yet."""
    workspace = Workspace(tmp_path_factory.mktemp("shop"), redis_url, shop.PROJECT)
    store = shop.open_shop(workspace.root, {"type": "redis", "connection_string": redis_url})
    for name, views in SERVICES.items():
        store.apply(FeatureService(name=name, features=[store.get_feature_view(view) for view in views]))
    return workspace


SERVICES = {"customers": ["profile", "orders"], "accounts": ["accounts"], "devices": ["devices"], "pairs": ["pairs"]}


def write(workspace: Workspace, view: str, rows: Sequence[Mapping[str, Any]]) -> None:
    schema = pa.schema([(name, TYPES[name]) for name in rows[0]])
    pq.write_table(pa.Table.from_pylist(list(rows), schema), workspace.root / f"{view}.parquet")


def dump(redis: "Redis") -> Dump:
    return {key: redis.hgetall(key) for key in redis.scan_iter()}  # type: ignore[misc]


def feasts(redis: "Redis", workspace: Workspace, as_of: datetime, service: str = registry.SERVICE) -> Dump:
    """What Feast writes into an empty store."""
    redis.flushall()
    store = open_store(workspace)
    views = [projection.name for projection in store.get_feature_service(service).feature_view_projections]
    with reading(workspace):
        store.materialize(as_of - REACH, as_of, feature_views=views)
    return dump(redis)


def ours(redis: "Redis", workspace: Workspace, as_of: datetime, service: str = registry.SERVICE) -> Dump:
    redis.flushall()
    load(workspace, as_of, service=service, progress=False)
    return dump(redis)


def rewritten(source: Workspace, root: Path, change: Callable[[pa.Table], pa.Table]) -> Workspace:
    """The workspace again, with the same change to all of its feature files."""
    workspace = Workspace(root, source.redis, source.project)
    root.mkdir(exist_ok=True)
    shutil.copy(source.dataset_file, workspace.dataset_file)
    registry.apply(workspace)
    workspace.features.mkdir()
    for file in source.features.glob("*.parquet"):
        pq.write_table(change(pq.read_table(file)), workspace.features / file.name)
    return workspace


@pytest.mark.parametrize("at_once", [bulk.AT_ONCE, 40])
def test_the_bytes_of_our_own_views_are_feasts(
    redis: "Redis", generated: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at_once: int
) -> None:
    """Rows at both ends of the window and just outside, corrections of the same instant, in any order."""
    monkeypatch.setattr(bulk, "AT_ONCE", at_once)
    as_of = generated.dataset().as_of

    def change(table: pa.Table) -> pa.Table:
        parts = [table]
        newest = table.filter(pa.compute.equal(table["event_timestamp"], pa.scalar(as_of, INSTANT)))
        for number, at in enumerate((as_of - REACH, as_of - REACH - MICROSECOND, as_of + MICROSECOND, as_of - SECOND)):
            parts.append(at_instant(newest.slice(number * 20, 20), at, suffix="" if number == 3 else f"-{number}"))
        corrected = newest.slice(100, 50).set_column(
            newest.column_names.index("created_timestamp"),
            "created_timestamp",
            pa.array([datetime(2026, 1, 3, tzinfo=UTC)] * 50, INSTANT),
        )
        for name in corrected.column_names:
            if corrected[name].type == pa.float64():
                column = pa.compute.add(corrected[name], 1.0)
                corrected = corrected.set_column(corrected.column_names.index(name), name, column)
        rows = pa.concat_tables([*parts, corrected])
        return rows.take(np.random.default_rng(3).permutation(len(rows)))

    workspace = rewritten(generated, tmp_path / "changed", change)
    expected = feasts(redis, workspace, as_of)

    assert ours(redis, workspace, as_of) == expected
    assert len(expected) == len(feasts(redis, generated, as_of)) + 20
    assert expected != feasts(redis, generated, as_of)


INSTANT = pa.timestamp("us", "UTC")


def at_instant(rows: pa.Table, at: datetime, suffix: str) -> pa.Table:
    """The same rows at another time, of customers with other ids."""
    for name in rows.column_names:
        if name == "event_timestamp":
            column = pa.array([at] * len(rows), INSTANT)
        elif name.endswith("customer_id"):
            column = pa.compute.binary_join_element_wise(rows[name].cast(pa.string()), suffix, "")
        else:
            continue
        rows = rows.set_column(rows.column_names.index(name), name, column)
    return rows


@pytest.mark.parametrize(("as_of", "at_once"), [(NOW, bulk.AT_ONCE), (datetime(1970, 1, 1, 0, 0, 0, 1, UTC), 700)])
def test_the_bytes_of_every_type_are_feasts(
    redis: "Redis", shop_files: Workspace, monkeypatch: pytest.MonkeyPatch, as_of: datetime, at_once: int
) -> None:
    """Extremes, nulls, any text, customers that one of the views does not have, times to the microsecond."""
    monkeypatch.setattr(bulk, "AT_ONCE", at_once)
    draw = np.random.default_rng(5)
    ids = [f"c{n}" for n in range(3_000)] + ["", "é", "日本", "🛒", "a b", "-1", "x:y", "\x00", "{tag}", "z" * 600]

    def at() -> datetime:
        return as_of - int(draw.integers(3)) * MICROSECOND - int(draw.integers(3)) * timedelta(days=1)

    def any_of(name: str) -> Any:
        return None if draw.random() < 0.2 else EXTREMES[name][int(draw.integers(len(EXTREMES[name])))]

    def profile(customer: str) -> dict[str, Any]:
        values = {name: any_of(name) for name in EXTREMES}
        return {"customer_id": customer, "customer_copy": customer, "event_timestamp": at(), **values}

    def orders(customer: str, n: int) -> dict[str, Any]:
        # Whole numbers without a null beside them keep all their digits in Feast, too.
        number = n - 2**63 if n % 2 else 2**63 - 1 - n
        return {"customer_id": customer, "event_timestamp": at(), "orders": number, "spend": 0.5, "city": None}

    write(shop_files, "profile", [profile(customer) for customer in ids if draw.random() < 0.9])
    write(shop_files, "orders", [orders(customer, n) for n, customer in enumerate(ids) if draw.random() < 0.9])

    expected = feasts(redis, shop_files, as_of, "customers")

    assert ours(redis, shop_files, as_of, "customers") == expected
    fields = [len(row) for row in expected.values()]
    assert {fields.count(4) > 0, fields.count(9) > 0, fields.count(13) > 0} == {True}


@pytest.mark.parametrize("at_once", [bulk.AT_ONCE, 2])
def test_the_bytes_of_other_keys_are_feasts(
    redis: "Redis", shop_files: Workspace, monkeypatch: pytest.MonkeyPatch, at_once: int
) -> None:
    monkeypatch.setattr(bulk, "AT_ONCE", at_once)
    accounts = [0, 1, -1, 2**63 - 1, -(2**63)]
    at = {"event_timestamp": NOW}
    write(shop_files, "accounts", [{"account_id": n, "balance": 1.5, **at} for n in accounts])
    write(shop_files, "devices", [{"device_id": n, "uses": 7, **at} for n in (5, -5, 2**31 - 1)])
    write(shop_files, "pairs", [{"customer_id": "é", "account_id": n, "weight": 2.5, **at} for n in accounts])

    for service, rows in (("accounts", 5), ("devices", 3), ("pairs", 5)):
        expected = feasts(redis, shop_files, NOW, service)
        assert ours(redis, shop_files, NOW, service) == expected
        assert len(expected) == rows


@pytest.mark.parametrize("unit", ["s", "ms", "us", "ns"])
def test_columns_of_neighbouring_types_are_stored_as_declared(redis: "Redis", shop_files: Workspace, unit: str) -> None:
    """Files that others wrote: times of other units and without a zone, whole numbers and floats of other widths."""
    rows = [
        blank_profile(f"c{n}")
        | {"visits": n - 3, "level": -n, "ratio": 0.1 + n, "score": n, "joined_at": NOW - n * MICROSECOND}
        for n in range(5)
    ]
    write(shop_files, "profile", rows)
    write(shop_files, "orders", [{"customer_id": "c1", "event_timestamp": NOW, "orders": 1, "spend": 1.0, "city": ""}])
    file = shop_files.root / "profile.parquet"
    table = pq.read_table(file)
    others = {
        "visits": pa.int32(), "level": pa.int64(), "ratio": pa.float64(), "score": pa.int64(),
        "joined_at": pa.timestamp(unit), "event_timestamp": pa.timestamp(unit),
    }  # fmt: skip
    for name, dtype in others.items():
        table = table.set_column(table.column_names.index(name), name, table[name].cast(dtype, safe=False))
    pq.write_table(table, file)

    expected = feasts(redis, shop_files, NOW, "customers")

    assert ours(redis, shop_files, NOW, "customers") == expected
    assert len(expected) == 5


def test_whole_numbers_beside_nulls_are_exact_where_feast_rounds(redis: "Redis", shop_files: Workspace) -> None:
    """The one difference."""
    row = {"event_timestamp": NOW, "spend": 0.5, "city": "Łódź"}
    write(
        shop_files,
        "orders",
        [{"customer_id": "a", "orders": 2**53 + 1, **row}, {"customer_id": "b", "orders": None, **row}],
    )
    write(shop_files, "profile", [blank_profile("a"), blank_profile("b")])
    theirs, mine = feasts(redis, shop_files, NOW, "customers"), ours(redis, shop_files, NOW, "customers")

    differing = {key: {name for name in row if mine[key].get(name) != row[name]} for key, row in theirs.items()}
    assert mine.keys() == theirs.keys()
    assert sorted(map(len, differing.values())) == [0, 1]
    assert float(read(shop_files, shop.SHOP, ["a"]).numbers[0, 6]) == 2**53  # the model's own float64
    assert sum(b"\x20\x81\x80\x80\x80\x80\x80\x80\x10" in row.values() for row in mine.values()) == 1


def blank_profile(customer: str) -> dict[str, Any]:
    return {
        "customer_id": customer,
        "customer_copy": customer,
        "event_timestamp": NOW,
        **dict.fromkeys(EXTREMES),
        "score": 1.0,
    }


def read(workspace: Workspace, schema: FeatureSchema, customers: Sequence[str]) -> FeatureBatch:
    async def scenario() -> FeatureBatch:
        reader = RedisReader.from_connection_string(workspace.redis, 5.0)
        try:
            plan = ReadPlan(schema)
            return await reader.fetch(plan, plan.keys([{"customer_id": customer} for customer in customers]), 5.0)
        finally:
            await reader.close()

    return asyncio.run(scenario())


def test_loading_again_replaces_also_what_is_newer(redis: "Redis", generated: Workspace) -> None:
    latest = generated.dataset().as_of
    earlier = sorted(set(pq.read_table(generated.features / "lifetime.parquet")["event_timestamp"].to_pylist()))[0]
    expected = ours(redis, generated, earlier)
    then = ours(redis, generated, latest)
    assert then != expected

    loaded = load(generated, earlier, progress=False)

    assert {key: row for key, row in dump(redis).items() if key in expected} == expected
    assert loaded.entities == len(expected)
    assert loaded.rows == dict.fromkeys(loaded.rows, len(expected))
    assert len(loaded.rows) == 5


def test_copies_are_customers_of_their_own(redis: "Redis", generated: Workspace, schema: FeatureSchema) -> None:
    loaded = load(generated, copies=3, progress=False)

    customers = pq.read_table(generated.features / "lifetime.parquet", columns=["customer_id"])["customer_id"]
    some = sorted(set(customers.to_pylist()))[:50]
    original, *copies = (
        read(generated, generated_schema(schema, generated), [f"{customer}{suffix}" for customer in some])
        for suffix in ("", "~1", "~2")
    )
    assert redis.dbsize() == loaded.entities == 3 * loaded.rows["lifetime"] / 3
    assert not np.isnan(original.event_times).any()
    for copy in copies:
        # Also compared by the reader itself: whose id a row holds.
        assert (copy.refused, copy.corrupt) == ({}, frozenset())
        np.testing.assert_array_equal(copy.numbers, original.numbers)
        np.testing.assert_array_equal(copy.strings, original.strings)
        np.testing.assert_array_equal(copy.event_times, original.event_times)


def generated_schema(schema: FeatureSchema, workspace: Workspace) -> FeatureSchema:
    return FeatureSchema(workspace.project, schema.entity, schema.features, schema.entity_fields, schema.groups)


def test_copies_need_an_id_that_is_text(shop_files: Workspace) -> None:
    with pytest.raises(MaterializeError, match="one join key, a String, not account_id"):
        load(shop_files, NOW, service="accounts", copies=2, progress=False)


def test_memory_does_not_grow_with_the_customers(redis: "Redis", shop_files: Workspace) -> None:
    def peak(customers: int) -> int:
        rows = [blank_profile(f"c{n}") for n in range(customers)]
        write(shop_files, "profile", rows)
        write(
            shop_files, "orders", [{"customer_id": "c0", "event_timestamp": NOW, "orders": 1, "spend": 1.0, "city": ""}]
        )
        del rows
        tracemalloc.start()
        try:
            load(shop_files, NOW, service="customers", copies=2, progress=False)
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    peak(10)  # what is made once
    few, many = peak(3 * bulk.BATCH), peak(12 * bulk.BATCH)
    assert redis.dbsize() == 24 * bulk.BATCH
    assert many < 1.5 * few


def broken(workspace: Workspace, redis: LocalRedis) -> Workspace:
    return Workspace(workspace.root, redis.address, workspace.project)


def test_a_store_that_is_down_is_one_sentence(generated: Workspace, tmp_path: Path) -> None:
    with LocalRedis(tmp_path) as redis:
        address = redis.address
    workspace = Workspace(generated.root, f"{address},password=hunter2", generated.project)
    with pytest.raises(MaterializeError, match=f"the online store at {address} does not take writes") as caught:
        load(workspace, progress=False)
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ([("CONFIG", "SET", "maxmemory", "1")], "maxmemory"),
        ([("REPLICAOF", "127.0.0.1", "1")], "read only replica"),
        ([("CONFIG", "SET", "requirepass", "hunter2")], "Authentication required"),
    ],
)
def test_a_store_that_refuses_is_one_sentence(
    generated: Workspace, own_redis: LocalRedis, settings: Sequence[Sequence[str]], reason: str
) -> None:
    with Redis(port=own_redis.port) as client:
        for command in settings:
            client.execute_command(*command)
    with pytest.raises(MaterializeError, match=f"does not take writes: .*{reason}"):
        load(broken(generated, own_redis), progress=False)


def test_a_store_that_fills_up_on_the_way_says_how_far_it_came(
    generated: Workspace, own_redis: LocalRedis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bulk, "BATCH", 16)
    with Redis(port=own_redis.port) as client:
        limit = client.info("memory")["used_memory"] + 2_000_000
        client.config_set("maxmemory", limit)
        with pytest.raises(MaterializeError, match=r"maxmemory.*, after [\d,]+ entities"):
            load(broken(generated, own_redis), copies=1_000, progress=False)
        # It stopped there, with 300,000 to go.
        assert 0 < client.info("stats")["total_commands_processed"] < 20_000


def test_keys_that_the_store_drops_again_are_not_lost_in_silence(generated: Workspace, own_redis: LocalRedis) -> None:
    with Redis(port=own_redis.port) as client:
        client.config_set("maxmemory-policy", "allkeys-random")
        client.config_set("maxmemory", client.info("memory")["used_memory"] + 2_000_000)
        with pytest.raises(MaterializeError, match=r"evicted [\d,]+ keys .*: it needs more memory"):
            load(broken(generated, own_redis), copies=20, progress=False)


def test_a_user_who_may_write_and_nothing_else_can_load(generated: Workspace, own_redis: LocalRedis) -> None:
    with Redis(port=own_redis.port) as client:
        client.execute_command("ACL", "SETUSER", "writer", "on", ">hunter2", "~*", "+hset")
        address = f"{own_redis.address},username=writer,password=hunter2"
        loaded = load(Workspace(generated.root, address, generated.project), progress=False)
        assert len(list(client.scan_iter())) == loaded.entities > 0


def test_one_key_of_another_type_is_not_lost(redis: "Redis", generated: Workspace) -> None:
    load(generated, progress=False)
    key = sorted(redis.scan_iter())[200]
    redis.delete(key)
    redis.set(key, "a string")
    with pytest.raises(MaterializeError, match="does not take writes: WRONGTYPE"):
        load(generated, progress=False)


def test_no_rows_in_the_window_are_refused_before_anything_is_written(redis: "Redis", generated: Workspace) -> None:
    with pytest.raises(MaterializeError, match=r"no features in the 30 days before 2031-01-01T00:00:00Z in .*lifetime"):
        load(generated, datetime(2031, 1, 1, tzinfo=UTC), progress=False)
    assert redis.dbsize() == 0


def test_a_time_without_a_zone_is_refused(generated: Workspace) -> None:
    with pytest.raises(MaterializeError, match="has no time zone"):
        load(generated, datetime(2026, 1, 1), progress=False)  # noqa: DTZ001  (the point)


def test_files_that_are_not_there_are_named(tmp_path: Path, generated: Workspace) -> None:
    workspace = rewritten(generated, tmp_path / "copy", lambda table: table)
    (workspace.features / "engagement.parquet").unlink()
    with pytest.raises(
        MaterializeError, match=r"engagement.parquet does not exist: run `rapport features build` first"
    ):
        load(workspace, progress=False)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda file: file.drop(["orders"]), "orders.parquet: orders is not there"),
        (lambda file: cast(file, "orders", pa.float64()), "orders is DOUBLE, which is not written as int64"),
        (lambda file: cast(file, "city", pa.binary()), "city is BLOB, which is not written as string"),
        (lambda file: cast(file, "customer_id", pa.int64()), "customer_id is BIGINT, which is not written as string"),
        (lambda file: cast(file, "event_timestamp", pa.int64()), "event_timestamp is BIGINT, which is not written"),
        (lambda file: without(file, "customer_id"), "orders.parquet has rows without customer_id"),
    ],
)
def test_columns_that_are_not_what_was_declared_are_refused(
    redis: "Redis", shop_files: Workspace, change: Callable[[pa.Table], pa.Table], reason: str
) -> None:
    write(shop_files, "profile", [blank_profile("1")])
    write(shop_files, "orders", [{"customer_id": "1", "event_timestamp": NOW, "orders": 1, "spend": 1.0, "city": ""}])
    file = shop_files.root / "orders.parquet"
    pq.write_table(change(pq.read_table(file)), file)
    with pytest.raises(MaterializeError, match=reason):
        load(shop_files, NOW, service="customers", progress=False)
    assert redis.dbsize() == 0


def test_a_number_beyond_its_type_is_refused(redis: "Redis", shop_files: Workspace) -> None:
    write(shop_files, "profile", [blank_profile("1") | {"level": 5}])
    write(shop_files, "orders", [{"customer_id": "1", "event_timestamp": NOW, "orders": 1, "spend": 1.0, "city": ""}])
    file = shop_files.root / "profile.parquet"
    table = cast(pq.read_table(file), "level", pa.int64())
    pq.write_table(table.set_column(table.column_names.index("level"), "level", pa.array([2**31], pa.int64())), file)
    redis.flushdb()
    with pytest.raises(MaterializeError, match=r"^profile\.parquet: level holds numbers that are too large for int32$"):
        load(shop_files, NOW, service="customers", progress=False)
    # Before anything is written, whichever share of the entities it is in.
    assert redis.dbsize() == 0


def test_features_that_are_built_anew_meanwhile_are_noticed(
    redis: "Redis", shop_files: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = [str(number) for number in range(9)]
    write(shop_files, "profile", [blank_profile(customer) for customer in ids])
    orders = [{"customer_id": id_, "event_timestamp": NOW, "orders": 1, "spend": 1.0, "city": ""} for id_ in ids]
    write(shop_files, "orders", orders)
    monkeypatch.setattr(bulk, "AT_ONCE", 3)
    select, selected = bulk._select, 0

    def and_then_built_anew(*arguments: Any) -> int:
        nonlocal selected
        selected += 1
        if selected == 3:  # the second share has begun
            file = shop_files.root / "orders.parquet"
            shutil.copyfile(file, file.with_suffix(".new"))
            file.with_suffix(".new").replace(file)
        return select(*arguments)

    monkeypatch.setattr(bulk, "_select", and_then_built_anew)
    with pytest.raises(MaterializeError, match="built anew while they were loaded"):
        load(shop_files, NOW, service="customers", progress=False)
    assert selected > 3


def cast(table: pa.Table, name: str, dtype: pa.DataType) -> pa.Table:
    return table.set_column(table.column_names.index(name), name, table[name].cast(dtype))


def without(table: pa.Table, name: str) -> pa.Table:
    return table.set_column(table.column_names.index(name), name, pa.nulls(len(table), table[name].type))


def test_types_that_it_cannot_write_are_refused_by_name(generated: Workspace, tmp_path: Path) -> None:
    workspace = rewritten(generated, tmp_path / "copy", lambda table: table)
    store = open_store(workspace)
    view = store.get_feature_view("lifetime")
    view.features.append(Field(name="embedding", dtype=Array(Float32)))
    store.apply(view)
    with pytest.raises(
        MaterializeError, match=r"lifetime: the bulk loader cannot write embedding \(Array\(Float32\)\)"
    ):
        load(workspace, progress=False)


def test_the_command_says_what_it_wrote(
    redis: "Redis", generated: Workspace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = Workspace(generated.root, generated.redis)
    workspace = rewritten(source, tmp_path / "copy", lambda table: table)
    cli.features_load(workspace.root, workspace.redis, copies=2)

    customers = len(dump(redis))
    answer = capsys.readouterr().out
    assert answer.startswith(f"{customers:,} customers, {5 * customers:,} rows, in ")
    assert workspace.customers.read_text(encoding="utf-8")


def test_a_workspace_without_declared_features_says_what_to_do(generated: Workspace, tmp_path: Path) -> None:
    with pytest.raises(
        MaterializeError, match=r"Feature service engagement does not exist .*: run `rapport features build` first"
    ):
        load(Workspace(tmp_path, generated.redis), NOW, progress=False)
