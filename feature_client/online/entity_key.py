"""An entity's key in Redis, both ways: from values to Feast's bytes, and from bytes found in a store to values."""

import struct
from collections.abc import Mapping

from feature_client.online import wire

DUMMY = "__dummy_id"
"""Join key of views without entities; its value is the empty string."""

TYPES = {"bytes": 1, "string": 2, "int32": 3, "int64": 4, "timestamp": 8}
"""feast.types.ValueType of what Feast takes as a join key; timestamps are epoch seconds."""

NAMES = {number: name for name, number in TYPES.items()}
NUMBERS = {"int32": "<i", "int64": "<q", "timestamp": "<q"}

KeyValue = str | int | bytes
EntityValues = Mapping[str, tuple[str, KeyValue]]
"""Join key -> its type, one of TYPES, and its value."""


class ForeignKey(ValueError):
    """Bytes that are no key of this project as Feast writes it."""


def encode(values: EntityValues, project: str) -> bytes:
    """Numbers must be in the range of their type."""
    names = sorted(values)
    parts = [wire.entity_key_head(names)]
    for name in names:
        dtype, value = values[name]
        payload = _payload(dtype, value)
        parts += [struct.pack("<II", TYPES[dtype], len(payload)), payload]
    return b"".join([*parts, project.encode()])


def decode(key: bytes, project: str) -> EntityValues:
    """The inverse of `encode`. Raises ForeignKey for every key that `encode` does not write.

    A project's name follows the values without a length; they say how long they are, so that `prod` is not `preprod`.
    """
    try:
        [count], at = struct.unpack_from("<I", key), 4
        names, values = [], {}
        for _ in range(count):
            number, raw, at = _part(key, at)
            names.append(raw.decode())
        for name in names:
            number, raw, at = _part(key, at)
            values[name] = (NAMES[number], _value(NAMES[number], raw))
        if encode(values, project) != key:
            raise ForeignKey("not a key of this project")
    except (struct.error, UnicodeDecodeError, KeyError) as exc:
        raise ForeignKey("not a key of Feast's") from exc
    return values


def _payload(dtype: str, value: KeyValue) -> bytes:
    if isinstance(value, int):
        return struct.pack(NUMBERS[dtype], value)
    return value.encode() if isinstance(value, str) else value


def _value(dtype: str, raw: bytes) -> KeyValue:
    if dtype in NUMBERS:
        return int(struct.unpack(NUMBERS[dtype], raw)[0])
    return raw.decode() if dtype == "string" else raw


def _part(key: bytes, at: int) -> tuple[int, bytes, int]:
    """The type, the bytes, and the position behind them."""
    number, length = struct.unpack_from("<II", key, at)
    end = at + 8 + length
    if end > len(key):
        raise ForeignKey("cut off")
    return number, key[at + 8 : end], end
