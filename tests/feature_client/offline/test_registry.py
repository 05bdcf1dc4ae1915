"""The registry compiles into a schema, or the field at fault is named."""

from pathlib import Path

import mmh3
import msgspec
import pandas as pd
import pytest

from feature_client.offline import aggregates, historical, materialize, registry
from feature_client.offline.aggregates import BuildError
from feature_client.offline.historical import JoinError
from feature_client.offline.materialize import MaterializeError
from feature_client.offline.workspace import Workspace
from feature_client.schema import CALENDAR, FeatureSchema, JoinKey, SchemaError

CONFIG = """
project: theirs
provider: local
registry: ${RAPPORT_WORKSPACE}/registry.db
entity_key_serialization_version: 3
offline_store: {type: duckdb}
online_store: {type: redis, connection_string: "${RAPPORT_REDIS}"}
"""

DEFINITIONS = """
from datetime import timedelta
from feast import Entity, FeatureService, FeatureView, Field, FileSource, ValueType
from feast.types import Array, Float32, Float64, Int64, String, UnixTimestamp

driver = Entity(name="driver", join_keys=["driver_id"], value_type=ValueType.INT64)
stats = FeatureView(
    name="stats", entities=[driver], schema=[Field(name="driver_id", dtype=Int64), FIELDS],
    source=FileSource(name="stats", path="stats.parquet", timestamp_field="event_timestamp"),
)
service = FeatureService(name="drivers", features=[stats], tags=TAGS)
"""


def compiled(
    root: Path, fields: str, tags: str = "{}", *, config: str = CONFIG, definitions: str = DEFINITIONS
) -> FeatureSchema:
    """The schema of a user's own project with these fields."""
    repo = root / "repo"
    repo.mkdir(exist_ok=True)
    (repo / "feature_store.yaml").write_text(config)
    (repo / "definitions.py").write_text(definitions.replace("FIELDS", fields).replace("TAGS", tags))
    return registry.apply(Workspace(root / "workspace"), repo, "drivers")


def test_our_own_declarations_compile(schema: FeatureSchema) -> None:
    assert schema.entity == (JoinKey("customer_id"),)
    assert schema.entity_fields == {"lifetime": "profile_customer_id"}
    assert 30 <= len(schema.features) <= 40
    assert len(schema.groups) <= 8
    assert schema.by_name["days_since_purchase"].field == "last_purchase_at"
    assert schema.by_name["days_since_purchase"].kind == "elapsed"
    assert schema.by_name["days_since_purchase"].max_age_s == 3 * 86_400
    assert schema.by_name["orders_90d"].default == 0
    assert not schema.by_name["orders_90d"].nullable
    assert {feature.name for feature in schema.features if feature.kind == "calendar"} == set(CALENDAR)
    assert all(feature.vocabulary == () for feature in schema.features)


def test_the_compiled_schema_is_stable_and_lies_in_the_workspace(tmp_path: Path, schema: FeatureSchema) -> None:
    workspace = Workspace(tmp_path / "another")
    again = registry.apply(workspace)
    assert again == registry.apply(workspace) == schema
    assert list(again.groups) == list(schema.groups)
    assert again.digest == schema.digest
    assert msgspec.json.decode(workspace.schema_file.read_bytes(), type=FeatureSchema).digest == schema.digest


def test_a_project_without_tags_falls_back_where_that_is_safe(tmp_path: Path) -> None:
    fields = """
        Field(name="trips", dtype=Int64, tags={"default": "0"}), Field(name="city", dtype=String),
        Field(name="rating", dtype=Float32, tags={"nullable": "true", "team.owner": "fleet"}),
        Field(name="hired_at", dtype=UnixTimestamp)
    """
    schema = compiled(tmp_path, fields)
    assert schema.project == "theirs"
    assert schema.entity == (JoinKey("driver_id", "int64"),)
    assert [(f.name, f.kind, f.dtype, f.label, f.group, f.nullable) for f in schema.features] == [
        ("trips", "numeric", "int64", "trips", "other", False),
        ("city", "category", "string", "city", "other", True),
        ("rating", "numeric", "float32", "rating", "other", True),
        ("hired_at", "elapsed", "timestamp", "hired_at", "other", True),
    ]
    assert schema.groups == {"other": "Other"}


@pytest.mark.parametrize(
    ("field", "message"),
    [
        ('Field(name="x", dtype=Float64)', "stats:x: a number needs a `default` tag"),
        ('Field(name="x", dtype=Float64, tags={"default": "none"})', "stats:x: default 'none' is not a number"),
        ('Field(name="x", dtype=Float64, tags={"default": "inf"})', "stats:x: default 'inf' is not finite"),
        ('Field(name="x", dtype=Int64, tags={"default": "0", "max_age": "3 days"})', "stats:x: max_age '3 days'"),
        ('Field(name="x", dtype=Int64, tags={"nullable": "yes"})', "stats:x: nullable is 'yes'"),
        ('Field(name="x", dtype=Int64, tags={"default": "0", "on_stale": "drop"})', "stats:x: on_stale is 'drop'"),
        ('Field(name="x", dtype=Int64, tags={"default": "0", "maxage": "3d"})', "stats:x: unknown tag maxage"),
        ('Field(name="x", dtype=Int64, tags={"default": "0", "elapsed_as": "y"})', "stats:x: elapsed_as is for"),
        ('Field(name="x", dtype=String, tags={"default": "a"})', "stats:x: only numbers have a default"),
        ('Field(name="x", dtype=Array(Float32))', "stats:x: .* is no model input"),
        ('Field(name="x", dtype=Int64, tags={"role": "entity_id"})', "stats:x: a copy of the entity id is a String"),
        ('Field(name="x", dtype=Int64, tags={"default": "0", "group": "fleet"})', "drivers: no tag group.fleet"),
        (
            'Field(name="x", dtype=String), Field(name="at", dtype=UnixTimestamp, tags={"elapsed_as": "x"})',
            "declared twice: x",
        ),
    ],
)
def test_a_declaration_that_cannot_be_served_is_named(tmp_path: Path, field: str, message: str) -> None:
    with pytest.raises(SchemaError, match=message):
        compiled(tmp_path, field)


def test_a_project_of_ones_own_is_compiled_as_it_is_registered(tmp_path: Path) -> None:
    config = CONFIG.replace("${RAPPORT_WORKSPACE}", str(tmp_path / "workspace")).replace("${RAPPORT_REDIS}", "x:1")
    schema = compiled(tmp_path, 'Field(name="city", dtype=String)', config=config)

    printed = registry.compile_project(tmp_path / "repo", "drivers")
    assert msgspec.json.decode(printed, type=FeatureSchema) == schema
    with pytest.raises(SchemaError, match=r"no feature_store\.yaml"):
        registry.compile_project(tmp_path, "drivers")


def test_a_model_may_read_views_of_several_entities(tmp_path: Path) -> None:
    definitions = DEFINITIONS.replace(
        "service = ",
        """car = Entity(name="car", join_keys=["car_id"], value_type=ValueType.INT64)
cars = FeatureView(
    name="cars", entities=[car], schema=[Field(name="car_id", dtype=Int64), Field(name="brand", dtype=String)],
    source=FileSource(name="cars", path="cars.parquet", timestamp_field="event_timestamp"),
)
service = """,
    ).replace("features=[stats]", "features=[stats, cars]")

    schema = compiled(tmp_path, 'Field(name="x", dtype=String)', definitions=definitions)

    assert [key.name for key in schema.entity] == ["car_id", "driver_id"]
    assert schema.join_keys == {"cars": ("car_id",), "stats": ("driver_id",)}
    assert schema.join_keys_of("cars") == ("car_id",)


def test_a_feature_that_another_view_would_overwrite_is_refused(tmp_path: Path) -> None:
    """One that the model does not read, but that shares its entity and its four bytes in Redis."""
    mine = {mmh3.hash(f"stats:x{number}"): f"x{number}" for number in range(100_000)}
    theirs = next(name for number in range(1_000_000) if mmh3.hash(f"beside:{(name := f'y{number}')}") in mine)
    field = mine[mmh3.hash(f"beside:{theirs}")]
    definitions = DEFINITIONS.replace(
        "service = ",
        f"""beside = FeatureView(
    name="beside", entities=[driver],
    schema=[Field(name="driver_id", dtype=Int64), Field(name="{theirs}", dtype=String)],
    source=FileSource(name="beside", path="beside.parquet", timestamp_field="event_timestamp"),
)
service = """,
    )

    with pytest.raises(SchemaError, match=f"beside:{theirs} and stats:{field} share one field"):
        compiled(tmp_path, f'Field(name="{field}", dtype=String)', definitions=definitions)


def test_a_view_without_an_entity_is_refused(tmp_path: Path) -> None:
    definitions = DEFINITIONS.replace("entities=[driver], ", "").replace('Field(name="driver_id", dtype=Int64), ', "")
    assert definitions != DEFINITIONS

    with pytest.raises(SchemaError, match="stats: a view without an entity"):
        compiled(tmp_path, 'Field(name="x", dtype=String)', definitions=definitions)


def test_an_older_key_layout_is_refused(tmp_path: Path) -> None:
    older = CONFIG.replace("entity_key_serialization_version: 3", "entity_key_serialization_version: 2")

    with pytest.warns(DeprecationWarning, match="version below 3"), pytest.raises(SchemaError, match="must be 3"):
        compiled(tmp_path, 'Field(name="x", dtype=String)', config=older)


def test_an_unknown_service_or_calendar_feature_is_named(tmp_path: Path) -> None:
    with pytest.raises(SchemaError, match="no calendar feature moon_phase; there are season_sin, season_cos"):
        compiled(tmp_path, 'Field(name="x", dtype=String)', '{"calendar": "moon_phase"}')
    with pytest.raises(SchemaError, match="no feature service 'riders' in project 'rapport'"):
        registry.apply(Workspace(tmp_path), service="riders")


def test_steps_out_of_order_say_which_one_is_missing(tmp_path: Path, generated: Workspace) -> None:
    bare = Workspace(tmp_path)
    bare.dataset_file.write_bytes(generated.dataset_file.read_bytes())
    bare.events.write_bytes(generated.events.read_bytes())
    with pytest.raises(BuildError, match="run `rapport features apply` first"):
        aggregates.build(bare, progress=False)
    with pytest.raises(JoinError, match="run `rapport features build` first"):
        historical.join(bare, pd.DataFrame({"customer_id": ["1"], "event_timestamp": [bare.dataset().as_of]}))
    registry.apply(bare)
    with pytest.raises(MaterializeError, match="run `rapport features build` first"):
        materialize.materialize(bare, progress=False)


def test_an_online_store_that_is_down_is_named(generated: Workspace) -> None:
    offline = Workspace(generated.root, "127.0.0.1:1", generated.project)
    with pytest.raises(MaterializeError, match=r"the online store at 127\.0\.0\.1:1 does not take writes"):
        materialize.materialize(offline, progress=False)
