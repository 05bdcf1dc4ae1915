"""Random Feast projects over every type, random rows written by Feast, and what is asked of them."""

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import UUID
from zoneinfo import ZoneInfo

import pandas as pd

if TYPE_CHECKING:
    from feast import FeatureStore

AT = datetime(2026, 6, 1, 12, tzinfo=UTC)
Draw = random.Random
Sampler = Callable[[Draw], Any]

WORDS = ("", "a", "é", "日本", "x" * 90)
ID = UUID(int=0x1234_0000_4000_8000_0000_0000_0000_002A)


def _listed(sample: Sampler) -> Sampler:
    return lambda draw: [sample(draw) for _ in range(draw.choice([1, 2, 20]))]


def _in_set(sample: Sampler) -> Sampler:
    return lambda draw: {sample(draw) for _ in range(draw.choice([1, 2, 5]))}


BYTES: Sampler = lambda draw: draw.choice([b"", b"\x00a", b"\xff" * 70])  # noqa: E731
STRING: Sampler = lambda draw: draw.choice(WORDS)  # noqa: E731
INT32: Sampler = lambda draw: draw.choice([0, 1, -1, 127, 128, (1 << 31) - 1, -(1 << 31)])  # noqa: E731
INT64: Sampler = lambda draw: draw.choice([0, 1, -1, 300, 1 << 53, -(1 << 53)])  # noqa: E731
FLOAT: Sampler = lambda draw: draw.choice([0.0, -0.0, 1.5, 0.1, float("inf"), 3.4e38, draw.gauss(0, 1)])  # noqa: E731
BOOL: Sampler = lambda draw: draw.random() < 0.5  # noqa: E731
TIME: Sampler = lambda draw: AT - timedelta(seconds=draw.randrange(10**9))  # noqa: E731
DECIMAL: Sampler = lambda draw: draw.choice([Decimal("1.50"), Decimal("-0"), Decimal("1E+40")])  # noqa: E731
JSON: Sampler = lambda draw: draw.choice(['{"a": [1, null]}', '"text"', "1", "[]"])  # noqa: E731
RECORD: Sampler = lambda draw: {"a": draw.randrange(9)}  # noqa: E731

THROUGH_FRAMES: Mapping[str, Sampler] = {
    "Bytes": BYTES, "PdfBytes": BYTES, "ImageBytes": BYTES, "String": STRING, "Int32": INT32, "Int64": INT64,
    "Float64": FLOAT, "Float32": FLOAT, "Bool": BOOL, "UnixTimestamp": TIME, "Json": JSON, "Decimal": DECIMAL,
    "Uuid": lambda draw: str(ID), "TimeUuid": lambda draw: str(ID),
    "Map": lambda draw: {"a": draw.choice(WORDS)}, "Struct": RECORD,
    "Array(Bytes)": _listed(BYTES), "Array(String)": _listed(STRING), "Array(Int32)": _listed(INT32),
    "Array(Int64)": _listed(INT64), "Array(Float64)": _listed(FLOAT), "Array(Float32)": _listed(FLOAT),
    "Array(Bool)": _listed(BOOL), "Array(UnixTimestamp)": _listed(TIME), "Array(Json)": _listed(JSON),
    "Array(Decimal)": _listed(DECIMAL), "Array(Struct)": _listed(RECORD),
    "Array(Array(Int64))": _listed(_listed(INT64)),
    "Set(Bytes)": _in_set(BYTES), "Set(String)": _in_set(STRING), "Set(Int32)": _in_set(INT32),
    "Set(Int64)": _in_set(INT64), "Set(Float64)": _in_set(FLOAT), "Set(Float32)": _in_set(FLOAT),
    "Set(Bool)": _in_set(BOOL), "Set(UnixTimestamp)": _in_set(TIME), "Set(Decimal)": _in_set(DECIMAL),
    "Set(Array(Int64))": _listed(_listed(INT64)),
}  # fmt: skip
"""Types that Feast's write_to_online_store takes in a data frame."""

BY_ROWS: Mapping[str, Sampler] = {
    "ScalarMap": lambda draw: {draw.choice([1, 1.5, True, ID, Decimal("2"), b"k"]): draw.choice(WORDS)},
    "ZonedTimestamp": lambda draw: TIME(draw).astimezone(ZoneInfo("Europe/Paris")),
    "Array(Map)": _listed(RECORD),
    "Array(Uuid)": _listed(lambda draw: ID), "Array(TimeUuid)": _listed(lambda draw: ID),
    "Set(Uuid)": _in_set(lambda draw: ID), "Set(TimeUuid)": _in_set(lambda draw: ID),
    "Map": lambda draw: {"a": {"b": [1, 2]}, "c": None, "d": 1.5},
    "Int64": lambda draw: draw.choice([(1 << 63) - 1, -(1 << 63)]),
}  # fmt: skip
"""Types that Arrow cannot carry, or not whole: written through Feast's online_write_batch."""

KEYS: Mapping[str, Sampler] = {
    "String": lambda draw: draw.choice([*WORDS, "1", "-1", "c7"]),
    "Int32": INT32,
    "Int64": INT64,
    "Bytes": lambda draw: draw.choice([b"j", b"k", b"\x00\xff{}"]),
    "UnixTimestamp": lambda draw: AT - timedelta(days=draw.randrange(4)),
}
"""Types of join keys."""

VALUE_TYPES = {name: name.upper() for name in KEYS} | {"UnixTimestamp": "UNIX_TIMESTAMP"}


@dataclass
class View:
    name: str
    entities: list[str]  # join keys
    fields: dict[str, str]  # field -> type
    by_rows: bool


@dataclass
class Project:
    """A registry that was drawn at random. written: view -> the entities that have a row."""

    store: "FeatureStore"
    keys: dict[str, str]
    views: list[View]
    written: dict[str, list[dict[str, Any]]] = field(default_factory=dict)


def feast_type(name: str) -> Any:
    from feast import types  # noqa: PLC0415  (imported once a session)

    for outer in ("Array", "Set"):
        if name.startswith(f"{outer}("):
            return getattr(types, outer)(feast_type(name[len(outer) + 1 : -1]))
    return types.Struct({"a": types.Int64}) if name == "Struct" else getattr(types, name)


def store_at(directory: Path, redis_url: str, project: str, **registry: Any) -> "FeatureStore":
    from feast import FeatureStore  # noqa: PLC0415
    from feast.repo_config import RepoConfig  # noqa: PLC0415

    return FeatureStore(
        config=RepoConfig(
            project=project,
            provider="local",
            registry={"path": str(directory / f"{project}.db"), **registry},
            entity_key_serialization_version=3,
            online_store={"type": "redis", "connection_string": redis_url},
        )
    )


def entity(name: str, dtype: str) -> Any:
    from feast import Entity, ValueType  # noqa: PLC0415

    return Entity(name=f"{name}_entity", join_keys=[name], value_type=ValueType[VALUE_TYPES[dtype]])


def feature_view(directory: Path, view: View, keys: Mapping[str, str]) -> Any:
    from feast import FeatureView, Field, FileSource  # noqa: PLC0415

    columns = {**{key: keys[key] for key in view.entities}, **view.fields}
    return FeatureView(
        name=view.name,
        entities=[entity(key, keys[key]) for key in view.entities],
        schema=[Field(name=name, dtype=feast_type(dtype)) for name, dtype in columns.items()],
        source=FileSource(
            name=view.name, path=str(directory / f"{view.name}.parquet"), timestamp_field="event_timestamp"
        ),
    )


def draw_project(draw: Draw, directory: Path, redis_url: str, number: int) -> Project:
    keys = {f"k{n}_{draw.choice('abc')}": draw.choice(list(KEYS)) for n in range(draw.randrange(1, 4))}
    views = []
    for n in range(draw.randrange(2, 5)):
        by_rows = draw.random() < 0.4
        types = list(BY_ROWS if by_rows else THROUGH_FRAMES)
        fields = {f"v{n}_f{m}": draw.choice(types) for m in range(draw.randrange(1, 12))}
        views.append(View(f"view_{n}", draw.sample(list(keys), draw.randrange(1, len(keys) + 1)), fields, by_rows))
    store = store_at(directory, redis_url, f"drawn{number}")
    project = Project(store, keys, views)
    store.apply(
        [*(entity(key, dtype) for key, dtype in keys.items()), *(feature_view(directory, view, keys) for view in views)]
    )
    for view in views:
        rows = draw_rows(draw, view, keys)
        project.written[view.name] = [{key: row[key] for key in view.entities} for row in rows]
        write(store, view, keys, rows)
    return project


def draw_rows(draw: Draw, view: View, keys: Mapping[str, str]) -> list[dict[str, Any]]:
    """Of distinct entities; a fifth of the values are null."""
    samplers = BY_ROWS if view.by_rows else THROUGH_FRAMES
    rows = {}
    for _ in range(draw.randrange(1, 12)):
        row = {key: KEYS[keys[key]](draw) for key in view.entities}
        values = {name: None if draw.random() < 0.2 else samplers[dtype](draw) for name, dtype in view.fields.items()}
        at = AT - timedelta(microseconds=draw.randrange(10**14))
        rows[tuple(row.values())] = {**row, "event_timestamp": at, **values}
    return list(rows.values())


def write(store: "FeatureStore", view: View, keys: Mapping[str, str], rows: Sequence[Mapping[str, Any]]) -> None:
    """Through Feast, whichever of its ways can carry the types."""
    if view.by_rows:
        write_rows(store, view.name, keys, rows)
        return
    dtypes = {"Int32": "Int32", "Int64": "Int64", "Bool": "boolean", "Float32": "float32", "Float64": "float64"}
    columns = {}
    for name in ("event_timestamp", *view.entities, *view.fields):
        dtype = dtypes.get({**keys, **view.fields}.get(name, ""), "object")
        columns[name] = pd.Series([row[name] for row in rows], dtype=dtype)
    columns["event_timestamp"] = pd.to_datetime(columns["event_timestamp"], utc=True)
    store.write_to_online_store(view.name, pd.DataFrame(columns))


def write_rows(store: "FeatureStore", view: str, keys: Mapping[str, str], rows: Sequence[Mapping[str, Any]]) -> None:
    from feast.protos.feast.types.EntityKey_pb2 import EntityKey  # noqa: PLC0415
    from feast.type_map import python_values_to_proto_values  # noqa: PLC0415
    from feast.value_type import ValueType  # noqa: PLC0415

    registered = store.get_feature_view(view)
    types = {column.name: column.dtype.to_value_type() for column in registered.features}
    data: list[tuple[Any, dict[str, Any], datetime, datetime | None]] = []
    for row in rows:
        names = [key for key in keys if key in row]
        values = [python_values_to_proto_values([row[key]], ValueType[VALUE_TYPES[keys[key]]])[0] for key in names]
        stored = {name: python_values_to_proto_values([row[name]], types[name])[0] for name in types if name in row}
        data.append((EntityKey(join_keys=names, entity_values=values), stored, row["event_timestamp"], None))
    store._get_provider().online_write_batch(store.config, registered, data, None)


def draw_request(draw: Draw, project: Project, names: Sequence[str]) -> list[dict[str, Any]]:
    """Rows for the keys of `names`: entities that were written, that were not, and the same ones again."""
    known = [row for rows in project.written.values() for row in rows]
    rows = []
    for _ in range(draw.randrange(1, 40)):
        row = {name: KEYS[project.keys[name]](draw) for name in names}
        if draw.random() < 0.8:
            row |= {name: value for name, value in draw.choice(known).items() if name in row}
        rows.append(row)
    return rows
