"""What is looked up in a workspace's events, which may be larger than memory: some customers, and when types began.

By DuckDB, which looks at those row groups alone that may hold a customer; PyArrow would read the whole file, and hold
more of it the larger it is.
"""

import tempfile
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
    with _reading(path) as connection:
        return connection.execute(
            f"SELECT * FROM read_parquet(?) WHERE customer_id IN ({named}) ORDER BY ALL",  # noqa: S608  (marks of parameters)
            [str(path), *wanted],
        ).fetch_arrow_table()


def begun(path: Path) -> Mapping[str, datetime]:
    """Event type -> its first event of all."""
    with _reading(path) as connection:
        found = connection.execute("SELECT type, min(ts) AS first FROM read_parquet(?) GROUP BY type", [str(path)])
        return {row["type"]: row["first"] for row in found.fetch_arrow_table().to_pylist()}


@contextmanager
def _reading(path: Path) -> Iterator[duckdb.DuckDBPyConnection]:
    """What needs more memory is spilled beside the file, and gone afterwards."""
    with (
        tempfile.TemporaryDirectory(prefix="scratch-", dir=path.parent) as spilled,
        duckdb.connect(config={"memory_limit": MEMORY, "temp_directory": spilled}) as connection,
    ):
        connection.execute("SET TimeZone = 'UTC'")
        yield connection
