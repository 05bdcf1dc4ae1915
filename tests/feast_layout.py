"""Writes Feast's Redis layout by hand, for tests that need a few rows and not the seconds that importing Feast takes.

That these bytes are Feast's own is what tests/feature_client/online holds against Feast itself.
"""

import struct
from collections.abc import Mapping

import mmh3
from redis import Redis

from feature_client.schema import FeatureSchema
from tests.feature_client.online.varints import varint

Value = float | int | str | bytes | None


def key_of(schema: FeatureSchema, entity: str) -> bytes:
    """The key of an entity with one string join key."""
    [join_key] = schema.entity
    name, value = join_key.name.encode(), entity.encode()
    head = struct.pack("<III", 1, 2, len(name)) + name
    return head + struct.pack("<II", 2, len(value)) + value + schema.project.encode()


def store(
    redis: "Redis", schema: FeatureSchema, entity: str, rows: Mapping[str, tuple[float, Mapping[str, Value]]]
) -> None:
    """rows: view -> (event time in epoch seconds, stored field -> value); bytes go in as they are."""
    mapping: dict[bytes, bytes] = {}
    for view, (event_time, fields) in rows.items():
        mapping[f"_ts:{view}".encode()] = b"\x08" + varint(int(event_time))
        for field, value in fields.items():
            mapping[field_of(view, field)] = stored_value(value, timestamp=field.endswith("_at"))
    redis.hset(key_of(schema, entity), mapping=mapping)  # type: ignore[arg-type]


def field_of(view: str, field: str) -> bytes:
    return struct.pack("<i", mmh3.hash(f"{view}:{field}"))


def stored_value(value: Value, *, timestamp: bool) -> bytes:
    if value is None:
        return b""
    if isinstance(value, bytes):
        return value
    if isinstance(value, str):
        return b"\x12" + varint(len(value.encode())) + value.encode()
    if timestamp:
        return b"\x40" + varint(int(value))
    return b"\x20" + varint(value) if isinstance(value, int) else b"\x29" + struct.pack("<d", value)
