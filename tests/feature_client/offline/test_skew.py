"""What a store serves is recomputed from raw events: whatever is altered in it is found, named and measured."""

import json
from dataclasses import replace
from datetime import timedelta

import pytest
from redis import Redis

from feature_client.offline import bulk
from feature_client.offline.aggregates import read_schema
from feature_client.offline.skew import SkewCheckError, check, choose_customers
from feature_client.offline.skew_report import Report
from feature_client.offline.workspace import Workspace
from feature_client.schema import FeatureSchema
from feature_client.served import SourceError, StoreSource
from tests.feast_layout import field_of, key_of, stored_value

CATEGORIES = {"country": ("France",), "preferred_channel": ("web", "app"), "top_category": ()}


@pytest.fixture(scope="module")
def trained(generated: Workspace) -> FeatureSchema:
    """As a release has it: with some of the words."""
    return read_schema(generated).with_vocabularies(CATEGORIES)


@pytest.fixture
def loaded(generated: Workspace, redis: "Redis") -> list[str]:
    """Customers of the store, which holds what is known of everybody at `as_of`."""
    bulk.load(generated, progress=False)
    return choose_customers(generated, 100, seed=0)


@pytest.fixture
def source(generated: Workspace, trained: FeatureSchema) -> StoreSource:
    return StoreSource(trained, "7", generated.redis, generated.dataset().as_of)


def alter(redis: "Redis", schema: FeatureSchema, customer: str, **values: float | str | None) -> None:
    for name, value in values.items():
        [feature] = [feature for feature in schema.features if feature.field == name]
        raw = stored_value(value, timestamp=name.endswith("_at"))
        redis.hset(key_of(schema, customer), field_of(str(feature.view), name), raw)  # type: ignore[arg-type]


def facts(report: Report) -> dict[str, object]:
    found: dict[str, object] = json.loads(report.to_json())
    return found


def test_what_was_materialized_is_what_events_say(generated: Workspace, source: StoreSource, loaded: list[str]) -> None:
    report = check(generated, source, loaded)

    assert (report.skewed, report.absent, report.verdict) == ([], [], "")
    assert report.is_clean
    assert report.compared.total() == len(loaded) * len(source.schema.features)
    assert not report.behind
    assert facts(report)["ok"] is True
    assert "0 differ" in list(report.lines())[1]


def test_a_row_that_was_altered_is_named_with_how_often_and_how_much(
    generated: Workspace, source: StoreSource, loaded: list[str], redis: "Redis"
) -> None:
    served = {one.entity: one.features for one in source.look_up(loaded[:4])}
    for off, customer in enumerate(loaded[:3], start=1):
        spent = served[customer]["spend_365d"].value
        assert isinstance(spent, float)
        alter(redis, source.schema, customer, spend_365d=spent + off)
    alter(
        redis, source.schema, loaded[3], country="France" if served[loaded[3]]["country"].value != "France" else "Peru"
    )
    report = check(generated, source, loaded)

    assert report.skewed == ["spend_365d", "country"]
    assert report.verdict == "service and raw events differ in spend_365d, country"
    found = facts(report)["features"]["spend_365d"]  # type: ignore[index]
    assert (found["compared"], found["differ"]) == (len(loaded), 3)
    assert found["max_absolute"] == pytest.approx(3, rel=1e-3)
    assert found["median_absolute"] == pytest.approx(2, rel=1e-3)
    assert [example["customer"] for example in found["examples"]] == loaded[2::-1]
    lines = list(report.lines())
    assert any(line.startswith("spend_365d") and f"{loaded[2]}: " in line for line in lines)

    allowed = check(generated, source, loaded, allowed=["spend_365d"])
    assert allowed.skewed == ["country"]
    assert check(generated, source, loaded, allowed=["spend_365d", "country"]).is_clean
    with pytest.raises(SkewCheckError, match="not features of this model: spend_9d"):
        check(generated, source, loaded, allowed=["spend_9d"])


def test_a_value_in_place_of_nothing_and_the_other_way_are_differences(
    generated: Workspace, source: StoreSource, loaded: list[str], redis: "Redis"
) -> None:
    alter(redis, source.schema, loaded[0], orders_90d=None)
    single = next(one.entity for one in source.look_up(loaded) if one.features["gap_std_days"].value is None)
    alter(redis, source.schema, single, gap_std_days=0.0)

    report = check(generated, source, loaded)

    assert sorted(report.skewed) == ["gap_std_days", "orders_90d"]
    assert facts(report)["features"]["orders_90d"]["max_absolute"] is None  # type: ignore[index]


def test_what_happened_after_a_row_was_computed_is_no_skew_but_said(
    generated: Workspace, trained: FeatureSchema, loaded: list[str], redis: "Redis"
) -> None:
    """Rows of one cutoff, served at a later instant: the clock moves on, stored values stay, and some are too old."""
    last = generated.dataset().as_of
    redis.flushall()
    bulk.load(generated, last - timedelta(days=91), progress=False)
    source = StoreSource(trained, "7", generated.redis, last)
    report = check(generated, source, loaded)

    assert report.skewed == []
    assert report.behind["orders_90d"] > 0
    assert report.behind["season_sin"] == 0
    assert report.stale["orders_90d"] == report.customers - report.new
    assert "no skew, but behind" in "\n".join(report.lines())


def test_customers_that_the_store_lost_are_counted_and_new_ones_are_none_of_them(
    generated: Workspace, source: StoreSource, loaded: list[str], redis: "Redis"
) -> None:
    redis.delete(key_of(source.schema, loaded[0]))
    report = check(generated, source, [*loaded, "nobody"])

    assert (report.absent, report.new, report.skewed) == ([loaded[0]], 1, [])
    assert not report.is_clean
    assert report.verdict == "1 customers are not in the store"


def test_a_declaration_that_changed_since_training_is_named(
    generated: Workspace, source: StoreSource, loaded: list[str]
) -> None:
    """A release that was trained with another default."""
    features = tuple(
        replace(feature, default=50.0) if feature.name == "spend_30d" else feature for feature in source.schema.features
    )
    other = StoreSource(replace(source.schema, features=features), "8", source.connection, source.as_of)
    report = check(generated, other, loaded[:5])

    assert report.skewed == ["spend_30d"]
    assert report.declaration == {"spend_30d": "default is 50.0 in the model and 0.0 as declared"}


def test_the_same_seed_chooses_the_same_customers(generated: Workspace) -> None:
    first = choose_customers(generated, 50, seed=1)
    assert first == choose_customers(generated, 50, seed=1)
    assert len(set(first)) == 50
    assert first != choose_customers(generated, 50, seed=2)


def test_a_store_that_is_down_is_said_without_its_password(generated: Workspace, trained: FeatureSchema) -> None:
    source = StoreSource(trained, "7", "127.0.0.1:1,password=secret", generated.dataset().as_of)
    with pytest.raises(SourceError, match=r"^the online store at 127\.0\.0\.1:1 cannot be read") as caught:
        check(generated, source, ["c"])
    assert "secret" not in str(caught.value)
