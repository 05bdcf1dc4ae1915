"""Some customers that the online store knows, for a first request and for load tests."""

from pathlib import Path

import duckdb

from feature_client.offline.workspace import Workspace

COUNT = 1_000


def write_customers(workspace: Workspace) -> Path:
    """customers.txt: ids of up to COUNT customers with a row at as_of, one a line; busy ones first, else at random."""
    with duckdb.connect() as connection:
        rows = connection.execute(
            """
            SELECT customer_id FROM read_parquet(?) WHERE event_timestamp = ?
            ORDER BY lifetime_orders >= 3 AND last_purchase_at > event_timestamp - INTERVAL 60 DAY DESC,
                     md5(customer_id)
            LIMIT ?
            """,
            [str(workspace.features / "lifetime.parquet"), workspace.dataset().as_of, COUNT],
        ).fetchall()
    workspace.customers.write_text("".join(f"{customer}\n" for (customer,) in rows), encoding="utf-8")
    return workspace.customers
