"""Raw lines of Online Retail II as the oracle's events, in plain Python: what `load_events` makes of them, again."""

import re
from collections.abc import Iterable
from datetime import UTC
from decimal import Decimal
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from feature_client.offline.oracle import Event, History
from feature_client.offline.retail import CATEGORIES, PRODUCT


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


def _floats(customers: Iterable[str]) -> pa.Array:
    return pa.array([float(customer) for customer in customers], pa.float64())
