"""Feast's bytes in Redis: keys, names of values, and the values themselves, decoded strictly.

The layout is Feast's own (entity key serialization version 3, `feast.types.Value`, one protobuf `Timestamp` a view).
Strictly means: every byte is consumed and the stored type is the declared one; all else is a WireError, never a value.
tests/feature_client/online holds this file to Feast.
"""

import struct
from collections.abc import Callable, Mapping, Sequence

import mmh3

NULL = b"\x98\x01\x00"
"""Value{null_val: NULL}, which foreign writers use; Feast's own null is the empty Value."""

NOT_A_TIME = -(1 << 63)
"""pandas' NaT, as Feast stores it in a timestamp."""

TIMESTAMP_SECONDS = range(-62_135_596_800, 253_402_300_800)
"""protobuf's Timestamp: the years 1 to 9999."""

VALUE_TYPES = {"string": 2, "int32": 3, "int64": 4}
"""feast.types.ValueType of the join keys we read."""

STRING, INT32, INT64, DOUBLE, FLOAT, BOOL, UNIX_TIMESTAMP = 0x12, 0x18, 0x20, 0x29, 0x35, 0x38, 0x40
"""First byte of a serialized Value: which member of its oneof follows, and how."""

MAX_VARINT_BYTES = 10

LONG_STRING = 0x80
"""Bytes from which the length of a string takes more than one byte."""


class WireError(ValueError):
    """Bytes that are not a value of the declared type."""


def value_name(view: str, field: str) -> bytes:
    """Name of a feature's value in the entity's hash."""
    return struct.pack("<I", mmh3.hash(f"{view}:{field}", signed=False))


def event_time_name(view: str) -> bytes:
    return f"_ts:{view}".encode()


def entity_key_head(names: Sequence[str]) -> bytes:
    """The part of a key in front of its values. names: join keys, sorted. Behind the values comes the project."""
    encoded = [name.encode() for name in names]
    parts = (struct.pack("<II", VALUE_TYPES["string"], len(name)) + name for name in encoded)
    return struct.pack("<I", len(names)) + b"".join(parts)


def entity_value(value: str | int, dtype: str) -> bytes:
    """One value in a key; a whole number must be in the range of its dtype."""
    payload = value.encode() if isinstance(value, str) else struct.pack("<q" if dtype == "int64" else "<i", value)
    return struct.pack("<II", VALUE_TYPES[dtype], len(payload)) + payload


def string_value(text: str) -> bytes:
    """A serialized Value{string_val}, as Feast stores it. Raises UnicodeEncodeError for lone surrogates."""
    raw = text.encode()
    length = len(raw)
    if length < LONG_STRING:
        return b"\x12%c%b" % (length, raw)
    varint = bytearray()
    while length >= 0x80:
        varint.append(length & 0x7F | 0x80)
        length >>= 7
    return b"\x12%b%c%b" % (bytes(varint), length, raw)


def decode(raw: bytes, dtype: str) -> float | str | None:
    """A serialized Value, None where null; timestamps as epoch seconds. Raises WireError."""
    return None if raw in (b"", NULL) else _DECODERS[dtype](raw)


def decode_event_time(raw: bytes) -> float:
    """A serialized protobuf Timestamp as epoch seconds. Raises WireError."""
    seconds, at = (0, 0) if raw[:1] != b"\x08" else varint(raw, 1)
    nanos, at = (0, at) if raw[at : at + 1] != b"\x10" else varint(raw, at + 1)
    if at != len(raw) or signed(seconds) not in TIMESTAMP_SECONDS or nanos >= 1_000_000_000:
        raise WireError("not a Timestamp")
    return signed(seconds) + nanos / 1e9


def _string(raw: bytes) -> str:
    if raw[0] != STRING:
        raise WireError("not a string")
    length, start = varint(raw, 1)
    if start + length != len(raw):
        raise WireError("a string of another length than it says")
    try:
        return raw[start:].decode()
    except UnicodeDecodeError as exc:
        raise WireError("a string that is not UTF-8") from exc


def _float64(raw: bytes) -> float:
    if raw[0] != DOUBLE or len(raw) != 9:
        raise WireError("not a double")
    return float(struct.unpack_from("<d", raw, 1)[0])


def _float32(raw: bytes) -> float:
    if raw[0] != FLOAT or len(raw) != 5:
        raise WireError("not a float")
    return float(struct.unpack_from("<f", raw, 1)[0])


def _int64(raw: bytes) -> float:
    return float(_integer(raw, INT64))


def _int32(raw: bytes) -> float:
    value = _integer(raw, INT32)
    if not -(1 << 31) <= value < 1 << 31:
        raise WireError("not an int32")
    return float(value)


def _bool(raw: bytes) -> float:
    value = _integer(raw, BOOL)
    if value not in (0, 1):
        raise WireError("not a bool")
    return float(value)


def _timestamp(raw: bytes) -> float | None:
    seconds = _integer(raw, UNIX_TIMESTAMP)
    return None if seconds == NOT_A_TIME else float(seconds)


_DECODERS: Mapping[str, Callable[[bytes], float | str | None]] = {
    "string": _string,
    "float64": _float64,
    "float32": _float32,
    "int64": _int64,
    "int32": _int32,
    "bool": _bool,
    "timestamp": _timestamp,
}


def _integer(raw: bytes, tag: int) -> int:
    if raw[0] != tag:
        raise WireError("of another type")
    value, end = varint(raw, 1)
    if end != len(raw):
        raise WireError("a number followed by something else")
    return signed(value)


def varint(raw: bytes, at: int) -> tuple[int, int]:
    """An unsigned 64-bit number, and the position behind it."""
    value = 0
    for length, byte in enumerate(raw[at : at + MAX_VARINT_BYTES]):
        value |= (byte & 0x7F) << 7 * length
        if byte < 0x80:
            if value >= 1 << 64:
                raise WireError("a number of more than 64 bits")
            return value, at + length + 1
    raise WireError("a number without an end")


def signed(value: int) -> int:
    return value - (1 << 64) if value >= 1 << 63 else value
