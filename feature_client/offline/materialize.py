"""The latest row of every customer, into the online store, through Feast."""

import contextlib
import io
from collections.abc import Mapping
from datetime import datetime, timedelta
from pathlib import Path

import duckdb
import redis
from tqdm import tqdm

from feature_client.clock import to_iso
from feature_client.errors import RapportError
from feature_client.offline.registry import SERVICE
from feature_client.offline.store import open_store, reading
from feature_client.offline.workspace import Workspace

REACH = timedelta(days=30)
"""A customer's latest row is taken from this long before `as_of` at most."""


class MaterializeError(RapportError):
    """Features that cannot be put online; the message says what is missing or down."""


def materialize(
    workspace: Workspace, as_of: datetime | None = None, *, service: str = SERVICE, progress: bool = True
) -> Mapping[str, int]:
    """Writes the newest row at or before `as_of` of every customer, by default at the data set's own as_of.

    Rows already there are replaced, also newer ones. Rows of customers that these features do not have stay: whoever
    puts another data set into the same store empties it first, as `rapport up` does with its own.
    Returns view -> rows written. Raises MaterializeError.
    """
    as_of = as_of or workspace.dataset().as_of
    if as_of.tzinfo is None:
        raise MaterializeError(f"as_of {as_of.isoformat()} has no time zone; write it as {as_of.isoformat()}Z")
    store = open_store(workspace)
    views = [projection.name for projection in store.get_feature_service(service).feature_view_projections]
    start = as_of - REACH
    written = {view: _rows(workspace.features / f"{view}.parquet", start, as_of) for view in views}
    if empty := [view for view, rows in written.items() if not rows]:
        days = REACH.days
        raise MaterializeError(
            f"no features in the {days} days before {to_iso(as_of.timestamp())} in {', '.join(empty)}: "
            "build them with that cutoff first"
        )
    try:
        # Feast prints its own account of every view; a command's stdout is its answer.
        with reading(workspace), contextlib.redirect_stdout(io.StringIO()):
            for view in tqdm(views, desc="materialize", unit=" views", disable=not progress):
                store.materialize(start, as_of, feature_views=[view])
    except redis.RedisError as exc:
        # The options behind the address may hold a password.
        address = workspace.redis.partition(",")[0]
        raise MaterializeError(f"the online store at {address} does not take writes: {exc}") from exc
    return written


def _rows(path: Path, start: datetime, end: datetime) -> int:
    """Customers with a row in [start, end]."""
    if not path.exists():
        raise MaterializeError(f"{path} does not exist: run `rapport features build` first")
    with duckdb.connect() as connection:
        found = connection.execute(
            "SELECT count(DISTINCT customer_id) FROM read_parquet(?) WHERE event_timestamp BETWEEN ? AND ?",
            [str(path), start, end],
        ).fetchone()
    return int(found[0]) if found else 0
