"""Every feature again, in plain Python from raw events: slow, obvious, and sharing no code with what it checks.

What builds, stores, reads and encodes features is held against this, in tests, before training (parity.py) and in
service (skew.py). Whoever changes a feature's definition changes it here as well.
"""

import itertools
import math
import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal
from pathlib import Path

import numpy as np
import pyarrow as pa

from feature_client.offline.lookup import begun, events_of
from feature_client.schema import FeatureSchema

Value = float | int | str | datetime | None

WINDOWS_DAYS = (7, 30, 90, 180, 275, 335, 365)
"""How long before a cutoff a window begins or ends."""

YEAR_DAYS = 365.2425


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


def read_history(path: Path, customers: Iterable[str]) -> History:
    """Of some customers, from a workspace's events; a file may be larger than memory."""
    return History(_by_customer(events_of(path, customers)), begun(path))


def history_of(events: pa.Table) -> History:
    """Of everybody in a table of events."""
    first = events.group_by("type").aggregate([("ts", "min")]).to_pylist()
    return History(_by_customer(events), {found["type"]: found["ts_min"] for found in first})


def _by_customer(events: pa.Table) -> dict[str, list[Event]]:
    found: dict[str, list[Event]] = {}
    for row in events.to_pylist():
        found.setdefault(row.pop("customer_id"), []).append(Event(**row))
    return found


def stored_fields(history: History, customer: str, cutoff: datetime) -> dict[str, Value]:
    """All stored fields of a customer at a cutoff, from the events before it."""
    past = [event for event in history.events.get(customer, ()) if event.ts < cutoff]
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


def model_inputs(schema: FeatureSchema, fields: Mapping[str, Value], as_of: datetime) -> dict[str, float | str | None]:
    """What a model reads at `as_of` of stored fields, readable: numbers rounded to float32, missing as None."""
    turn = 2 * math.pi * as_of.timestamp() / (YEAR_DAYS * 86_400)
    season: dict[str, Value] = {"season_sin": math.sin(turn), "season_cos": math.cos(turn)}
    found: dict[str, float | str | None] = {}
    for feature in schema.features:
        value = season[feature.name] if feature.kind == "calendar" else fields[str(feature.field)]
        if isinstance(value, datetime):
            value = (as_of - value).total_seconds() / 86_400
        if isinstance(value, str):
            found[feature.name] = value if value in feature.vocabulary else "(unseen)"
        else:
            found[feature.name] = None if value is None else float(np.float32(value))
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
