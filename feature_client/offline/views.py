"""What each stored feature is: one Ibis expression a feature view, over the events before one cutoff.

Windows are [cutoff - N days, cutoff). Counts, sums and maxima of nothing are zero, means of nothing are null, and so is
everything about an event type that the data had not recorded before the cutoff. Sums are DECIMAL until the end, and
ties are broken by name, so the values do not depend on the order of rows or threads.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import ibis
import ibis.expr.types as ir

DAY_S = 86_400
EXACT = "decimal(38, 0)"
"""Whole numbers beyond int64: squares of seconds."""


@dataclass(frozen=True)
class Past:
    """The events before a cutoff.

    customers: customer_id, one row each. events, lines (of purchases): EVENT_SCHEMA.
    orders: customer_id, order_id, ts (its first line), value. since: event type -> its first event before the cutoff.
    """

    cutoff: datetime
    customers: ir.Table
    events: ir.Table
    lines: ir.Table
    orders: ir.Table
    since: Mapping[str, datetime]

    def ago(self, days: int) -> ir.TimestampScalar:
        return ibis.literal(self.cutoff - timedelta(days=days), type="timestamp('UTC', 6)")

    def of(self, kind: str) -> ir.Table:
        return self.events.filter(self.events.type == kind)


def orders_rolling(past: Past) -> ir.Table:
    orders = past.orders.filter(past.orders.ts >= past.ago(365))

    def between(older: int, newer: int) -> ir.BooleanValue:
        return (orders.ts >= past.ago(older)) & (orders.ts < past.ago(newer))

    columns: dict[str, ir.Value] = {}
    for days in (30, 90, 365):
        columns[f"orders_{days}d"] = orders.count(where=orders.ts >= past.ago(days))
        columns[f"spend_{days}d"] = _total(orders.value, where=orders.ts >= past.ago(days))
    columns["orders_prev_90d"] = orders.count(where=between(180, 90))
    columns["spend_prev_90d"] = _total(orders.value, where=between(180, 90))
    columns["orders_next30_year_ago"] = orders.count(where=between(365, 335))
    columns["spend_next90_year_ago"] = _total(orders.value, where=between(365, 275))
    columns["max_order_365d"] = orders.value.max().cast("float64")

    table = _with_zeros(past, orders.group_by("customer_id").agg(**columns))
    begins = past.since.get("purchase", past.cutoff)
    if begins.date() > (past.cutoff - timedelta(days=365)).date():  # the data begins within the year-ago window
        unknown = {name: ibis.null(table[name].type()) for name in ("orders_next30_year_ago", "spend_next90_year_ago")}
        table = table.mutate(**unknown)
    return table


def returns_rolling(past: Past) -> ir.Table:
    returns = past.of("return").filter(lambda events: events.ts >= past.ago(365))
    table = returns.group_by("customer_id").agg(
        returns_90d=returns.count(where=returns.ts >= past.ago(90)),
        returns_365d=returns.count(),
        return_value_365d=_total(returns.amount),
    )
    return _unless_unrecorded(past, "return", _with_zeros(past, table), table.columns[1:])


def catalog_mix(past: Past) -> ir.Table:
    lines = past.lines.filter(past.lines.ts >= past.ago(365))
    counts = lines.group_by("customer_id").agg(
        distinct_items_90d=lines["item"].nunique(where=lines.ts >= past.ago(90)),
        distinct_items_365d=lines["item"].nunique(),
        distinct_categories_365d=lines.category.nunique(),
    )
    means = lines.group_by("customer_id").agg(
        avg_price_365d=_total(lines.amount) / lines.quantity.sum().cast("float64"),
        lines_per_order_365d=lines.count().cast("float64") / lines.order_id.nunique(),
        christmas_share_365d=lines.count(where=lines.category == "christmas").cast("float64") / lines.count(),
    )
    return _joined(_with_zeros(past, counts), means, _most_frequent(lines, "category", "top_category"))


def lifetime(past: Past) -> ir.Table:
    previous = past.orders.ts.lag().over(group_by="customer_id", order_by=["ts", "order_id"])
    orders = past.orders.mutate(gap=past.orders.ts.epoch_seconds() - previous.epoch_seconds())
    counts = orders.group_by("customer_id").agg(lifetime_orders=orders.count(), lifetime_spend=_total(orders.value))
    # From whole numbers: the mean of squares minus the square of the mean would lose what it looks for.
    number, gaps = orders.gap.count(), orders.gap.sum().cast(EXACT)
    squares = (orders.gap.cast(EXACT) * orders.gap.cast(EXACT)).sum().cast(EXACT)
    deviation = (number * squares - gaps * gaps).cast("float64") / (number * (number - 1)).nullif(0).cast("float64")
    rhythm = orders.group_by("customer_id").agg(
        first_purchase_at=orders.ts.min(),
        last_purchase_at=orders.ts.max(),
        mean_gap_days=gaps.cast("float64") / number.nullif(0) / DAY_S,
        gap_std_days=deviation.sqrt() / DAY_S,
    )
    last = _first(orders, [ibis.desc("ts"), ibis.desc("order_id")]).select(
        "customer_id", last_order_value=ibis._.value.cast("float64")
    )
    located = past.events.filter(past.events.country.notnull())
    country = _first(located, [ibis.desc("ts"), "country"]).select("customer_id", "country")
    recent = past.events.filter(past.events.ts >= past.ago(365))
    channel = _most_frequent(recent, "channel", "preferred_channel")
    table = _joined(_with_zeros(past, counts), rhythm, last, country, channel)
    return table.mutate(profile_customer_id=table.customer_id)


def engagement(past: Past) -> ir.Table:
    table = past.customers
    for kind, windows in (
        ("session", {"sessions_7d": 7, "sessions_30d": 30}),
        ("service_use", {"service_uses_30d": 30}),
        ("campaign_open", {"campaign_opens_30d": 30}),
    ):
        events = past.of(kind)
        counted = events.group_by("customer_id").agg(
            **{name: events.count(where=events.ts >= past.ago(days)) for name, days in windows.items()}
        )
        table = _joined(table, _unless_unrecorded(past, kind, _with_zeros(past, counted), list(windows)))
    sessions = past.of("session")
    return _joined(table, sessions.group_by("customer_id").agg(last_session_at=sessions.ts.max()))


VIEWS: Mapping[str, Callable[[Past], ir.Table]] = {
    view.__name__: view for view in (orders_rolling, returns_rolling, catalog_mix, lifetime, engagement)
}
"""Feature view -> its columns, with customer_id; every customer of the past has one row."""


def _total(amounts: Any, where: ir.BooleanValue | None = None) -> ir.Value:
    return amounts.sum(where=where).cast("float64")


def _with_zeros(past: Past, table: ir.Table) -> ir.Table:
    joined = _joined(past.customers, table)
    return joined.mutate(**{name: joined[name].fill_null(0) for name in joined.columns if name != "customer_id"})


def _unless_unrecorded(past: Past, kind: str, table: ir.Table, columns: Any) -> ir.Table:
    return table if kind in past.since else table.mutate(**{name: ibis.null(table[name].type()) for name in columns})


def _joined(table: ir.Table, *others: ir.Table) -> ir.Table:
    for other in others:
        table = table.left_join(other, "customer_id").drop("customer_id_right")
    return table


def _first(table: ir.Table, order: list[Any]) -> ir.Table:
    place = ibis.row_number().over(group_by="customer_id", order_by=order)
    return table.mutate(place=place).filter(lambda ranked: ranked.place == 0)


def _most_frequent(table: ir.Table, column: str, name: str) -> ir.Table:
    words = table.filter(table[column].notnull()).group_by("customer_id", column).agg(times=ibis._.count())
    return _first(words, [ibis.desc("times"), column]).select("customer_id", **{name: column})
