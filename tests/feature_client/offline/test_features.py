"""What a feature is, does not depend on who computes it, in what order, or on what happened later."""

import shutil
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path

import ibis
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from redis import Redis

from feature_client.offline import aggregates, bulk, historical, materialize, registry, skew, views
from feature_client.offline.aggregates import BuildError, read_schema
from feature_client.offline.events import EVENT_TYPES, load_events
from feature_client.offline.oracle import Value, differences, read_history, stored_fields
from feature_client.offline.store import open_store
from feature_client.offline.views import VIEWS
from feature_client.offline.workspace import Workspace
from feature_client.schema import FeatureSchema
from feature_client.served import StoreSource
from tests.feature_client.offline.conftest import CREATED, instants
from tests.feature_client.offline.raw_lines import retail_history

PAIRS = 1_000


@pytest.fixture(scope="module")
def retail(tmp_path_factory: pytest.TempPathFactory, retail_file: Path, redis_url: str) -> Workspace:
    """All of the real data, with features at random instants."""
    workspace = Workspace(tmp_path_factory.mktemp("retail"), redis_url, project="offline_retail")
    dataset = load_events(workspace, retail_file)
    registry.apply(workspace)
    aggregates.build(workspace, instants(dataset.first_event, dataset.as_of, 5), progress=False, created=CREATED)
    return workspace


@pytest.fixture(scope="module")
def pairs(retail: Workspace) -> pd.DataFrame:
    """Random customers at random instants, with their features."""
    built = read_features(retail)
    customers = built["customer_id"].drop_duplicates().sample(400, random_state=1)
    return built[built["customer_id"].isin(customers)].sample(PAIRS, random_state=2)


def test_features_equal_a_recomputation_from_raw_events(retail_file: Path, pairs: pd.DataFrame) -> None:
    history = retail_history(retail_file, pairs["customer_id"].unique())
    assert wrong(pairs, lambda customer, cutoff: stored_fields(history, customer, cutoff)) == {}


def test_training_rows_of_real_customers_equal_a_recomputation(retail: Workspace, pairs: pd.DataFrame) -> None:
    """Through Feast's point-in-time join."""
    history = read_history(retail.events, pairs["customer_id"])
    joined = historical.join(retail, pairs[["customer_id", "event_timestamp"]], progress=False)
    assert len(joined) == PAIRS
    assert wrong(joined, lambda customer, cutoff: stored_fields(history, customer, cutoff)) == {}


def test_what_a_model_gets_of_real_customers_equals_a_recomputation(
    retail: Workspace, pairs: pd.DataFrame, redis: "Redis"
) -> None:
    """Loaded as of some instants, read and encoded as for a prediction: the same values as in training."""
    schema = read_schema(retail).with_vocabularies({"country": ("United Kingdom", "France"), "top_category": ("home",)})
    compared = 0
    for cutoff, rows in sorted(pairs.groupby("event_timestamp"), reverse=True):
        instant = pd.Timestamp(str(cutoff)).to_pydatetime()
        redis.flushall()
        bulk.load(retail, instant, progress=False)
        report = skew.check(retail, StoreSource(schema, "1", retail.redis, instant), list(rows["customer_id"]))
        assert (report.skewed, report.absent, report.new) == ([], [], 0), instant
        compared += report.customers
    assert compared == PAIRS


def test_what_happens_later_changes_no_byte_of_real_features(
    tmp_path: Path, retail: Workspace, retail_file: Path
) -> None:
    """Built from the whole file, and from one that ends before the cutoff, to the second."""
    cutoffs = sorted(set(read_features(retail)["event_timestamp"]))[:3]
    then = Workspace(tmp_path)
    raw = pq.read_table(retail_file)
    ends = pa.scalar(cutoffs[-1].tz_localize(None).to_pydatetime(), raw.schema.field("ts").type)
    pq.write_table(raw.filter(pa.compute.less(raw["ts"], ends)), tmp_path / "raw.parquet")
    load_events(then, tmp_path / "raw.parquet")
    shutil.copy(retail.schema_file, then.schema_file)
    aggregates.build(then, [cutoff.to_pydatetime() for cutoff in cutoffs], progress=False, created=CREATED)

    for view in VIEWS:
        whole = pq.read_table(retail.features / f"{view}.parquet")
        early = whole.filter(pa.compute.less_equal(whole["event_timestamp"], pa.scalar(cutoffs[-1].to_pydatetime())))
        assert 0 < len(early) < len(whole)
        assert early.combine_chunks().equals(pq.read_table(then.features / f"{view}.parquet").combine_chunks()), view


def test_features_of_every_event_type_equal_a_recomputation(generated: Workspace) -> None:
    pairs = read_features(generated).sample(PAIRS // 2, random_state=3)
    history = read_history(generated.events, pairs["customer_id"])
    assert pairs["sessions_30d"].sum() > 0
    assert wrong(pairs, lambda customer, cutoff: stored_fields(history, customer, cutoff)) == {}


def test_online_values_equal_a_recomputation_from_raw_events(sample: Workspace, sample_file: Path) -> None:
    built = pd.read_parquet(sample.features / "lifetime.parquet", columns=["customer_id", "event_timestamp"])
    history = retail_history(sample_file, built["customer_id"].unique())
    store = open_store(sample)
    service = store.get_feature_service("engagement")
    compared = 0
    # Backwards in time: what is online afterwards is what was known then, whatever was there before.
    for cutoff, rows in sorted(built.groupby("event_timestamp"), reverse=True):
        instant = pd.Timestamp(str(cutoff)).to_pydatetime()
        customers = list(rows["customer_id"])
        written = materialize.materialize(sample, instant, progress=False)
        assert written == dict.fromkeys(VIEWS, len(customers))
        entity_rows = [{"customer_id": customer} for customer in customers]
        online = store.get_online_features(features=service, entity_rows=entity_rows).to_dict()
        for row, customer in enumerate(customers):
            found = {name: column[row] for name, column in online.items()}
            assert differences(found, stored_fields(history, customer, instant)) == {}, (customer, instant)
            compared += 1
    assert compared >= PAIRS


def test_what_happens_at_or_after_a_cutoff_changes_no_byte_of_its_features(tmp_path: Path, sample: Workspace) -> None:
    cutoffs = [datetime.fromisoformat("2010-12-05T12:26:00+00:00"), datetime.fromisoformat("2011-05-19T00:00:00+00:00")]
    events = pq.read_table(sample.events)
    before = events.filter(pa.compute.less(events["ts"], pa.scalar(cutoffs[-1])))
    future = before.slice(0, 2_000).to_pylist()
    for number, event in enumerate(future):
        event["ts"] = cutoffs[-1] + timedelta(seconds=number // 10)
        event["type"] = EVENT_TYPES[number % len(EVENT_TYPES)]
        event["country"], event["channel"] = "Nowhere", "web"
    after = pa.concat_tables([pa.Table.from_pylist(future, events.schema), events])

    then = built(tmp_path / "then", before, cutoffs, sample)
    assert then == built(tmp_path / "later", after, cutoffs, sample)


def test_the_order_of_rows_changes_no_byte(tmp_path: Path, sample: Workspace) -> None:
    events = pq.read_table(sample.events)
    shuffled = events.take(np.random.default_rng(5).permutation(len(events)))
    cutoff = datetime.fromisoformat("2011-05-19T00:00:00+00:00")
    assert built(tmp_path / "sorted", events, [cutoff], sample) == built(tmp_path / "any", shuffled, [cutoff], sample)


def test_a_type_that_is_not_recorded_is_null_and_not_zero(sample: Workspace) -> None:
    assert sample.dataset().recorded == ("purchase", "return")
    rows = pq.read_table(sample.features / "engagement.parquet").drop(["customer_id", "event_timestamp"])
    assert all(rows[name].null_count == len(rows) for name in rows.column_names if name != "created_timestamp")


def test_columns_that_are_not_declared_are_refused_by_name(
    tmp_path: Path, sample: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    def returns(past: views.Past) -> ibis.Table:
        return views.returns_rolling(past).rename(refunds_90d="returns_90d")

    monkeypatch.setattr(aggregates, "VIEWS", {**VIEWS, "returns_rolling": returns})
    message = r"returns_rolling: refunds_90d \(computed, not declared\), returns_90d \(declared, not computed\)"
    with pytest.raises(BuildError, match=message):
        aggregates.build(sample, [sample.dataset().as_of], progress=False)


def test_views_that_are_not_computed_are_refused_by_name(sample: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(aggregates, "VIEWS", {name: view for name, view in VIEWS.items() if name != "catalog_mix"})
    with pytest.raises(BuildError, match="either not declared or not computed: catalog_mix"):
        aggregates.build(sample, progress=False)


def test_columns_of_another_type_are_refused_by_name(sample: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    def returns(past: views.Past) -> ibis.Table:
        return views.returns_rolling(past).mutate(returns_90d=ibis.literal("many"))

    monkeypatch.setattr(aggregates, "VIEWS", {**VIEWS, "returns_rolling": returns})
    with pytest.raises(BuildError, match="returns_90d is computed as string, declared as int64"):
        aggregates.build(sample, [sample.dataset().as_of], progress=False)


def test_the_point_in_time_join_gives_what_was_built(generated: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(historical, "CHUNK", 150)
    built = read_features(generated)
    rows = built.sample(frac=0.3, random_state=4).rename(columns={"lifetime_orders": "expected"})
    entities = rows[["customer_id", "event_timestamp", "expected"]]
    joined = historical.join(generated, entities)

    assert list(joined.index) == list(entities.index)
    assert (joined["lifetime_orders"] == joined["expected"]).all()
    names = [name for name in built.columns if name not in ("customer_id", "event_timestamp")]
    pd.testing.assert_frame_equal(joined[names], built.loc[rows.index, names], check_dtype=False)


def test_the_join_takes_the_latest_row_before_and_none_from_the_future(generated: Workspace) -> None:
    built = read_features(generated)
    # The test cutoffs, 14 days apart; the one before is beyond the reach of a join.
    earlier, later = sorted(built["event_timestamp"].unique())[1:3]
    customer = built.loc[built["event_timestamp"] == earlier, "customer_id"].iloc[0]
    asked = [later - pd.Timedelta(seconds=1), later, earlier - pd.Timedelta(seconds=1)]
    joined = historical.join(generated, pd.DataFrame({"customer_id": customer, "event_timestamp": asked}))

    own = built[built["customer_id"] == customer].set_index("event_timestamp")["lifetime_spend"]
    assert joined["lifetime_spend"].iloc[0] == own[earlier]
    assert joined["lifetime_spend"].iloc[1] == own[later]
    assert joined["lifetime_spend"].isna().iloc[2]


def test_joined_rows_encode_into_tensors(generated: Workspace, schema: FeatureSchema) -> None:
    cutoff = generated.dataset().as_of
    built = read_features(generated)
    entities = built.loc[built["event_timestamp"] == cutoff, ["customer_id", "event_timestamp"]]
    strangers = pd.DataFrame({"customer_id": ["nobody"], "event_timestamp": [pd.Timestamp(cutoff)]})
    joined = historical.join(generated, pd.concat([entities, strangers], ignore_index=True))

    batch, as_of = historical.to_batch(schema, joined)
    encoded = schema.encode(batch, as_of)

    assert encoded.unknown.tolist() == [False] * len(entities) + [True]
    assert not encoded.stale.any()
    assert not encoded.defaulted[:-1].any()
    recency = encoded.numeric[:-1, [feature.name for feature in schema.numeric].index("days_since_purchase")]
    expected = (pd.Timestamp(cutoff) - joined["last_purchase_at"][:-1]).dt.total_seconds() / 86_400
    np.testing.assert_allclose(recency, expected.to_numpy(dtype=np.float32), rtol=1e-6)


def built(root: Path, events: pa.Table, cutoffs: list[datetime], like: Workspace) -> dict[str, bytes]:
    """The feature files of these events: view -> bytes."""
    workspace = Workspace(root)
    root.mkdir()
    pq.write_table(events, root / "raw.parquet")
    load_events(workspace, root / "raw.parquet")
    shutil.copy(like.schema_file, workspace.schema_file)
    aggregates.build(workspace, cutoffs, progress=False, created=CREATED)
    return {view: (workspace.features / f"{view}.parquet").read_bytes() for view in VIEWS}


def read_features(workspace: Workspace) -> pd.DataFrame:
    """All views side by side: customer_id, event_timestamp and every stored field."""
    keys = ["customer_id", "event_timestamp"]
    tables = [pd.read_parquet(workspace.features / f"{view}.parquet") for view in VIEWS]
    joined = tables[0].drop(columns="created_timestamp")
    for table in tables[1:]:
        joined = joined.merge(table.drop(columns="created_timestamp"), on=keys, validate="one_to_one")
        assert len(joined) == len(table)
    return joined


def wrong(pairs: pd.DataFrame, expected: Callable[[str, datetime], dict[str, Value]]) -> dict[tuple[str, str], object]:
    found: dict[tuple[str, str], object] = {}
    for row in pairs.astype(object).where(pairs.notna(), None).to_dict("records"):
        customer, cutoff = str(row["customer_id"]), row["event_timestamp"].to_pydatetime()
        values = {str(name): value for name, value in row.items()}
        recomputed = expected(customer, cutoff)
        # Columns with nulls are floats in pandas.
        numbers = {name: float(v) for name, v in recomputed.items() if isinstance(v, int) and not isinstance(v, bool)}
        values |= {name: float(values[name]) for name in numbers}
        if differs := differences(values, recomputed | numbers):
            found[customer, str(cutoff)] = differs
    return found
