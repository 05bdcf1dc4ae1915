"""Builds the feature views: for a cutoff one row of every customer known by then, from events before it alone.

All work is done by DuckDB from file to file, so a data set may be larger than memory.
"""

from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

import ibis
import ibis.expr.datatypes as dt
import ibis.expr.types as ir
import msgspec
import pyarrow as pa
import pyarrow.parquet as pq
from tqdm import tqdm

from feature_client.errors import RapportError
from feature_client.offline.cutoffs import default_cutoffs
from feature_client.offline.events import INSTANT, scratch
from feature_client.offline.learners import learners
from feature_client.offline.spans import spans
from feature_client.offline.views import VIEWS, Past
from feature_client.offline.workspace import Workspace
from feature_client.schema import FeatureSchema

ROWS_AT_ONCE = 50_000
"""Of a view, in memory: from DuckDB to its file."""

STORED = {"int64": dt.int64, "float64": dt.float64, "string": dt.string, "timestamp": INSTANT}
"""Feast's types, as the feature files hold them."""


Fields = Mapping[str, Mapping[str, str]]
"""View -> stored field -> dtype."""


class BuildError(RapportError):
    """Features that cannot be built, or that are not the declared ones; the message names them."""


def build(
    workspace: Workspace,
    cutoffs: Sequence[datetime] | None = None,
    *,
    progress: bool = True,
    created: datetime | None = None,
) -> int:
    """Writes features/<view>.parquet: customer_id, event_timestamp (the cutoff), created_timestamp, features.

    cutoffs: by default those of the split, and as_of. At those before as_of the rows are of the customers who are
    trained on (see learners.py). created: what created_timestamp says, by default now.
    Returns the number of rows of a view. Needs the schema that `features apply` writes. Raises BuildError.
    """
    dataset = workspace.dataset()
    cutoffs = sorted(set(default_cutoffs(dataset) if cutoffs is None else cutoffs))
    if odd := [cutoff for cutoff in cutoffs if cutoff.tzinfo is None or cutoff.microsecond]:
        raise BuildError(f"cutoff {odd[0].isoformat()}: a cutoff has a time zone and no fraction of a second")
    created = created or datetime.now(UTC)
    workspace.require_space(2 * workspace.events.stat().st_size + 50_000_000, "building features")
    declared = declared_fields(read_schema(workspace))
    workspace.features.mkdir(parents=True, exist_ok=True)
    unfinished = {view: workspace.features / f"{view}.unfinished" for view in VIEWS}
    writers: dict[str, pq.ParquetWriter] = {}
    rows = 0
    with scratch(workspace) as (connection, _):
        events = connection.read_parquet(workspace.events)
        since, learning = first_events(events), learners(events)
        learned = connection.create_table("learned", learning)
        everybody = [learned] if learning is events else list(spans(events))
        parts = [(cutoff, part) for cutoff in cutoffs for part in ([learned] if cutoff < dataset.as_of else everybody)]
        try:
            for cutoff, part in tqdm(parts, desc="features", unit=" parts", disable=not progress):
                own = part if part is learned else _computed(connection, "span", part)
                for view, table in views_at(connection, own, since, declared, cutoff, created):
                    batches = table.to_pyarrow_batches(chunk_size=ROWS_AT_ONCE)
                    writer = writers.get(view) or writers.setdefault(view, _writer(unfinished[view], batches.schema))
                    written = 0
                    for batch in batches:
                        writer.write_batch(batch)
                        written += len(batch)
                rows += written
        finally:
            for writer in writers.values():
                writer.close()
    if not rows:
        raise BuildError(f"no events before {max(cutoffs):%Y-%m-%d %H:%M}: no features to build")
    for view, path in unfinished.items():
        path.replace(workspace.features / f"{view}.parquet")
    return rows


def read_schema(workspace: Workspace) -> FeatureSchema:
    """Raises BuildError where nothing is registered yet."""
    try:
        return msgspec.json.decode(workspace.schema_file.read_bytes(), type=FeatureSchema)
    except FileNotFoundError as exc:
        raise BuildError(f"no schema in {workspace.root}: run `rapport features apply` first") from exc


def first_events(events: ir.Table) -> Mapping[str, datetime]:
    """Event type -> its first event of all."""
    starts = events.group_by("type").agg(first=events.ts.min()).to_pyarrow().to_pylist()
    return {start["type"]: start["first"] for start in starts}


def views_at(
    connection: ibis.BaseBackend,
    events: ir.Table,
    since: Mapping[str, datetime],
    declared: Fields,
    cutoff: datetime,
    created: datetime,
) -> Iterator[tuple[str, ir.Table]]:
    """Each view as its file holds it, with the rows of a cutoff: read before the next is asked for.

    events: of the connection. since: of `first_events`, also where `events` are those of some customers alone.
    Raises BuildError.
    """
    past = _past(connection, events, since, cutoff)
    for view, define in VIEWS.items():
        yield view, _stamped(view, define(past), declared, cutoff, created)


def _past(connection: ibis.BaseBackend, events: ir.Table, since: Mapping[str, datetime], cutoff: datetime) -> Past:
    """Also computes once, as tables, what several views read."""
    before = events.filter(events.ts < ibis.literal(cutoff, type=INSTANT))
    lines = before.filter(before.type == "purchase")
    orders = lines.group_by("customer_id", "order_id").agg(ts=lines.ts.min(), value=lines.amount.sum())
    return Past(
        cutoff=cutoff,
        customers=_computed(connection, "customers", before.select("customer_id").distinct()),
        events=before,
        lines=lines,
        orders=_computed(connection, "orders", orders),
        since={kind: first for kind, first in since.items() if first < cutoff},
    )


def _computed(connection: ibis.BaseBackend, name: str, table: ir.Table) -> ir.Table:
    # Not create_table(overwrite=True): Ibis 12 with sqlglot 30 writes a DROP that DuckDB cannot parse.
    connection.raw_sql(f'DROP TABLE IF EXISTS "{name}"')
    return connection.create_table(name, table, temp=True)


def declared_fields(schema: FeatureSchema) -> Fields:
    """Of every view that is computed. Raises BuildError."""
    fields: dict[str, dict[str, str]] = {view: {} for view in schema.views}
    for feature in schema.features:
        if feature.view is not None:
            fields[feature.view][str(feature.field)] = str(feature.dtype)
    for view, field in schema.entity_fields.items():
        fields[view][field] = "string"
    if fields.keys() != VIEWS.keys():
        different = ", ".join(sorted(fields.keys() ^ VIEWS.keys()))
        raise BuildError(f"feature views that are either not declared or not computed: {different}")
    return fields


def _stamped(view: str, table: ir.Table, declared: Fields, cutoff: datetime, created: datetime) -> ir.Table:
    """The view as its file holds it: declared columns in declared order and type, by customer."""
    fields = declared[view]
    computed = set(table.columns) - {"customer_id"}
    if different := sorted(computed ^ set(fields)):
        said = [
            f"{name} ({'computed, not declared' if name in computed else 'declared, not computed'})"
            for name in different
        ]
        raise BuildError(f"feature view {view}: {', '.join(said)}")
    kinds = {name: table[name].type() for name in fields}
    if wrong := [name for name, dtype in fields.items() if type(kinds[name]) is not type(STORED[dtype])]:
        said = [f"{name} is computed as {kinds[name]}, declared as {fields[name]}" for name in wrong]
        raise BuildError(f"feature view {view}: {', '.join(said)}")
    stamps = {"event_timestamp": cutoff, "created_timestamp": created}
    return table.select(
        "customer_id",
        **{name: ibis.literal(instant, type=INSTANT) for name, instant in stamps.items()},
        **{name: table[name].cast(STORED[dtype]) for name, dtype in fields.items()},
    ).order_by("customer_id")


def _writer(path: Path, schema: pa.Schema) -> pq.ParquetWriter:
    return pq.ParquetWriter(path, schema, compression="zstd")
