"""Every feature again, in plain Python from raw events: slow, obvious, and sharing no code with what it checks."""

import itertools
import math
import re
import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from feature_client.offline.retail import CATEGORIES, PRODUCT

Value = float | int | str | datetime | None
TYPES = ("purchase", "return", "session", "service_use", "campaign_open")


@dataclass(frozen=True)
class Event:
    ts: datetime
    type: str
    item: str | None
    category: str | None
    quantity: int
    amount: Decimal
    order_id: str | None
    country: str | None
    channel: str | None


@dataclass(frozen=True)
class History:
    """Events by customer, and when the data began to record each type."""

    events: Mapping[str, Sequence[Event]]
    since: Mapping[str, datetime]


def retail_history(path: Path, customers: Iterable[str]) -> History:
    """Of some customers, from the raw lines of Online Retail II."""
    table = pq.read_table(path)
    wanted = table.filter(pc.is_in(table["customer_id"], value_set=_floats(customers)))
    events: dict[str, list[Event]] = {}
    for line in {tuple(line.values()): line for line in wanted.to_pylist()}.values():  # exact duplicates count once
        if not re.search(PRODUCT, line["stock_code"].upper()) or line["price"] <= 0 or line["quantity"] == 0:
            continue
        words = (line["description"] or "").upper()
        quantity = abs(line["quantity"])
        event = Event(
            ts=line["ts"].replace(tzinfo=UTC),
            type="return" if line["quantity"] < 0 or line["invoice"].startswith("C") else "purchase",
            item=line["stock_code"].upper(),
            category=next((name for name, keywords in CATEGORIES.items() if re.search(keywords, words)), "other"),
            quantity=quantity,
            amount=Decimal(repr(line["price"])) * quantity,
            order_id=line["invoice"],
            country=line["country"],
            channel=None,
        )
        events.setdefault(str(int(line["customer_id"])), []).append(event)
    begin = pc.min(table["ts"]).as_py().replace(tzinfo=UTC)
    return History(events, {"purchase": begin, "return": begin})


def own_history(path: Path) -> History:
    """Of all customers, from events of our own schema."""
    events: dict[str, list[Event]] = {}
    since: dict[str, datetime] = {}
    for row in pq.read_table(path).to_pylist():
        customer = row.pop("customer_id")
        events.setdefault(customer, []).append(Event(**row))
        since[row["type"]] = min(since.get(row["type"], row["ts"]), row["ts"])
    return History(events, since)


def features(history: History, customer: str, cutoff: datetime) -> dict[str, Value]:
    """All stored fields of a customer at a cutoff."""
    past = [event for event in history.events[customer] if event.ts < cutoff]
    recorded = {kind for kind, since in history.since.items() if since < cutoff}

    def ago(days: int) -> datetime:
        return cutoff - timedelta(days=days)

    lines = [event for event in past if event.type == "purchase"]
    orders: dict[str | None, list[Event]] = {}
    for line in lines:
        orders.setdefault(line.order_id, []).append(line)
    moments = {order: min(line.ts for line in orders[order]) for order in orders}
    values = {order: sum((line.amount for line in orders[order]), Decimal(0)) for order in orders}

    def placed(older: int, newer: int = 0) -> list[Decimal]:
        return [values[order] for order in orders if ago(older) <= moments[order] < ago(newer)]

    knows_last_year = history.since["purchase"].date() <= ago(365).date()
    found: dict[str, Value] = {
        "orders_prev_90d": len(placed(180, 90)),
        "spend_prev_90d": float(sum(placed(180, 90))),
        "orders_next30_year_ago": len(placed(365, 335)) if knows_last_year else None,
        "spend_next90_year_ago": float(sum(placed(365, 275))) if knows_last_year else None,
        "max_order_365d": float(max(placed(365), default=0)),
    }
    for days in (30, 90, 365):
        found[f"orders_{days}d"] = len(placed(days))
        found[f"spend_{days}d"] = float(sum(placed(days)))

    returns = [event for event in past if event.type == "return" and event.ts >= ago(365)]
    known = "return" in recorded
    found["returns_90d"] = sum(event.ts >= ago(90) for event in returns) if known else None
    found["returns_365d"] = len(returns) if known else None
    found["return_value_365d"] = float(sum(event.amount for event in returns)) if known else None

    year = [line for line in lines if line.ts >= ago(365)]
    categories = Counter(line.category for line in year if line.category is not None)
    found["distinct_items_90d"] = len({line.item for line in year if line.ts >= ago(90)})
    found["distinct_items_365d"] = len({line.item for line in year})
    found["distinct_categories_365d"] = len(categories)
    found["avg_price_365d"] = _ratio(float(sum(line.amount for line in year)), sum(line.quantity for line in year))
    found["lines_per_order_365d"] = _ratio(len(year), len({line.order_id for line in year}))
    found["christmas_share_365d"] = _ratio(categories["christmas"], len(year))
    found["top_category"] = _mode(categories)

    ordered = sorted((moments[order], str(order)) for order in orders)
    gaps = [(after - before).total_seconds() / 86_400 for (before, _), (after, _) in itertools.pairwise(ordered)]
    found["profile_customer_id"] = customer
    found["first_purchase_at"] = ordered[0][0] if ordered else None
    found["last_purchase_at"] = ordered[-1][0] if ordered else None
    found["lifetime_orders"] = len(orders)
    found["lifetime_spend"] = float(sum(values.values()))
    found["mean_gap_days"] = statistics.fmean(gaps) if gaps else None
    found["gap_std_days"] = statistics.stdev(gaps) if len(gaps) > 1 else None
    found["last_order_value"] = float(values[ordered[-1][1]]) if ordered else None
    located = sorted((-event.ts.timestamp(), event.country) for event in past if event.country is not None)
    found["country"] = located[0][1] if located else None
    found["preferred_channel"] = _mode(Counter(e.channel for e in past if e.channel is not None and e.ts >= ago(365)))

    for kind, windows in (
        ("session", {"sessions_7d": 7, "sessions_30d": 30}),
        ("service_use", {"service_uses_30d": 30}),
        ("campaign_open", {"campaign_opens_30d": 30}),
    ):
        for name, days in windows.items():
            times = sum(event.type == kind and event.ts >= ago(days) for event in past)
            found[name] = times if kind in recorded else None
    found["last_session_at"] = max((event.ts for event in past if event.type == "session"), default=None)
    return found


def differences(actual: Mapping[str, object], expected: Mapping[str, Value]) -> dict[str, tuple[object, Value]]:
    """field -> (actual, expected) where they differ. Instants may come as whole or fractional seconds."""
    return {name: (actual[name], value) for name, value in expected.items() if not _same(actual[name], value)}


def _same(actual: object, expected: Value) -> bool:
    if isinstance(expected, datetime):
        # Feast stores whole seconds.
        return isinstance(actual, datetime) and math.floor(actual.timestamp()) == math.floor(expected.timestamp())
    if isinstance(expected, float):
        return isinstance(actual, float) and math.isclose(actual, expected, rel_tol=1e-9, abs_tol=1e-9)
    return actual == expected


def _mode(counts: Counter[str]) -> str | None:
    return min(counts, key=lambda word: (-counts[word], word)) if counts else None


def _ratio(part: float, whole: int) -> float | None:
    return part / whole if whole else None


def _floats(customers: Iterable[str]) -> pa.Array:
    return pa.array([float(customer) for customer in customers], pa.float64())
