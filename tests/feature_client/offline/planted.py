"""Defects to plant into the code that builds features: each is what a slip of the hand would make."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

import ibis
import ibis.expr.types as ir

from feature_client.offline import aggregates
from feature_client.offline.events import INSTANT
from feature_client.offline.views import VIEWS, Past

View = Callable[[Past], ir.Table]
PAST = aggregates._past


def peeking(view: str, feature: str, kind: str) -> View:
    """The view, with a count of the events of a type that knows the next day."""

    def build(past: Past) -> ir.Table:
        events = past.events.get_backend().table("events")
        ends = ibis.literal(past.cutoff + timedelta(days=1), type=INSTANT)
        seen = events.filter(events.ts < ends, events.ts >= past.ago(30), events.type == kind)
        number = seen.order_id.nunique() if kind == "purchase" else seen.count()
        counts = seen.group_by("customer_id").agg(**{feature: number})
        table = VIEWS[view](past)
        joined = table.drop(feature).left_join(counts, "customer_id").drop("customer_id_right")
        return joined.mutate(**{feature: joined[feature].fill_null(0)})

    return build


@dataclass(frozen=True)
class Shifted(Past):
    """A past whose windows of so many days begin, or end, that much later."""

    days: int = 0
    late: timedelta = timedelta()

    def ago(self, days: int) -> ir.TimestampScalar:
        late = self.late if days == self.days else timedelta()
        return ibis.literal(self.cutoff - timedelta(days=days) + late, type=INSTANT)


def shifted(view: str, days: int, late: timedelta) -> View:
    def build(past: Past) -> ir.Table:
        return VIEWS[view](Shifted(**vars(past), days=days, late=late))

    return build


def closed(connection: ibis.BaseBackend, events: ir.Table, since: Mapping[str, datetime], cutoff: datetime) -> Past:
    """A past that holds its end: with the events of the very second of the cutoff."""
    return replace(PAST(connection, events, since, cutoff + timedelta(seconds=1)), cutoff=cutoff)
