"""Whose past is trained on: all customers of a small data set, a sample of fixed size of a large one.

Training rows are customers times cutoffs, and training holds them in memory: neither that, nor the time of what is done
once a cutoff, may grow with the data. The row that is served, at `as_of`, is built for every customer.
"""

import ibis.expr.types as ir

LEARNERS = 50_000
"""About so many customers: at 26 cutoffs a million rows."""

DIGITS = 8
"""Of the hash that are looked at: 16 ** 8 places, 430 for each of ten million customers."""


def learners(events: ir.Table, at_most: int = LEARNERS) -> ir.Table:
    """The events of those who are trained on; `events` itself where there are no more than `at_most`.

    By the MD5 of the id: whoever is among them stays there when others come and the share is the same, whatever the
    order of rows, the machine and the version of DuckDB.
    """
    customers = int(events.customer_id.nunique().to_pyarrow().as_py())
    if customers <= at_most:
        return events
    below = f"{16**DIGITS * at_most // customers:0{DIGITS}x}"
    return events.filter(events.customer_id.hexdigest("md5").left(DIGITS) < below)
