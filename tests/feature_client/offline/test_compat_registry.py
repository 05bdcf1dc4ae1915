"""What of a Feast registry becomes a compat plan, and what is refused, by name."""

from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mmh3
import pandas as pd
import pytest
from feast import Entity, FeatureService, FeatureView, Field, FileSource, ValueType
from feast.on_demand_feature_view import on_demand_feature_view
from feast.types import Float64, Int32, Int64, String, Uuid

from feature_client.offline.comparison import require_same
from feature_client.offline.compat_registry import compile_compat, require_verified
from feature_client.online.compat_plan import CompatColumn, CompatError, CompatPlan, CompatView
from tests.feature_client.online.registries import store_at
from tests.feature_client.online.test_compat import answer_of, read

if TYPE_CHECKING:
    from feast import FeatureStore

AT = datetime(2026, 6, 1, tzinfo=UTC)
DRIVER = Entity(name="driver_entity", join_keys=["driver"], value_type=ValueType.INT64)

Build = Callable[..., "FeatureStore"]


def view(tmp_path: Path, name: str, *fields: Field, key: Any = Int64, entity: Entity = DRIVER, **options: Any) -> Any:
    source = FileSource(name=name, path=str(tmp_path / f"{name}.parquet"), timestamp_field="event_timestamp")
    schema = [Field(name=entity.join_key, dtype=key), *fields]
    return FeatureView(name=name, entities=[entity], schema=schema, source=source, **options)


COUNT, RATIO = Field(name="count", dtype=Int64), Field(name="ratio", dtype=Float64)
TOKEN = Field(name="token", dtype=Uuid)


@pytest.fixture
def applied(tmp_path: Path, redis_url: str) -> Build:
    def build(*objects: Any, **registry: Any) -> "FeatureStore":
        store = store_at(tmp_path, redis_url, "compat", **registry)
        store.apply([DRIVER, *objects])
        return store

    return build


def test_a_service_becomes_a_plan_that_json_keeps(tmp_path: Path, applied: Build) -> None:
    stats = view(tmp_path, "stats", COUNT, RATIO, TOKEN)
    away = stats[["ratio", "count"]].with_name("away").with_join_key_map({"driver": "guest"})
    store = applied(stats, FeatureService(name="ride", features=[stats[["token"]].with_name("home"), away]))

    plan = compile_compat(store, "ride", full_feature_names=True)

    assert plan == CompatPlan(
        project="compat",
        service="ride",
        keys={"driver": "int64", "guest": "int64"},
        views=(
            CompatView("stats", {"driver": "driver"}, (CompatColumn("token", "home__token", "uuid"),)),
            CompatView(
                "stats",
                {"driver": "guest"},
                (CompatColumn("ratio", "away__ratio"), CompatColumn("count", "away__count")),
            ),
        ),
    )
    assert list(plan.keys) == ["driver", "guest"]
    assert CompatPlan.from_json(plan.to_json()) == plan


def test_references_are_read_in_their_order(tmp_path: Path, applied: Build) -> None:
    store = applied(view(tmp_path, "stats", COUNT, RATIO))

    [stats] = compile_compat(store, ["stats:ratio", "stats:count"]).views

    assert [column.name for column in stats.columns] == ["ratio", "count"]


def test_versions_are_read_as_feast_keeps_them(tmp_path: Path, redis_url: str, applied: Build) -> None:
    """Version 1 of a view is written beside version 0, under a name of its own."""
    store = applied(view(tmp_path, "stats", COUNT), enable_online_feature_view_versioning=True)
    store.write_to_online_store("stats", pd.DataFrame({"driver": [1], "count": [7], "event_timestamp": [AT]}))
    newer = view(tmp_path, "stats", COUNT, RATIO)
    store.apply([DRIVER, newer, FeatureService(name="unpinned", features=[newer])])
    frame = pd.DataFrame({"driver": [1], "count": [8], "ratio": [0.5], "event_timestamp": [AT]})
    store.write_to_online_store("stats", frame)

    for references in (["stats:count"], ["stats@v1:count", "stats@v1:ratio"], ["stats@v0:count"]):
        plan = compile_compat(store, references, full_feature_names=True)
        ours = read(plan, redis_url, [{"driver": 1}])
        require_same(answer_of(store, references, [{"driver": 1}], full=True), ours)
        assert plan.views[0].name == ("stats" if references == ["stats@v0:count"] else "stats_v1")
        assert ours[plan.views[0].columns[0].name] == [7 if references == ["stats@v0:count"] else 8]

    # Through a service Feast forgets the version and finds nothing.
    assert answer_of(store, "unpinned", [{"driver": 1}])["ratio"] == [None]
    with pytest.raises(CompatError, match="stats: Feast writes it as stats_v1 but reads it as stats"):
        compile_compat(store, "unpinned")


def test_what_feast_does_not_serve_is_refused_with_its_reason(tmp_path: Path, applied: Build) -> None:
    store = applied(
        view(tmp_path, "stats", COUNT),
        view(tmp_path, "other", COUNT),
        view(tmp_path, "asleep", RATIO, enabled=False),
    )

    for references, message in [
        (["stats:nothing"], "nothing"),
        (["nowhere:count"], "nowhere"),
        (["stats:count", "other:count"], "full_feature_names"),
        (["asleep:ratio"], "'asleep' is disabled"),
        (["stats@v1:count"], "online versioning is disabled"),
        (["count"], "Invalid feature reference"),
    ]:
        with pytest.raises(CompatError, match=message):
            compile_compat(store, references)
    with pytest.raises(CompatError, match="no feature service 'ride' in project 'compat'"):
        compile_compat(store, "ride")


@pytest.mark.filterwarnings("ignore:On demand feature view is an experimental feature")
def test_computed_views_are_refused_by_name(tmp_path: Path, applied: Build) -> None:
    stats = view(tmp_path, "stats", COUNT)

    @on_demand_feature_view(sources=[stats], schema=[Field(name="twice", dtype=Int64)], mode="python")  # type: ignore[untyped-decorator]
    def doubled(inputs: dict[str, Any]) -> dict[str, Any]:
        return {"twice": [2 * (count or 0) for count in inputs["count"]]}

    store = applied(stats, doubled, FeatureService(name="ride", features=[stats, doubled]))

    for features in ("ride", ["doubled:twice"]):
        with pytest.raises(CompatError, match="computed, not read: leave out doubled"):
            compile_compat(store, features)


def test_precomputed_services_are_refused(tmp_path: Path, applied: Build) -> None:
    stats = view(tmp_path, "stats", COUNT)
    store = applied(stats, FeatureService(name="ride", features=[stats], precompute_online=True))

    with pytest.raises(CompatError, match="ride: precomputed vectors are not read"):
        compile_compat(store, "ride")


def test_a_join_key_of_two_types_or_of_none_that_we_read_is_refused(tmp_path: Path, applied: Build) -> None:
    loose = Entity(name="loose", join_keys=["driver"], value_type=ValueType.INT32)
    floats = Entity(name="float_entity", join_keys=["weight"], value_type=ValueType.DOUBLE)
    store = applied(
        view(tmp_path, "stats", COUNT),
        view(tmp_path, "small", RATIO, key=Int32, entity=loose),
        view(tmp_path, "scales", COUNT, key=Float64, entity=floats),
        loose,
        floats,
    )

    with pytest.raises(CompatError, match="join key driver needs the same type in all views"):
        compile_compat(store, ["stats:count", "small:ratio"])
    with pytest.raises(CompatError, match="scales: join key weight needs the same type in all views, one of bytes"):
        compile_compat(store, ["scales:count"])
    assert compile_compat(store, ["small:ratio"]).keys["driver"] == "int32"


def test_another_key_layout_is_refused(tmp_path: Path, applied: Build) -> None:
    store = applied(view(tmp_path, "stats", COUNT))
    store.config.entity_key_serialization_version = 2

    with pytest.raises(CompatError, match="entity_key_serialization_version must be 3"):
        compile_compat(store, ["stats:count"])


def test_values_that_would_overwrite_each_other_are_refused(tmp_path: Path, applied: Build) -> None:
    """Even where only one of them is read: the other is written to the same place."""
    seen: dict[int, str] = {}
    for number in range(1_000_000):  # a 32-bit hash collides after some 77,000
        name = f"f{number}"
        if (other := seen.setdefault(mmh3.hash(f"stats:{name}"), name)) != name:
            break
    store = applied(view(tmp_path, "stats", Field(name=name, dtype=String), Field(name=other, dtype=String), COUNT))

    with pytest.raises(CompatError, match="share one field") as caught:
        compile_compat(store, [f"stats:{name}"])
    assert f"stats:{other}" in str(caught.value)


@pytest.mark.parametrize("version", ["0.66.1", "0.68.0", "1.0.0", "0.6"])
def test_a_feast_that_was_not_verified_is_refused(version: str) -> None:
    with pytest.raises(CompatError, match=rf"Feast {version} has not been verified .* --allow-unverified"):
        require_verified(version)


def test_the_installed_feast_is_verified() -> None:
    import feast  # noqa: PLC0415

    require_verified(feast.__version__)
    require_verified("0.67.9")
