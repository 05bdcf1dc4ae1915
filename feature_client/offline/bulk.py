"""The latest row of every customer, into the online store, without Feast: the bytes that it would write, faster.

DuckDB selects the rows and joins the views of one entity, for some entities after the other; its batches are encoded
column by column (encoding.py) and written as one HSET an entity. Memory holds those entities, however many there are.
"""

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from itertools import chain, pairwise
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from feast import FeatureStore, FeatureView, FileSource
from feast.errors import FeastObjectNotFoundException
from redis import Redis
from redis.backoff import NoBackoff
from redis.connection import Connection
from redis.exceptions import NoPermissionError, RedisError
from redis.retry import Retry
from tqdm import tqdm

from feature_client.clock import to_iso
from feature_client.offline import encoding
from feature_client.offline.collisions import colliding
from feature_client.offline.events import scratch
from feature_client.offline.materialize import REACH, MaterializeError
from feature_client.offline.registry import ENTITY_TYPES, KEY_VERSION, NUMBERS, SERVICE
from feature_client.offline.store import open_store
from feature_client.offline.workspace import Workspace
from feature_client.online import wire
from feature_client.online.connection import parse

TIMEOUT_S = 60.0
"""Of connecting, and of one reply."""

BATCH = 2_048
"""Entities of one write, 1 to 2 MB; one write is on its way while the next is encoded."""

AT_ONCE = 50_000
"""Entities selected and joined at once, about so many: what DuckDB would need for all of them, it need not spill."""

SAMPLED = 200
"""Keys looked at to find where one share of the entities ends."""

DTYPES = NUMBERS | {"String": "string", "UnixTimestamp": "timestamp"}

WHOLE = {"BIGINT", "INTEGER", "SMALLINT", "TINYINT", "UINTEGER", "USMALLINT", "UTINYINT"}
TIMES = {"TIMESTAMP WITH TIME ZONE", "TIMESTAMP", "TIMESTAMP_S", "TIMESTAMP_MS", "TIMESTAMP_NS"}

READ_AS: Mapping[str, tuple[str, set[str]]] = {
    "int64": ("BIGINT", WHOLE),
    "int32": ("INTEGER", WHOLE),
    "float64": ("DOUBLE", {"DOUBLE", "BIGINT"}),
    "float32": ("FLOAT", {"FLOAT", "DOUBLE"}),
    "bool": ("BOOLEAN", {"BOOLEAN"}),
    "string": ("VARCHAR", {"VARCHAR"}),
    "timestamp": ("TIMESTAMP", TIMES),
}
"""dtype -> what DuckDB makes of a column, and of which columns: those that Feast converts without a surprise."""


@dataclass(frozen=True)
class Loaded:
    """entities: hashes written, copies included. rows: view -> rows written. seconds: selection included."""

    entities: int
    rows: Mapping[str, int]
    seconds: float


@dataclass(frozen=True)
class View:
    """What to read of a registered view, and under which names to store it.

    keys: join key -> dtype, in Feast's order. fields: name -> dtype. copies: the fields that hold the entity id again.
    time, created: the columns that say which row of an entity is its newest.
    """

    name: str
    file: Path
    keys: Mapping[str, str]
    fields: Mapping[str, str]
    copies: frozenset[str]
    time: str
    created: str | None


@dataclass(frozen=True)
class Share:
    """Some of the entities: a condition on their first key, and its parameters."""

    condition: str
    parameters: Sequence[object]


def load(
    workspace: Workspace,
    as_of: datetime | None = None,
    *,
    service: str = SERVICE,
    copies: int = 1,
    progress: bool = True,
) -> Loaded:
    """Writes the newest row at or before `as_of` of every customer, by default at the data set's own as_of.

    The rows are those that `materialize` takes, and the bytes those that Feast writes, but for one thing: a whole
    number beyond 2**53 in a column with nulls, which Feast rounds through float64, is written as it is.
    Rows already there are replaced, also newer ones. What Feast notes of a materialization in its registry is not
    written. copies: writes every customer that many times, as <id>, <id>~1, <id>~2, ...: a store of the size of
    production for load tests. Raises MaterializeError; what was written before it then stays.
    """
    started = time.monotonic()
    as_of = as_of or workspace.dataset().as_of
    if as_of.tzinfo is None:
        raise MaterializeError(f"as_of {as_of.isoformat()} has no time zone; write it as {as_of.isoformat()}Z")
    views = _registered(open_store(workspace), service)
    keys = views[0].keys
    if copies > 1 and list(keys.values()) != ["string"]:
        raise MaterializeError(f"copies are made of entities with one join key, a String, not {', '.join(keys)}")
    workspace.require_space(2 * sum(_size(view.file) for view in views) + 50_000_000, "loading features")
    # The store is asked first: it is sooner done than the selection.
    with _writer(workspace) as writer, scratch(workspace) as (backend, _), _readable():
        connection = backend.con
        connection.execute("SET TimeZone = 'UTC'")
        files = [_version(view.file) for view in views]
        entities = {view.name: _checked(connection, view, as_of) for view in views}
        if empty := [name for name, number in entities.items() if not number]:
            raise MaterializeError(
                f"no features in the {REACH.days} days before {to_iso(as_of.timestamp())} in {', '.join(empty)}: "
                "build them with that cutoff first"
            )
        layout = _Layout(views, workspace.project)
        largest = max(views, key=lambda view: entities[view.name])
        rows = dict.fromkeys(entities, 0)
        # Of views with different entities there are more than this.
        about = entities[largest.name] * copies
        with tqdm(total=about, desc="load", unit=" entities", disable=not progress) as bar:
            for share in _shares(connection, largest, as_of, -(-entities[largest.name] // AT_ONCE)):
                for view in views:
                    rows[view.name] += _select(connection, view, as_of, share) * copies
                for batch in connection.execute(_joined(views)).fetch_record_batch(BATCH):
                    for commands in layout.commands(batch, copies):
                        writer.write(commands, len(batch))
                        bar.update(len(batch))
        if files != [_version(view.file) for view in views]:
            raise MaterializeError(
                "the features were built anew while they were loaded, and both are there now: load again"
            )
    return Loaded(writer.written, rows, time.monotonic() - started)


def _registered(store: FeatureStore, service: str) -> list[View]:
    """The views of a service. Raises MaterializeError where what Feast would write is not what we write."""
    online, config = store.config.online_store, store.config
    if online.type != "redis" or online.redis_type != "redis":
        raise MaterializeError("the bulk loader writes to one Redis server; use `rapport features materialize`")
    if online.key_ttl_seconds:
        raise MaterializeError(
            "key_ttl_seconds is set, and the bulk loader lets no key expire; use `rapport features materialize`"
        )
    if config.entity_key_serialization_version != KEY_VERSION or config.registry.enable_online_feature_view_versioning:
        raise MaterializeError(f"the bulk loader writes keys of version {KEY_VERSION} and views without versions")
    try:
        names = [projection.name for projection in store.get_feature_service(service).feature_view_projections]
        views = [_view(store.get_feature_view(name)) for name in names]
    except FeastObjectNotFoundException as exc:
        raise MaterializeError(f"{exc}: run `rapport features build` first") from exc
    for name in names:
        if collision := colliding(store, store.get_feature_view(name), []):
            raise MaterializeError(collision)
    if odd := [view.name for view in views if view.keys != views[0].keys]:
        raise MaterializeError(f"{views[0].name} and {odd[0]} have different join keys: load one kind of entity")
    return views


def _view(view: FeatureView) -> View:
    source = view.batch_source
    if type(view) is not FeatureView or not isinstance(source, FileSource) or source.field_mapping or not view.online:
        raise MaterializeError(f"{view.name}: the bulk loader reads plain online views of a Parquet file, unmapped")
    fields = {str(field.name): str(field.dtype) for field in view.features}
    if unknown := [f"{name} ({dtype})" for name, dtype in fields.items() if dtype not in DTYPES]:
        raise MaterializeError(f"{view.name}: the bulk loader cannot write {', '.join(unknown)}")
    keys = {str(column.name): str(column.dtype) for column in view.entity_columns}
    if unknown := [f"{name} ({dtype})" for name, dtype in keys.items() if dtype not in ENTITY_TYPES]:
        raise MaterializeError(f"{view.name}: the bulk loader cannot write the join key {', '.join(unknown)}")
    return View(
        view.name,
        Path(source.path),
        {name: ENTITY_TYPES[keys[name]] for name in sorted(keys)},
        {name: DTYPES[dtype] for name, dtype in fields.items()},
        frozenset(field.name for field in view.features if field.tags.get("role") == "entity_id"),
        source.timestamp_field,
        source.created_timestamp_column or None,
    )


def _size(file: Path) -> int:
    if not file.exists():
        raise MaterializeError(f"{file} does not exist: run `rapport features build` first")
    return file.stat().st_size


def _version(file: Path) -> tuple[int, int, int]:
    """Another one once the file has been replaced: it is opened for every share of the entities."""
    facts = file.stat()
    return facts.st_ino, facts.st_mtime_ns, facts.st_size


def _checked(connection: duckdb.DuckDBPyConnection, view: View, as_of: datetime) -> int:
    """About how many entities have a row.

    Raises MaterializeError where columns, or values in them, are not what we write: before anything has been written.
    """
    described = connection.execute("DESCRIBE SELECT * FROM read_parquet(?)", [str(view.file)]).fetchall()
    there = {name: dtype for name, dtype, *_ in described}
    wanted = _wanted(view)
    if wrong := [name for name, dtype in wanted.items() if there.get(name) not in READ_AS[dtype][1]]:
        name = wrong[0]
        raise MaterializeError(
            f"{view.file.name}: {name} is {there.get(name, 'not there')}, which is not written as {wanted[name]}"
        )
    keys = ", ".join(map(_quoted, view.keys))
    some_key_null = " OR ".join(f"{_quoted(name)} IS NULL" for name in view.keys)
    narrowed = [name for name, dtype in wanted.items() if dtype != "timestamp" and there[name] != READ_AS[dtype][0]]
    too_large = [f"count(*) FILTER ({_too_large(name, wanted[name])})" for name in narrowed]
    counted = ["count(*)", f"approx_count_distinct(({keys}))", f"count(*) FILTER ({some_key_null})", *too_large]
    rows, entities, nulls, *misfits = connection.execute(
        f"SELECT {', '.join(counted)} FROM ({_within(view)})",  # noqa: S608  (quoted names of the registry)
        _window(view, as_of),
    ).fetchall()[0]
    if nulls:
        raise MaterializeError(f"{view.file.name} has rows without {' or '.join(view.keys)}")
    if wrong := [name for name, number in zip(narrowed, misfits, strict=True) if number]:
        raise MaterializeError(f"{view.file.name}: {wrong[0]} holds numbers that are too large for {wanted[wrong[0]]}")
    return min(int(rows), max(int(entities), 1))


def _within(view: View) -> str:
    """Rows of the time that counts, with parameters of `_window`: by the columns as they are in the file.

    The cast does nothing to what we build, so row groups of another time are not even read.
    """
    when = f"CAST({_quoted(view.time)} AS TIMESTAMP WITH TIME ZONE)"
    return f"SELECT * FROM read_parquet(?) WHERE {when} BETWEEN ? AND ?"  # noqa: S608  (a quoted name of the registry)


def _window(view: View, as_of: datetime) -> list[object]:
    return [str(view.file), as_of - REACH, as_of]


def _shares(connection: duckdb.DuckDBPyConnection, view: View, as_of: datetime, number: int) -> list[Share]:
    """All entities, in about that many shares. Of a file that is sorted by key, one is a few row groups.

    Only the first of several keys tells shares apart: with few values of it there are few, and large ones.
    """
    key = _quoted(next(iter(view.keys)))
    found = connection.execute(
        f"SELECT {key} FROM (SELECT {key} FROM ({_within(view)}) USING SAMPLE reservoir({SAMPLED * number} ROWS) "  # noqa: S608  (as above)
        "REPEATABLE (0)) ORDER BY 1",
        _window(view, as_of),
    ).fetchall()
    starts = sorted({found[len(found) * place // number][0] for place in range(1, number)})
    if not starts:
        return [Share("TRUE", [])]
    between = [Share(f"{key} >= ? AND {key} < ?", list(pair)) for pair in pairwise(starts)]
    return [Share(f"{key} < ?", starts[:1]), *between, Share(f"{key} >= ?", starts[-1:])]


def _select(connection: duckdb.DuckDBPyConnection, view: View, as_of: datetime, share: Share) -> int:
    """Makes the table of the latest rows of a share of the entities, one each, and returns their number."""
    keys = ", ".join(map(_quoted, view.keys))
    columns = ", ".join(f"{_read(name, dtype)} AS {_quoted(name)}" for name, dtype in _wanted(view).items())
    newest = ", ".join(f"{_quoted(name)} DESC" for name in (view.time, view.created) if name)
    # Selected before the columns become what we read. A table of its own kind: those in the file are compressed first.
    connection.execute(
        f"CREATE OR REPLACE TEMP TABLE {_quoted(view.name)} AS SELECT {columns} FROM ("  # noqa: S608  (as above)
        f"{_within(view)} AND {share.condition} "
        f"QUALIFY row_number() OVER (PARTITION BY {keys} ORDER BY {newest}) = 1)",
        [*_window(view, as_of), *share.parameters],
    )
    return int(connection.execute(f"SELECT count(*) FROM {_quoted(view.name)}").fetchall()[0][0])  # noqa: S608  (as above)


def _wanted(view: View) -> dict[str, str]:
    return {**view.keys, **view.fields, view.time: "timestamp"}


def _joined(views: Sequence[View]) -> str:
    """One row an entity: its keys, then of every view the fields and the event time, all null where it has no row."""
    keys = ", ".join(map(_quoted, views[0].keys))
    columns = [f"{_quoted(view.name)}.{_quoted(name)}" for view in views for name in (*view.fields, view.time)]
    first, *others = (_quoted(view.name) for view in views)
    tables = first + "".join(f" FULL JOIN {other} USING ({keys})" for other in others)
    return f"SELECT {keys}, {', '.join(columns)} FROM {tables}"  # noqa: S608  (quoted names of the registry)


def _read(name: str, dtype: str) -> str:
    value = f"CAST({_quoted(name)} AS {READ_AS[dtype][0]})"
    return f"epoch_us({value})" if dtype == "timestamp" else value


def _too_large(name: str, dtype: str) -> str:
    column = _quoted(name)
    return f"{column} IS NOT NULL AND TRY_CAST({column} AS {READ_AS[dtype][0]}) IS NULL"


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


class _Layout:
    """Batches of joined rows as HSET commands."""

    def __init__(self, views: Sequence[View], project: str) -> None:
        self.views = views
        self.keys = views[0].keys
        self._key_head = wire.entity_key_head(list(self.keys))
        self._key_tail = project.encode()

    def commands(self, batch: pa.RecordBatch, copies: int) -> Iterator[bytes]:
        """The whole batch, once a copy. What does not hold the id is encoded once for all copies."""
        columns = iter(batch.columns)
        keys = [next(columns) for _ in self.keys]
        arguments = np.full(len(batch), 2)  # HSET, key
        payloads: list[list[bytes]] = []
        ids: list[tuple[bytes, pa.Array, list[bool]]] = []
        for view in self.views:
            fields = {name: next(columns) for name in view.fields}
            times = next(columns)
            here = times.is_valid().to_pylist()
            payload = [encoding.event_times(wire.event_time_name(view.name), times)]
            for name, column in fields.items():
                stored = wire.value_name(view.name, name)
                if name in view.copies:
                    ids.append((stored, column, here))
                else:
                    payload.append(encoding.features(stored, view.fields[name], column))
            payloads.append(_where(here, map(b"".join, zip(*payload, strict=True))))
            arguments += np.where(here, 2 * (len(fields) + 1), 0)
        heads = [b"*%d\r\n$4\r\nHSET\r\n" % number for number in arguments.tolist()]
        shared = list(map(b"".join, zip(*payloads, strict=True)))
        for number in range(copies):
            redis_keys = self._redis_keys([_copy(column, number) for column in keys])
            own = [
                _where(here, encoding.features(stored, "string", _copy(column, number))) for stored, column, here in ids
            ]
            yield b"".join(chain.from_iterable(zip(heads, redis_keys, shared, *own, strict=True)))

    def _redis_keys(self, columns: Sequence[pa.Array]) -> Iterator[bytes]:
        dtypes = list(self.keys.values())
        for values in zip(*(column.to_pylist() for column in columns), strict=True):
            parts = (wire.entity_value(value, dtype) for value, dtype in zip(values, dtypes, strict=True))
            yield encoding.argument(self._key_head + b"".join(parts) + self._key_tail)


def _copy(ids: pa.Array, number: int) -> pa.Array:
    return ids if number == 0 else pc.binary_join_element_wise(ids, f"~{number}", "")


def _where(here: Sequence[bool], values: Iterable[bytes]) -> list[bytes]:
    """Nothing for the entities of which the view has no row."""
    return list(values) if all(here) else [value if ok else b"" for value, ok in zip(values, here, strict=True)]


class _Writer:
    """HSETs down one connection: the replies of one write are read when the next is on its way, and none is lost."""

    def __init__(self, connection: Connection) -> None:
        self.written = 0
        self._connection = connection
        self._unread = 0

    def write(self, commands: bytes, number: int) -> None:
        """commands: that many HSETs. Raises RedisError for one of these, or of those before."""
        self._connection.send_packed_command([commands])  # type: ignore[no-untyped-call]
        self.finish()
        self._unread = number

    def finish(self) -> None:
        for _ in range(self._unread):
            self._connection.read_response()  # type: ignore[no-untyped-call]
            self.written += 1
        self._unread = 0


@contextmanager
def _writer(workspace: Workspace) -> Iterator[_Writer]:
    """Connected; errors of the store become MaterializeError, and say how much was written before."""
    address = parse(workspace.redis)
    # The options behind the address may hold a password.
    store = f"the online store at {address.host}:{address.port}"
    writer: _Writer | None = None
    with Redis(
        host=address.host,
        port=address.port,
        socket_timeout=TIMEOUT_S,
        socket_connect_timeout=TIMEOUT_S,
        retry=Retry(NoBackoff(), 0),  # a batch that was sent again in part would be counted wrong
        protocol=2,
        **address.options,
    ) as redis:
        try:
            evicted = _evicted(redis)
            writer = _Writer(redis.connection_pool.get_connection())
            yield writer
            writer.finish()
            evicted = _evicted(redis) - evicted
        except RedisError as exc:
            so_far = f", after {writer.written:,} entities" if writer and writer.written else ""
            raise MaterializeError(f"{store} does not take writes: {exc}{so_far}") from exc
    if evicted:
        raise MaterializeError(f"{store} evicted {evicted:,} keys to make room for others: it needs more memory")


def _evicted(redis: Redis) -> int:
    """Keys that the store dropped for want of memory since it started; it says so nowhere else."""
    try:
        return int(redis.info("stats")["evicted_keys"])  # type: ignore[index]
    except NoPermissionError:  # may write, may not look
        return 0


@contextmanager
def _readable() -> Iterator[None]:
    try:
        yield
    except duckdb.Error as exc:
        raise MaterializeError(f"the features cannot be read: {str(exc).splitlines()[0]}") from exc
