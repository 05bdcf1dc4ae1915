"""THE declaration of entities, feature views and services: every name, type, default and label is said here once.

Tags of a field (Feast has no field of its own for them; offline/registry.py reads them):
    label, unit      for people
    say              the phrase that names a value in a sentence: "no purchase for {value}"; `say_zero`, `say_missing`
                     and `say_unseen` (a category unknown to the model) where there is no value to name
    group            the explanation group, labelled by the service's tag `group.<group>`
    default          what the model sees in place of a missing number
    nullable         "true": null is a meaningful value, not a defect
    max_age          how old a row may be online before the value is stale: "3d", "36h"
    on_stale         "use" (the default) or "default": what becomes of a stale value
    elapsed_as       on timestamps: the name of the model's feature, days from the timestamp to `as_of`
    role             "entity_id": a stored copy of the id that readers compare; no input of the model
    actionable       "true": somebody can bring it about that the value changes, so what-if may propose it
Tags of a service: `calendar` (features computed from `as_of` alone), `calendar_group`, `calendar_label`,
`calendar_say`, and the words that sentences are made of. docs/reasons.md explains those that people read;
german.py says them in German.

Actionable is what marketing sets off directly, by an invitation, a campaign or an offer of another channel: visits,
opens, uses of services, the channel. Orders, spend, returns and what was bought are what the scores are about: "if
they had ordered twice more" is true and advises nothing, and no campaign changes the past that tenure, rhythm and the
windows of a year ago are made of.

Ratios and trends are not stored: they are part of the model's graph.
"""

from datetime import timedelta

from feast import Entity, FeatureService, FeatureView, Field, FileSource, ValueType
from feast.types import Float64, Int64, PrimitiveFeastType, String, UnixTimestamp

from feature_client.feature_repo import german

JOIN_LIMIT = timedelta(days=30)
"""How far back a historical join may reach for a row; online, `max_age` rules."""

customer = Entity(name="customer", join_keys=["customer_id"], value_type=ValueType.STRING)


def field(name: str, dtype: PrimitiveFeastType, label: str, group: str, unit: str = "", **tags: str) -> Field:
    translated = german.FIELDS.get(name, {})
    return Field(name=name, dtype=dtype, tags={"label": label, "group": group, "unit": unit, **tags, **translated})


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
    count("orders_30d", "Orders in 30 days", "frequency", "orders",
          say="{value} in 30 days", say_zero="no order in 30 days"),
    count("orders_90d", "Orders in 90 days", "frequency", "orders",
          say="{value} in 90 days", say_zero="no order in 90 days"),
    count("orders_365d", "Orders in a year", "frequency", "orders",
          say="{value} in a year", say_zero="no order in a year"),
    amount("spend_30d", "Spend in 30 days", "spend",
           say="{value} spent in 30 days", say_zero="nothing spent in 30 days"),
    amount("spend_90d", "Spend in 90 days", "spend",
           say="{value} spent in 90 days", say_zero="nothing spent in 90 days"),
    amount("spend_365d", "Spend in a year", "spend",
           say="{value} spent in a year", say_zero="nothing spent in a year"),
    count("orders_prev_90d", "Orders in the 90 days before the last 90", "frequency", "orders",
          say="{value} in the 90 days before the last 90", say_zero="no order in the 90 days before the last 90"),
    amount("spend_prev_90d", "Spend in the 90 days before the last 90", "spend",
           say="{value} spent in the 90 days before the last 90",
           say_zero="nothing spent in the 90 days before the last 90"),
    # Null where the year-ago window begins before the data does: then nobody knows.
    count("orders_next30_year_ago", "Orders in the next 30 days, a year ago", "rhythm", "orders", nullable="true",
          say="{value} in the next 30 days of a year ago", say_zero="no order in the next 30 days of a year ago",
          say_missing="no record of a year ago"),
    amount("spend_next90_year_ago", "Spend in the next 90 days, a year ago", "rhythm", nullable="true",
           say="{value} spent in the next 90 days of a year ago",
           say_zero="nothing spent in the next 90 days of a year ago", say_missing="no record of a year ago"),
    amount("max_order_365d", "Largest order in a year", "spend",
           say="a largest order of {value} in a year", say_zero="no order in a year"),
)  # fmt: skip

returns_rolling = view(
    "returns_rolling",
    count("returns_90d", "Returned lines in 90 days", "returns", "lines", nullable="true", max_age="7d",
          say="{value} returned in 90 days", say_zero="nothing returned in 90 days",
          say_missing="returns not recorded"),
    count("returns_365d", "Returned lines in a year", "returns", "lines", nullable="true", max_age="7d",
          say="{value} returned in a year", say_zero="nothing returned in a year",
          say_missing="returns not recorded"),
    amount("return_value_365d", "Value returned in a year", "returns", nullable="true", max_age="7d",
           say="{value} worth of returns in a year", say_zero="nothing returned in a year",
           say_missing="returns not recorded"),
)  # fmt: skip

catalog_mix = view(
    "catalog_mix",
    count("distinct_items_90d", "Different items in 90 days", "products", "items", max_age="7d",
          say="{number} different {item|items} in 90 days", say_zero="no item in 90 days"),
    count("distinct_items_365d", "Different items in a year", "products", "items", max_age="7d",
          say="{number} different {item|items} in a year", say_zero="no item in a year"),
    count("distinct_categories_365d", "Different categories in a year", "products", "categories", max_age="7d",
          say="{number} different {category|categories} in a year", say_zero="no category in a year"),
    # Means over a year without orders are null.
    field("avg_price_365d", Float64, "Mean price of an item", "products", "currency", nullable="true", max_age="7d",
          say="a mean price of {value} an item", say_missing="no order in a year"),
    field("lines_per_order_365d", Float64, "Lines of an order", "products", "lines", nullable="true", max_age="7d",
          say="{value} an order", say_missing="no order in a year"),
    field("christmas_share_365d", Float64, "Share of Christmas items", "products", "share", nullable="true",
          max_age="7d", say="{value} Christmas items", say_zero="no Christmas items", say_missing="no order in a year"),
    field("top_category", String, "Most bought category", "products", nullable="true", max_age="7d",
          say="buys {value} most", say_missing="no order in a year",
          say_unseen="buys a category most that was not seen in training"),
)  # fmt: skip

lifetime = view(
    "lifetime",
    Field(name="profile_customer_id", dtype=String, tags={"role": "entity_id"}),
    field("last_purchase_at", UnixTimestamp, "Days since last purchase", "recency", "days",
          elapsed_as="days_since_purchase", nullable="true", max_age="3d",
          say="no purchase for {value}", say_zero="a purchase within the last day", say_missing="no purchase so far"),
    field("first_purchase_at", UnixTimestamp, "Days since first purchase", "recency", "days",
          elapsed_as="tenure_days", nullable="true", max_age="3d",
          say="a customer for {value}", say_zero="a customer for less than a day", say_missing="no purchase so far"),
    count("lifetime_orders", "Orders so far", "frequency", "orders",
          say="{value} so far", say_zero="no order so far"),
    amount("lifetime_spend", "Spend so far", "spend",
           say="{value} spent so far", say_zero="nothing spent so far"),
    # A gap needs two orders, its deviation three.
    field("mean_gap_days", Float64, "Mean days between orders", "rhythm", "days", nullable="true", max_age="7d",
          say="{value} between orders on average", say_zero="all orders on one day", say_missing="no second order yet"),
    field("gap_std_days", Float64, "Deviation of days between orders", "rhythm", "days", nullable="true",
          max_age="7d", say="time between orders varies by {value}", say_zero="orders at even intervals",
          say_missing="no third order yet"),
    field("last_order_value", Float64, "Value of the last order", "spend", "currency", nullable="true", max_age="3d",
          say="a last order of {value}", say_missing="no order so far"),
    field("country", String, "Country", "context", nullable="true", max_age="30d",
          say="a customer in {value}", say_missing="country not known", say_unseen="a country not seen in training"),
    field("preferred_channel", String, "Most used channel", "context", nullable="true", max_age="30d",
          actionable="true", say="uses {value} most", say_missing="channel not known",
          say_unseen="a channel not seen in training"),
)  # fmt: skip

# A data set that does not record these events has null here, not zero.
engagement_view = view(
    "engagement",
    count("sessions_7d", "Sessions in 7 days", "engagement", "sessions", nullable="true", max_age="36h",
          actionable="true", say="{value} in 7 days", say_zero="no session in 7 days",
          say_missing="sessions not recorded"),
    count("sessions_30d", "Sessions in 30 days", "engagement", "sessions", nullable="true",
          actionable="true", say="{value} in 30 days", say_zero="no session in 30 days",
          say_missing="sessions not recorded"),
    count("service_uses_30d", "Uses of services in 30 days", "engagement", "uses", nullable="true",
          actionable="true", say="{value} of services in 30 days", say_zero="no service used in 30 days",
          say_missing="use of services not recorded"),
    count("campaign_opens_30d", "Campaigns opened in 30 days", "engagement", "opens", nullable="true",
          actionable="true", say="{number} {campaign|campaigns} opened in 30 days",
          say_zero="no campaign opened in 30 days", say_missing="campaigns not recorded"),
    field("last_session_at", UnixTimestamp, "Days since last session", "engagement", "days",
          elapsed_as="days_since_session", nullable="true", max_age="36h", actionable="true",
          say="no session for {value}", say_zero="a session within the last day", say_missing="no session on record"),
)  # fmt: skip

engagement = FeatureService(
    name="engagement",
    features=[lifetime, orders_rolling, catalog_mix, returns_rolling, engagement_view],
    tags={
        "calendar": "season_sin,season_cos",
        "calendar_group": "context",
        "calendar_label": "Season",
        "calendar_say": "it is {value}",
        "group.recency": "Days since last purchase",
        "group.frequency": "How often they buy",
        "group.spend": "How much they spend",
        "group.rhythm": "The rhythm of their orders",
        "group.products": "What they buy",
        "group.returns": "What they return",
        "group.engagement": "Sessions, services and campaigns",
        "group.context": "Country, channel and season",
        # Nouns, as in: raises churn by 12 points.
        "task.purchase_30d": "the chance of a purchase",
        "task.churn_90d": "churn",
        "task.spend_90d": "expected spend",
        "unit.days": "day|days",
        "unit.orders": "order|orders",
        "unit.lines": "line|lines",
        "unit.items": "item|items",
        "unit.categories": "category|categories",
        "unit.sessions": "session|sessions",
        "unit.uses": "use|uses",
        "unit.opens": "open|opens",
        "currency.GBP": "£{number}",
        "currency.EUR": "€{number}",
        "currency.USD": "${number}",
        **german.SERVICE,
    },
)
"""What the model of the same name reads."""
