"""Events on the way in: one schema, checked row by row; what is refused is counted by reason and kept aside.

All work is done by DuckDB from file to file, so a data set may be larger than memory.
"""

import hashlib
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import duckdb
import ibis
import ibis.expr.datatypes as dt
import ibis.expr.types as ir
import msgspec
from tqdm import tqdm

from feature_client.errors import RapportError
from feature_client.offline.workspace import DataSet, Workspace

MEMORY = "2GB"
"""What DuckDB may use; beyond that it spills into the workspace."""

EVENT_TYPES = ("purchase", "return", "session", "service_use", "campaign_open")

EVENT_SCHEMA = ibis.schema(
    {
        "customer_id": "string",
        "ts": dt.Timestamp(timezone="UTC", scale=6),  # whole seconds: Feast stores no finer ones
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
            return take_over(workspace, connection, directory, source, as_of, progress=progress)


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
    source: Source,
    as_of: datetime | None,
    *,
    progress: bool = True,
) -> DataSet:
    """Splits the rows of a source into events.parquet and rejected.parquet, and describes them in dataset.json.

    rejected.parquet has the columns of the source, and `reason`; a source's own column of that name is `reason_` there.
    connection, directory: of `scratch`. Raises EventsError where there is no purchase; what was there then stays.
    """
    reasons = list(source.reasons)
    if as_of is not None:
        reasons.append(("at or after as_of", source.ts >= ibis.literal(as_of, type=EVENT_SCHEMA["ts"])))
    else:
        # The last event decides as_of: one with a mistyped year would move everybody's features there.
        reasons.append(("in the future", source.ts > ibis.literal(datetime.now(UTC), type=EVENT_SCHEMA["ts"])))
    cases = [(condition, ibis.literal(reason)) for reason, condition in reasons]
    columns = tuple(source.raw.columns)
    why = _free("why_refused", columns)
    with tqdm(total=3, desc="checking", unit=" steps", disable=not progress) as bar:
        checked = _without_duplicates(connection, source.raw.mutate(**{why: ibis.cases(*cases)}), why, directory)
        events = _with_orders(source.to_events(checked.filter(checked[why].isnull()))).cast(EVENT_SCHEMA)
        theirs = {column: _free(column, columns) for column in columns if column.lower() == "reason"}
        renamed = {new: old for old, new in {**theirs, why: "reason"}.items()}
        rejected = checked.filter(checked[why].notnull()).rename(renamed)

        counts = dict(rejected.reason.value_counts(name="rows").order_by("reason").to_pandas().itertuples(index=False))
        facts = (
            events.agg(
                rows=events.count(),
                first=events.ts.min(),
                last=events.ts.max(),
                types=events.type.collect(distinct=True),
            )
            .to_pyarrow()
            .to_pylist()[0]
        )
        if "purchase" not in (facts["types"] or ()):
            refused = ", ".join(f"{rows} x {reason}" for reason, rows in counts.items())
            raise EventsError(f"{source.name} has no valid purchase to learn from ({refused or 'no rows at all'})")

        bar.update()
        write_sorted(connection, events, workspace.events)
        bar.update()
        write_sorted(connection, rejected, workspace.rejected)
        bar.update()

    dataset = DataSet(
        name=source.name,
        first_event=facts["first"].astimezone(UTC),
        as_of=(as_of or _midnight_after(facts["last"])).astimezone(UTC),
        currency=source.currency,
        recorded=tuple(kind for kind in EVENT_TYPES if kind in facts["types"]),
        events=facts["rows"],
        rejected={reason: int(rows) for reason, rows in counts.items()},
        digest=file_digest(workspace.events),
    )
    workspace.dataset_file.write_bytes(msgspec.json.format(msgspec.json.encode(dataset), indent=1))
    return dataset


def file_digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _free(name: str, columns: Sequence[str]) -> str:
    """The name, or with underscores behind it where a column has it; to DuckDB case is no difference."""
    taken = {column.lower() for column in columns}
    while name.lower() in taken:
        name += "_"
    return name


def _without_duplicates(connection: ibis.BaseBackend, table: ir.Table, why: str, directory: Path) -> ir.Table:
    """The same rows, but all but one of those that agree have "duplicate" in the column `why`, if nothing else.

    why: is not compared, and a name that needs no quotes.

    Sorted, and each row compared with the one before it: grouping, and windows with partitions, would need memory for
    all rows at once, whatever DuckDB's limit is.
    """
    ordered, checked = directory / "ordered.parquet", directory / "checked.parquet"
    write_sorted(connection, table, ordered)
    names = ", ".join('"' + name.replace('"', '""') + '"' for name in table.columns if name != why)
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
    return events.mutate(order_id=events.order_id.coalesce(instant), ts=events.ts.truncate("s"))


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
