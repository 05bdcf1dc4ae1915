"""Customers, some at a time: what is computed of one needs no other's events, and memory holds one span of them.

DuckDB spills sorts to the disk, but not everything that it groups.
"""

from collections.abc import Iterator, Sequence

import ibis
import ibis.expr.types as ir

SPAN = 50_000
"""Customers."""


def spans(events: ir.Table, size: int = SPAN) -> Iterator[ir.Table]:
    """The events of `size` customers after the other, in the order of their ids; `events` itself where it has no more.

    events: of a file that is sorted by customer, of which a span is then a few row groups.
    """
    starts = _starts(events, size)
    if len(starts) < 2:
        yield events
        return
    for start, end in zip(starts, [*starts[1:], None], strict=True):
        after = events.customer_id >= start
        yield events.filter(after if end is None else after & (events.customer_id < end))


def _starts(events: ir.Table, size: int) -> Sequence[str]:
    """The first customer of each span."""
    customers = events.select("customer_id").distinct()
    placed = customers.mutate(place=ibis.row_number().over(order_by="customer_id"))
    first = placed.filter(placed.place % size == 0).order_by("customer_id")
    starts: list[str] = first.customer_id.to_pyarrow().to_pylist()
    return starts
