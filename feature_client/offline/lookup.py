"""What is looked up in a workspace's events, which may be larger than memory: some customers, and when types began.

By DuckDB, which looks at those row groups alone that may hold a customer; PyArrow would read the whole file, and hold
more of it the larger it is.
"""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

import duckdb
import pyarrow as pa

from feature_client.offline.events import MEMORY


def events_of(path: Path, customers: Iterable[str]) -> pa.Table:
    """All events of these customers, in the order of the file."""
    wanted = sorted(set(customers))
    named = ", ".join("?" * len(wanted)) or "NULL"
    with _reading() as connection:
        return connection.execute(
            f"SELECT * FROM read_parquet(?) WHERE customer_id IN ({named}) ORDER BY ALL",  # noqa: S608  (marks of parameters)
            [str(path), *wanted],
        ).fetch_arrow_table()


def begun(path: Path) -> Mapping[str, datetime]:
    """Event type -> its first event of all."""
    with _reading() as connection:
        return dict(
            connection.execute("SELECT type, min(ts) FROM read_parquet(?) GROUP BY type", [str(path)]).fetchall()
        )


@contextmanager
def _reading() -> Iterator[duckdb.DuckDBPyConnection]:
    with duckdb.connect(config={"memory_limit": MEMORY}) as connection:
        connection.execute("SET TimeZone = 'UTC'")
        yield connection
