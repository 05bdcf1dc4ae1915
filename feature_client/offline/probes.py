"""Events that tell a right feature from a nearly right one: real customers, moved so that one event is on an edge.

A window that is wrong by an hour, or that holds its end, gives the right numbers for nearly everybody: shops sleep at
midnight, when features are computed. So customers are moved in time, each as a whole, until one of their events lies on
the last second that a window must hold, or on the first that it must not.
"""

from collections.abc import Iterator
from datetime import datetime, timedelta
from decimal import Decimal

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from feature_client.offline.events import EVENT_TYPES, scratch
from feature_client.offline.learners import learners
from feature_client.offline.lookup import events_of
from feature_client.offline.oracle import WINDOWS_DAYS
from feature_client.offline.workspace import Workspace

CUSTOMERS, FEWEST, MOST = 200, 2, 300
"""Customers to choose from, and how many events each best has."""

COPIES = 6
"""Customers that are moved to each side of each edge, with an event of each type."""

FUTURE_S = (0, 3_599, 43_200, 86_399, 86_400, 30 * 86_400)
"""When, after a cutoff, what no feature may know of happens."""

MICROSECONDS = 1_000_000


def at_the_edges(workspace: Workspace, cutoff: datetime) -> pa.Table:
    """Events of customers at the edges of all windows of a cutoff; what is after it by then is left in."""
    events = _sample(workspace)
    rng = np.random.default_rng(0)
    customers = events["customer_id"].to_numpy(zero_copy_only=False)
    kinds = events["type"].to_numpy(zero_copy_only=False)
    seconds = _moments(events)
    parts: list[pa.Table] = []
    for kind in EVENT_TYPES:
        candidates = np.flatnonzero(kinds == kind)
        for second in _edges(int(cutoff.timestamp())):
            for anchor in rng.choice(candidates, min(COPIES, len(candidates)), replace=False).tolist():
                own = events.filter(pa.array(customers == customers[anchor]))
                parts.append(_moved(own, second - int(seconds[anchor]), f"{customers[anchor]}~{len(parts)}"))
    return pa.concat_tables(parts)


def absurd_future(past: pa.Table, cutoff: datetime) -> pa.Table:
    """What no shop has seen, from the cutoff on: for every customer with a past, of every type, also in old orders."""
    orders = past.group_by("customer_id").aggregate([("order_id", "max")]).to_pydict()
    planted = [
        {
            "customer_id": customer,
            "ts": cutoff + timedelta(seconds=later),
            "type": kind,
            "item": f"NEVER{number}",
            "category": "christmas" if number % 2 else "never",
            "quantity": 1_000_003,
            "amount": Decimal(99_999_989),
            "order_id": old_order if number % 2 else f"NEVER{number}",
            "country": "Nowhere",
            "channel": "nothing",
        }
        for customer, old_order in zip(orders["customer_id"], orders["order_id_max"], strict=True)
        for number, later in enumerate(FUTURE_S)
        for kind in EVENT_TYPES
    ]
    return pa.Table.from_pylist(planted, past.schema)


def _edges(cutoff: int) -> Iterator[int]:
    """Epoch seconds: of each window its first second and the one before, and likewise the cutoff."""
    for days in (0, *WINDOWS_DAYS):
        yield from (cutoff - days * 86_400, cutoff - days * 86_400 - 1)


def _sample(workspace: Workspace) -> pa.Table:
    """All events of some customers that may be trained on, the same ones for the same events."""
    with scratch(workspace) as (connection, _):
        connection.create_view("learning", learners(connection.read_parquet(workspace.events)))
        chosen = connection.raw_sql(
            """
            SELECT customer_id FROM learning GROUP BY customer_id
            ORDER BY count(*) BETWEEN ? AND ? DESC, md5(customer_id), customer_id LIMIT ?
            """,
            parameters=[FEWEST, MOST, CUSTOMERS],
        ).fetchall()
    return events_of(workspace.events, (customer for (customer,) in chosen))


def _moments(events: pa.Table) -> npt.NDArray[np.int64]:
    """Of each event its second; of a line of an order, that of the order's first line."""
    seconds = pc.cast(events["ts"], pa.int64()).to_numpy() // MICROSECONDS
    frame = pd.DataFrame(
        {"second": seconds, **{name: events[name].to_pandas() for name in ("customer_id", "order_id")}}
    )
    first = frame.groupby(["customer_id", "order_id"], dropna=False)["second"].transform("min").to_numpy()
    bought = pc.equal(events["type"], "purchase").to_numpy(zero_copy_only=False)
    moments: npt.NDArray[np.int64] = np.where(bought, first, seconds)
    return moments


def _moved(own: pa.Table, seconds: int, name: str) -> pa.Table:
    """A customer's events, that much later and under another name."""
    ts = pc.add(own["ts"], pa.scalar(timedelta(seconds=seconds), pa.duration("us")))
    columns = {"ts": ts, "customer_id": pa.array([name] * len(own), pa.string())}
    for column, values in columns.items():
        own = own.set_column(own.schema.get_field_index(column), own.schema.field(column), values)
    return own
