"""THE declaration of entities, feature views and services: every name, type, default and label is said here once.

Tags of a field (Feast has no field of its own for them; offline/registry.py reads them):
    label, unit      for people
    group            the explanation group, labelled by the service's tag `group.<group>`
    default          what the model sees in place of a missing number
    nullable         "true": null is a meaningful value, not a defect
    max_age          how old a row may be online before the value is stale: "3d", "36h"
    on_stale         "use" (the default) or "default": what becomes of a stale value
    elapsed_as       on timestamps: the name of the model's feature, days from the timestamp to `as_of`
    role             "entity_id": a stored copy of the id that readers compare; no input of the model
Tags of a service: `calendar` (features computed from `as_of` alone), `calendar_group`, `calendar_label`.

Ratios and trends are not stored: they are part of the model's graph.
"""

from datetime import timedelta

from feast import Entity, FeatureService, FeatureView, Field, FileSource, ValueType
from feast.types import Float64, Int64, PrimitiveFeastType, String, UnixTimestamp

JOIN_LIMIT = timedelta(days=30)
"""How far back a historical join may reach for a row; online, `max_age` rules."""

customer = Entity(name="customer", join_keys=["customer_id"], value_type=ValueType.STRING)


def field(name: str, dtype: PrimitiveFeastType, label: str, group: str, unit: str = "", **tags: str) -> Field:
    return Field(name=name, dtype=dtype, tags={"label": label, "group": group, "unit": unit, **tags})


def count(name: str, label: str, group: str, unit: str, **tags: str) -> Field:
    return field(name, Int64, label, group, unit, **({"default": "0", "max_age": "3d"} | tags))


def amount(name: str, label: str, group: str, **tags: str) -> Field:
    return field(name, Float64, label, group, "currency", **({"default": "0", "max_age": "3d"} | tags))


def view(name: str, *fields: Field) -> FeatureView:
    return FeatureView(
        name=name,
        entities=[customer],
        ttl=JOIN_LIMIT,
        schema=[Field(name="customer_id", dtype=String), *fields],
        source=FileSource(
            name=name,
            path=f"features/{name}.parquet",
            timestamp_field="event_timestamp",
            created_timestamp_column="created_timestamp",
        ),
    )


orders_rolling = view(
    "orders_rolling",
    count("orders_30d", "Orders in 30 days", "frequency", "orders"),
    count("orders_90d", "Orders in 90 days", "frequency", "orders"),
    count("orders_365d", "Orders in a year", "frequency", "orders"),
    amount("spend_30d", "Spend in 30 days", "spend"),
    amount("spend_90d", "Spend in 90 days", "spend"),
    amount("spend_365d", "Spend in a year", "spend"),
    count("orders_prev_90d", "Orders in the 90 days before the last 90", "frequency", "orders"),
    amount("spend_prev_90d", "Spend in the 90 days before the last 90", "spend"),
    # Null where the year-ago window begins before the data does: then nobody knows.
    count("orders_next30_year_ago", "Orders in the next 30 days, a year ago", "rhythm", "orders", nullable="true"),
    amount("spend_next90_year_ago", "Spend in the next 90 days, a year ago", "rhythm", nullable="true"),
    amount("max_order_365d", "Largest order in a year", "spend"),
)

returns_rolling = view(
    "returns_rolling",
    count("returns_90d", "Returned lines in 90 days", "returns", "lines", nullable="true", max_age="7d"),
    count("returns_365d", "Returned lines in a year", "returns", "lines", nullable="true", max_age="7d"),
    amount("return_value_365d", "Value returned in a year", "returns", nullable="true", max_age="7d"),
)

catalog_mix = view(
    "catalog_mix",
    count("distinct_items_90d", "Different items in 90 days", "products", "items", max_age="7d"),
    count("distinct_items_365d", "Different items in a year", "products", "items", max_age="7d"),
    count("distinct_categories_365d", "Different categories in a year", "products", "categories", max_age="7d"),
    # Means over a year without orders are null.
    field("avg_price_365d", Float64, "Mean price of an item", "products", "currency", nullable="true", max_age="7d"),
    field("lines_per_order_365d", Float64, "Lines of an order", "products", "lines", nullable="true", max_age="7d"),
    field(
        "christmas_share_365d", Float64, "Share of Christmas items", "products", "share", nullable="true", max_age="7d"
    ),
    field("top_category", String, "Most bought category", "products", nullable="true", max_age="7d"),
)

lifetime = view(
    "lifetime",
    Field(name="profile_customer_id", dtype=String, tags={"role": "entity_id"}),
    field(
        "last_purchase_at", UnixTimestamp, "Days since last purchase", "recency", "days",
        elapsed_as="days_since_purchase", nullable="true", max_age="3d",
    ),
    field(
        "first_purchase_at", UnixTimestamp, "Days since first purchase", "recency", "days",
        elapsed_as="tenure_days", nullable="true", max_age="3d",
    ),
    count("lifetime_orders", "Orders so far", "frequency", "orders"),
    amount("lifetime_spend", "Spend so far", "spend"),
    # A gap needs two orders, its deviation three.
    field("mean_gap_days", Float64, "Mean days between orders", "rhythm", "days", nullable="true", max_age="7d"),
    field("gap_std_days", Float64, "Deviation of days between orders", "rhythm", "days", nullable="true", max_age="7d"),
    field("last_order_value", Float64, "Value of the last order", "spend", "currency", nullable="true", max_age="3d"),
    field("country", String, "Country", "context", nullable="true", max_age="30d"),
    field("preferred_channel", String, "Most used channel", "context", nullable="true", max_age="30d"),
)  # fmt: skip

# A data set that does not record these events has null here, not zero.
engagement_view = view(
    "engagement",
    count("sessions_7d", "Sessions in 7 days", "engagement", "sessions", nullable="true", max_age="36h"),
    count("sessions_30d", "Sessions in 30 days", "engagement", "sessions", nullable="true"),
    count("service_uses_30d", "Uses of services in 30 days", "engagement", "uses", nullable="true"),
    count("campaign_opens_30d", "Campaigns opened in 30 days", "engagement", "opens", nullable="true"),
    field(
        "last_session_at", UnixTimestamp, "Days since last session", "engagement", "days",
        elapsed_as="days_since_session", nullable="true", max_age="36h",
    ),
)  # fmt: skip

engagement = FeatureService(
    name="engagement",
    features=[lifetime, orders_rolling, catalog_mix, returns_rolling, engagement_view],
    tags={
        "calendar": "season_sin,season_cos",
        "calendar_group": "context",
        "calendar_label": "Season",
        "group.recency": "Days since last purchase",
        "group.frequency": "How often they buy",
        "group.spend": "How much they spend",
        "group.rhythm": "The rhythm of their orders",
        "group.products": "What they buy",
        "group.returns": "What they return",
        "group.engagement": "Sessions, services and campaigns",
        "group.context": "Country, channel and season",
    },
)
"""What the model of the same name reads."""
