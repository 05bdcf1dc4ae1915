"""Events on the way in: one schema, checked row by row; what is refused is counted by reason and kept aside.

All work is done by DuckDB from file to file, so a data set may be larger than memory.
"""

import hashlib
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Never

import duckdb
import ibis
import ibis.expr.datatypes as dt
import ibis.expr.types as ir
import msgspec
import pyarrow as pa
import pyarrow.parquet as pq
from tqdm import tqdm

from feature_client.errors import RapportError
from feature_client.offline.ahead import ahead
from feature_client.offline.workspace import DataSet, Workspace

MEMORY = "2GB"
"""What DuckDB may use; beyond that it spills into the workspace."""

ROW_GROUP = 122_880
"""Rows, as DuckDB makes them."""

WAITING = 16
"""Row groups that are sorted and not yet written."""

INSTANT = dt.Timestamp(timezone="UTC", scale=6)
SECOND_US = 1_000_000

EVENT_TYPES = ("purchase", "return", "session", "service_use", "campaign_open")

EVENT_SCHEMA = ibis.schema(
    {
        "customer_id": "string",
        "ts": INSTANT,  # whole seconds: Feast stores no finer ones
        "type": "string",  # one of EVENT_TYPES
        "item": "string",
        "category": "string",
        "quantity": "int64",  # pieces bought or returned, always positive; 0 for other types
        "amount": "decimal(18, 4)",  # value of the line in the data set's currency, never negative
        "order_id": "string",  # lines of one purchase share it
        "country": "string",
        "channel": "string",
    }
)
"""A purchase or return is one event a line. Of the columns only customer_id, ts and type must be there."""

GOODS = ("purchase", "return")
MAX_ID_CHARACTERS = 128
"""What UTF-8 never makes longer than the 512 bytes that the gateway takes as an id."""


class EventsError(RapportError):
    """Events that cannot be taken over; the message says which file and why."""


@dataclass(frozen=True)
class Source:
    """A file of events, and how its rows become ours.

    reasons: (why a row is refused, rows it holds for), in order of precedence.
    to_events: rows that passed -> the columns of EVENT_SCHEMA.
    """

    name: str
    currency: str
    raw: ir.Table
    ts: ir.TimestampValue
    reasons: list[tuple[str, ir.BooleanValue]]
    to_events: Callable[[ir.Table], ir.Table]


def load_events(
    workspace: Workspace,
    path: Path,
    as_of: datetime | None = None,
    currency: str = "EUR",
    *,
    progress: bool = True,
) -> DataSet:
    """Takes over Online Retail II (Parquet or the original workbook), or Parquet of our own schema (file or directory).

    as_of: by default midnight after the last event; later events are refused. currency: of events of our own schema.
    Raises EventsError, or WorkspaceError where the disk is too small; what was loaded before is then still there.
    """
    from feature_client.offline import retail  # noqa: PLC0415  (a reader builds on this module)

    if as_of is not None and as_of.tzinfo is None:
        raise EventsError(f"as_of {as_of.isoformat()} has no time zone; write it as {as_of.isoformat()}Z")
    files = _files(path)
    workspace.require_space(4 * sum(file.stat().st_size for file in files) + 50_000_000, f"loading {path.name}")
    with scratch(workspace) as (connection, directory):
        with _translated(path):
            if path.suffix.lower() == ".xlsx":
                files = [retail.workbook_to_parquet(path, directory / "workbook.parquet")]
            raw = connection.read_parquet([str(file) for file in files])
        with _translated(path):
            source = retail.source(raw) if retail.recognises(raw) else own_source(path.stem, raw, currency)
            return take_over(workspace, connection, directory, [source], as_of, progress=progress)


def own_source(name: str, raw: ir.Table, currency: str) -> Source:
    """Events of our own schema. Values are cast where they can be, and refused by row where they cannot."""
    if absent := [column for column in ("customer_id", "ts", "type") if column not in raw.columns]:
        raise EventsError(
            f"{name} has no column {', '.join(absent)}; events need customer_id, ts and type "
            "(Online Retail II is recognised by its own columns)"
        )
    if raw.ts.type().is_numeric():
        raise EventsError(f"{name}: ts holds numbers; it must hold timestamps, so that their unit is no guess")
    added = {column: ibis.null(kind) for column, kind in EVENT_SCHEMA.items() if column not in raw.columns}
    # An empty column of pandas is of any type: as text it is compared, not refused as a whole.
    table = raw.mutate(**added).mutate(type=lambda rows: _text(rows.type))

    def to_events(rows: ir.Table) -> ir.Table:
        sold = rows.type.isin(GOODS)
        return rows.select(
            customer_id=_text(rows.customer_id),
            ts=rows.ts.try_cast(EVENT_SCHEMA["ts"]),
            type=rows.type,
            item=_text(rows["item"]),
            category=_text(rows.category),
            quantity=sold.ifelse(rows.quantity.try_cast("int64").fill_null(1), 0),
            amount=sold.ifelse(rows.amount.try_cast(EVENT_SCHEMA["amount"]), 0),
            order_id=_text(rows.order_id),
            country=_text(rows.country),
            channel=_text(rows.channel),
        )

    customer, ts, goods = _text(table.customer_id), table.ts.try_cast(EVENT_SCHEMA["ts"]), table.type.isin(GOODS)
    quantity, amount = table.quantity.try_cast("int64"), table.amount.try_cast(EVENT_SCHEMA["amount"])
    reasons = [
        ("no customer", customer.isnull() | (customer.strip() == "")),
        ("customer id too long", customer.length() > MAX_ID_CHARACTERS),
        ("no time", ts.isnull()),
        ("unknown type", table.type.isnull() | table.type.notin(EVENT_TYPES)),
        ("quantity not a whole number", goods & table.quantity.notnull() & quantity.isnull()),
        ("quantity not positive", goods & (quantity <= 0)),
        ("no amount", goods & amount.isnull()),
        ("amount not positive", ((table.type == "purchase") & (amount <= 0)) | (goods & (amount < 0))),
    ]
    return Source(name, currency, table, ts, reasons, to_events)


@contextmanager
def scratch(workspace: Workspace) -> Iterator[tuple[ibis.BaseBackend, Path]]:
    """A DuckDB on disk beside the data, for what does not fit into memory, and its directory; gone afterwards."""
    workspace.root.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="scratch-", dir=workspace.root) as name:
        directory = Path(name)
        connection = ibis.duckdb.connect(
            directory / "scratch.duckdb",
            temp_directory=name,
            memory_limit=MEMORY,
            preserve_insertion_order=False,  # it would be kept in memory; whoever needs an order says so
            enable_external_file_cache=False,  # it would fill that memory with files that are read once
        )
        try:
            yield connection, directory
        finally:
            connection.disconnect()


def write_sorted(connection: ibis.BaseBackend, table: ir.Table, path: Path) -> None:
    """Through a temporary name, so that nobody ever reads half a file. A total order: the same rows, the same bytes."""
    unfinished = path.with_suffix(".unfinished")
    connection.to_parquet(table.order_by(table.columns), unfinished, compression="zstd")
    unfinished.replace(path)


def take_over(
    workspace: Workspace,
    connection: ibis.BaseBackend,
    directory: Path,
    parts: Iterable[Source],
    as_of: datetime | None,
    *,
    progress: bool = True,
) -> DataSet:
    """Splits the rows of a source into events.parquet and rejected.parquet, and describes them in dataset.json.

    parts: the source, whole or some customers after the other, in the order of their ids as text: a part is sorted by
    itself, and its rows are done with when the next is asked for. rejected.parquet has the columns of the source, and
    `reason`; a source's own column of that name is `reason_` there.
    connection, directory: of `scratch`. Raises EventsError where there is no purchase; what was there then stays.
    """
    intake = _Intake(connection, directory, as_of)
    accepted = directory / "events.parquet"
    with (
        tqdm(desc="checking", unit=" events", unit_scale=True, disable=not progress) as bar,
        closing(ahead(intake.events(parts, bar), WAITING)) as batches,
    ):
        _write_batches(batches, accepted)
    rejected = connection.read_parquet([str(path) for path in intake.rejected])
    counts = dict(rejected.reason.value_counts(name="rows").order_by("reason").to_pandas().itertuples(index=False))
    events = connection.read_parquet(accepted)
    by_type = events.group_by("type").agg(rows=events.count(), first=events.ts.min(), last=events.ts.max())
    facts = {row["type"]: row for row in by_type.to_pyarrow().to_pylist()}
    if "purchase" not in facts:
        refused = ", ".join(f"{rows} x {reason}" for reason, rows in counts.items())
        raise EventsError(f"{intake.name} has no valid purchase to learn from ({refused or 'no rows at all'})")
    accepted.replace(workspace.events)
    write_sorted(connection, rejected, workspace.rejected)
    dataset = DataSet(
        name=intake.name,
        first_event=min(row["first"] for row in facts.values()).astimezone(UTC),
        as_of=(as_of or _midnight_after(max(row["last"] for row in facts.values()))).astimezone(UTC),
        currency=intake.currency,
        recorded=tuple(kind for kind in EVENT_TYPES if kind in facts),
        events=sum(row["rows"] for row in facts.values()),
        rejected={reason: int(rows) for reason, rows in counts.items()},
        digest=file_digest(workspace.events),
    )
    workspace.dataset_file.write_bytes(msgspec.json.format(msgspec.json.encode(dataset), indent=1))
    return dataset


class _Intake:
    """Parts of a source on their way: events as batches, what is refused as files."""

    def __init__(self, connection: ibis.BaseBackend, directory: Path, as_of: datetime | None) -> None:
        self.name = self.currency = ""
        self.rejected: list[Path] = []
        self._connection, self._directory, self._as_of = connection, directory, as_of

    def events(self, parts: Iterable[Source], bar: "tqdm[Never]") -> Iterator[pa.RecordBatch]:
        """In the order that EVENT_SCHEMA gives them."""
        for part in parts:
            self.name, self.currency = part.name, part.currency
            columns = tuple(part.raw.columns)
            why = _free("why_refused", columns)
            table = part.raw.mutate(**{why: ibis.cases(*self._cases(part))})
            spotless = _spotless(self._connection, table, why)
            checked = table if spotless else _without_duplicates(self._connection, table, why, self._directory)
            # That of the first part is written in any case: a file needs columns.
            if not (spotless and self.rejected):
                theirs = {column: _free(column, columns) for column in columns if column.lower() == "reason"}
                renamed = {new: old for old, new in {**theirs, why: "reason"}.items()}
                path = self._directory / f"rejected-{len(self.rejected)}.parquet"
                self._connection.to_parquet(checked.filter(checked[why].notnull()).rename(renamed), path)
                self.rejected.append(path)
            kept = checked if spotless else checked.filter(checked[why].isnull())
            events = _with_orders(part.to_events(kept)).cast(EVENT_SCHEMA)
            for batch in events.order_by(events.columns).to_pyarrow_batches(chunk_size=ROW_GROUP):
                yield batch
                bar.update(len(batch))

    def _cases(self, part: Source) -> list[tuple[ir.BooleanValue, ir.StringScalar]]:
        reasons = list(part.reasons)
        if self._as_of is not None:
            reasons.append(("at or after as_of", part.ts >= ibis.literal(self._as_of, type=EVENT_SCHEMA["ts"])))
        else:
            # The last event decides as_of: one with a mistyped year would move everybody's features there.
            reasons.append(("in the future", part.ts > ibis.literal(datetime.now(UTC), type=EVENT_SCHEMA["ts"])))
        return [(condition, ibis.literal(reason)) for reason, condition in reasons]


def _write_batches(batches: Iterator[pa.RecordBatch], path: Path) -> None:
    """As they come. Not by DuckDB: it would have them made on a thread of its own, which nothing can stop."""
    with pq.ParquetWriter(path, EVENT_SCHEMA.to_pyarrow(), compression="zstd") as writer:
        for batch in _regular(batches):
            writer.write_batch(batch)


def _regular(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """All of ROW_GROUP rows but the last: where a part ends is not to be seen in the file."""
    waiting: list[pa.RecordBatch] = []
    rows = 0
    for batch in batches:
        waiting.append(batch)
        rows += len(batch)
        while rows >= ROW_GROUP:
            table = pa.Table.from_batches(waiting)
            yield table.slice(0, ROW_GROUP).combine_chunks().to_batches()[0]
            waiting = table.slice(ROW_GROUP).to_batches()
            rows -= ROW_GROUP
    yield from pa.Table.from_batches(waiting).combine_chunks().to_batches() if rows else ()


def file_digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _free(name: str, columns: Sequence[str]) -> str:
    """The name, or with underscores behind it where a column has it; to DuckDB case is no difference."""
    taken = {column.lower() for column in columns}
    while name.lower() in taken:
        name += "_"
    return name


def _spotless(connection: ibis.BaseBackend, table: ir.Table, why: str) -> bool:
    """Whether no row has a reason in the column `why` and no two agree: by hashes, in half the time of a sort."""
    connection.create_view("unchecked", table, overwrite=True)
    found = connection.raw_sql(
        f"""
        SELECT coalesce(max(rows), 0) <= 1 AND coalesce(sum(refused), 0) = 0 FROM (
            SELECT count(*) AS rows, count({why}) AS refused FROM unchecked GROUP BY hash(row({_compared(table, why)}))
        )
        """  # noqa: S608  (quoted names)
    ).fetchall()
    return bool(found[0][0])


def _compared(table: ir.Table, why: str) -> str:
    return ", ".join('"' + name.replace('"', '""') + '"' for name in table.columns if name != why)


def _without_duplicates(connection: ibis.BaseBackend, table: ir.Table, why: str, directory: Path) -> ir.Table:
    """The same rows, but all but one of those that agree have "duplicate" in the column `why`, if nothing else.

    why: is not compared, and a name that needs no quotes.

    Sorted, and each row compared with the one before it: grouping whole rows (`_spotless` groups hashes of eight
    bytes), and windows with partitions, would need memory for all of them at once, whatever DuckDB's limit is.
    """
    ordered, checked = directory / "ordered.parquet", directory / "checked.parquet"
    write_sorted(connection, table, ordered)
    names = _compared(table, why)
    connection.raw_sql("SET preserve_insertion_order = true")
    connection.raw_sql(
        f"""
        COPY (
            SELECT * REPLACE (
                CASE WHEN {why} IS NULL AND lag(row({names})) OVER () IS NOT DISTINCT FROM row({names})
                THEN 'duplicate' ELSE {why} END AS {why}
            )
            FROM read_parquet('{_quoted(ordered)}')
        ) TO '{_quoted(checked)}' (FORMAT parquet)
        """  # noqa: S608  (our own paths, and quoted names)
    )
    connection.raw_sql("SET preserve_insertion_order = false")
    ordered.unlink()
    return connection.read_parquet(checked)


def _quoted(path: Path) -> str:
    return str(path).replace("'", "''")


def _with_orders(events: ir.Table) -> ir.Table:
    """Purchases without an order id are one order where they share customer and instant."""
    instant = (events.type == "purchase").ifelse(events.ts.cast("string"), ibis.null("string"))
    return events.mutate(order_id=events.order_id.coalesce(instant), ts=_whole_seconds(events.ts))


@ibis.udf.scalar.builtin  # type: ignore[untyped-decorator]
def epoch_us(ts: INSTANT) -> int:  # type: ignore[valid-type,empty-body]
    """DuckDB's."""


@ibis.udf.scalar.builtin  # type: ignore[untyped-decorator]
def make_timestamptz(microseconds: int) -> INSTANT:  # type: ignore[valid-type]
    """DuckDB's."""


def _whole_seconds(ts: ir.TimestampValue) -> ir.TimestampValue:
    """Not truncate("s"): DuckDB asks a calendar for it, row by row, and takes thirty times as long."""
    microseconds = epoch_us(ts)
    # The remainder of a negative number is negative.
    return make_timestamptz(microseconds - (microseconds % SECOND_US + SECOND_US) % SECOND_US)


def _text(column: ir.Value) -> ir.StringValue:
    """Ids that passed through a float column of pandas come back as what they were: "17850", not "17850.0"."""
    if column.type().is_floating():
        whole = column.try_cast("int64")
        return (whole == column).ifelse(whole.cast("string"), column.cast("string"))
    return column.cast("string")


def _files(path: Path) -> list[Path]:
    if path.is_dir():
        files = sorted(path.rglob("*.parquet"))
    elif path.is_file():
        files = [path]
    else:
        raise EventsError(f"{path} does not exist")
    if not files:
        raise EventsError(f"{path} holds no .parquet file")
    return files


def _midnight_after(instant: datetime) -> datetime:
    return instant.astimezone(UTC).replace(hour=0, minute=0, second=0, microsecond=0) + timedelta(days=1)


@contextmanager
def _translated(path: Path) -> Iterator[None]:
    try:
        yield
    except (duckdb.Error, ibis.IbisError, OSError) as exc:
        reason = str(exc).splitlines()[0]
        raise EventsError(f"{path.name} cannot be taken over: {reason}") from exc
