"""A small Feast project over every type that a model can read, and the schemas that say the same to us."""

from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from feature_client.schema import Feature, FeatureSchema, JoinKey

if TYPE_CHECKING:
    from feast import FeatureStore

PROJECT = "shop"
NOW = datetime(2026, 6, 1, 12, tzinfo=UTC).timestamp()
DAY_S = 86_400.0

TYPES = {
    "visits": "int64",
    "level": "int32",
    "score": "float64",
    "ratio": "float32",
    "active": "bool",
    "country": "string",
    "joined_at": "timestamp",
}
"""Fields of the view `profile`."""


VALUE_MEMBERS = {
    "string": "string_val",
    "int32": "int32_val",
    "int64": "int64_val",
    "float64": "double_val",
    "float32": "float_val",
    "bool": "bool_val",
    "timestamp": "unix_timestamp_val",
}
"""Our dtype -> the member of feast.types.Value that holds it. On purpose not the table that `features verify` has."""


def feature(view: str, field: str, dtype: str, **rules: object) -> Feature:
    kind: Literal["numeric", "category", "elapsed"] = "numeric"
    if dtype in ("string", "timestamp"):
        kind = "category" if dtype == "string" else "elapsed"
    name = field.replace("_at", "_days")
    return Feature(name, kind, "all", name, "", view, field, dtype, **({"default": 0.0} | rules))  # type: ignore[arg-type]


def schema_of(*features: Feature, entity: tuple[JoinKey, ...], **copies: str) -> FeatureSchema:
    return FeatureSchema(PROJECT, entity, features, copies, {"all": "All"})


SHOP = schema_of(
    *(feature("profile", field, dtype) for field, dtype in TYPES.items()),
    feature("orders", "orders", "int64"),
    feature("orders", "spend", "float64"),
    feature("orders", "city", "string"),
    entity=(JoinKey("customer_id"),),
    profile="customer_copy",
)
ACCOUNTS = schema_of(feature("accounts", "balance", "float64"), entity=(JoinKey("account_id", "int64"),))
DEVICES = schema_of(feature("devices", "uses", "int64"), entity=(JoinKey("device_id", "int32"),))
# Declared against Feast's order: the plan sorts.
PAIRS = schema_of(
    feature("pairs", "weight", "float64"), entity=(JoinKey("customer_id"), JoinKey("account_id", "int64"))
)
# One model over three kinds of entity: what is known of the customer, of the account, and of the two together.
TOGETHER = replace(
    schema_of(
        feature("profile", "score", "float64"),
        feature("accounts", "balance", "float64"),
        feature("profile", "visits", "int64"),
        feature("pairs", "weight", "float64"),
        feature("orders", "city", "string"),
        entity=PAIRS.entity,
        profile="customer_copy",
    ),
    join_keys={"profile": ("customer_id",), "orders": ("customer_id",), "accounts": ("account_id",)},
)


def open_shop(directory: Path, online_store: dict[str, str]) -> "FeatureStore":
    """The project, applied. Importing Feast takes some ten seconds, so this is done once a session."""
    from feast import Entity, FeatureStore, FeatureView, Field, FileSource, ValueType  # noqa: PLC0415
    from feast.repo_config import RepoConfig  # noqa: PLC0415
    from feast.types import Bool, Float32, Float64, Int32, Int64, String, UnixTimestamp  # noqa: PLC0415

    types = {
        "int64": Int64, "int32": Int32, "float64": Float64, "float32": Float32, "bool": Bool, "string": String,
        "timestamp": UnixTimestamp,
    }  # fmt: skip
    customer = Entity(name="customer", join_keys=["customer_id"], value_type=ValueType.STRING)
    account = Entity(name="account", join_keys=["account_id"], value_type=ValueType.INT64)
    device = Entity(name="device", join_keys=["device_id"], value_type=ValueType.INT32)
    keys = {
        "customer": Field(name="customer_id", dtype=String),
        "account": Field(name="account_id", dtype=Int64),
        "device": Field(name="device_id", dtype=Int32),
    }

    def view(name: str, entities: list[Entity], fields: dict[str, str]) -> FeatureView:
        return FeatureView(
            name=name,
            entities=entities,
            schema=[
                *(keys[entity.name] for entity in entities),
                *(Field(name=field, dtype=types[dtype]) for field, dtype in fields.items()),
            ],
            source=FileSource(name=name, path=str(directory / f"{name}.parquet"), timestamp_field="event_timestamp"),
        )

    store = FeatureStore(
        config=RepoConfig(
            project=PROJECT,
            provider="local",
            registry=str(directory / "registry.db"),
            entity_key_serialization_version=3,
            online_store=online_store,
        )
    )
    store.apply(
        [
            customer,
            account,
            device,
            view("profile", [customer], TYPES | {"customer_copy": "string"}),
            view("orders", [customer], {"orders": "int64", "spend": "float64", "city": "string"}),
            view("accounts", [account], {"balance": "float64"}),
            view("devices", [device], {"uses": "int64"}),
            view("pairs", [customer, account], {"weight": "float64"}),
        ]
    )
    return store
