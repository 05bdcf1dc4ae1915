"""A serialized feast.types.Value of any type becomes what Feast's `to_dict()` shows: for `compat`, not for models.

Scalars and lists of them are read by hand, as Feast writes them. Whatever else may be in there (other members, unknown
or repeated fields, numbers written at greater length than needed) is protobuf's to judge: see value_message.py.
Every reader here takes all bytes or none.
"""

import struct
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

from feature_client.online import value_message
from feature_client.online.value_message import time_of
from feature_client.online.wire import WireError, signed, varint

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def decode(raw: bytes, declared: str | None = None) -> Any:
    """A Python value; None for a null, and 0 for a `null_val`, as Feast has it.

    declared: "uuid", "uuid_list" or "uuid_set" where the feature is declared as such: Feast then also reads text as
    UUIDs. Raises WireError where Feast fails, and RapportError where protobuf is needed and not installed.
    """
    if not raw:
        return None
    read = None if declared else BY_FIRST_BYTE.get(raw[0])
    if read is not None:
        try:
            return read(raw)
        except Unusual:
            pass
        except (ValueError, OverflowError, OSError) as exc:
            raise WireError("a time that no datetime can hold") from exc
    return value_message.decode(raw, declared)


def decode_event_time(raw: bytes) -> int:
    """A serialized protobuf Timestamp as whole epoch seconds; 0 where there is none. Raises as `decode` does.

    Feast takes it through a float and a datetime of microseconds, which rounds: so do we.
    """
    if not raw:
        return 0
    seconds, nanos = value_message.decode_timestamp(raw) if raw[0] != 0x08 else _timestamp(raw)
    try:
        at = datetime.fromtimestamp(seconds + nanos / 1_000_000_000.0, UTC)
    except (ValueError, OverflowError, OSError) as exc:
        raise WireError("an event time that no datetime can hold") from exc
    return (at - EPOCH) // timedelta(seconds=1)


class Unusual(Exception):
    """Not as Feast writes it; protobuf may still make something of it."""


def _timestamp(raw: bytes) -> tuple[int, int]:
    """Seconds, then perhaps nanoseconds."""
    try:
        seconds, at = varint(raw, 1)
        nanos, at = varint(raw, at + 1) if raw[at : at + 1] == b"\x10" else (0, at)
    except WireError:
        return value_message.decode_timestamp(raw)
    if at != len(raw) or nanos >= 1_000_000_000:
        return value_message.decode_timestamp(raw)
    return signed(seconds), nanos


def _numbers(payload: bytes) -> list[int]:
    """Unsigned varints, one behind the other."""
    numbers, at = [], 0
    try:
        while at < len(payload):
            number, at = varint(payload, at)
            numbers.append(number)
    except WireError as exc:
        raise Unusual from exc
    return numbers


def _behind(raw: bytes, tag: bytes) -> bytes:
    """What follows the tag and its length, to the end of `raw`."""
    if not raw.startswith(tag):
        raise Unusual
    try:
        length, at = varint(raw, len(tag))
    except WireError as exc:
        raise Unusual from exc
    if at + length != len(raw):
        raise Unusual
    return raw[at:]


def _text(payload: bytes) -> str:
    try:
        return payload.decode()
    except UnicodeDecodeError as exc:
        raise Unusual from exc


def _same(payload: bytes) -> bytes:
    return payload


def _int64(number: int) -> int:
    return signed(number)


def _int32(number: int) -> int:
    value = signed(number)
    if not -(1 << 31) <= value < 1 << 31:  # protobuf cuts it
        raise Unusual
    return value


def _bool(number: int) -> bool:
    if number > 1:
        raise Unusual
    return number == 1


def _time(number: int) -> datetime | None:
    return time_of(signed(number))


def _varint_of(convert: Callable[[int], Any]) -> Callable[[bytes], Any]:
    def read(raw: bytes) -> Any:
        numbers = _numbers(raw[1:])
        if len(numbers) != 1:
            raise Unusual
        return convert(numbers[0])

    return read


def _fixed(code: str) -> Callable[[bytes], float]:
    layout = struct.Struct(f"<B{code}")

    def read(raw: bytes) -> float:
        if len(raw) != layout.size:
            raise Unusual
        return float(layout.unpack(raw)[1])

    return read


def _sized(tag: bytes, convert: Callable[[bytes], Any]) -> Callable[[bytes], Any]:
    return lambda raw: convert(_behind(raw, tag))


def _packed(tag: bytes, convert: Callable[[bytes], list[Any]]) -> Callable[[bytes], list[Any]]:
    """Lists of numbers: a message with one field, whose elements are joined."""

    def read(raw: bytes) -> list[Any]:
        message = _behind(raw, tag)
        return convert(_behind(message, b"\x0a")) if message else []

    return read


def _floats(code: str, size: int) -> Callable[[bytes], list[float]]:
    def convert(payload: bytes) -> list[float]:
        count, rest = divmod(len(payload), size)
        if rest:
            raise Unusual
        return list(struct.unpack(f"<{count}{code}", payload))

    return convert


def _each(convert: Callable[[int], Any]) -> Callable[[bytes], list[Any]]:
    return lambda payload: [convert(number) for number in _numbers(payload)]


def _repeated(tag: bytes, convert: Callable[[bytes], Any]) -> Callable[[bytes], list[Any]]:
    """Lists of texts and bytes: a message with one field an element."""

    def read(raw: bytes) -> list[Any]:
        message = _behind(raw, tag)
        elements, at = [], 0
        while at < len(message):
            if message[at] != 0x0A:
                raise Unusual
            try:
                length, start = varint(message, at + 1)
            except WireError as exc:
                raise Unusual from exc
            at = start + length
            if at > len(message):
                raise Unusual
            elements.append(convert(message[start:at]))
        return elements

    return read


def _null(raw: bytes) -> int:
    if raw != b"\x98\x01\x00":
        raise Unusual
    return 0


BY_FIRST_BYTE: Mapping[int, Callable[[bytes], Any]] = {
    0x0A: _sized(b"\x0a", _same),
    0x12: _sized(b"\x12", _text),
    0x18: _varint_of(_int32),
    0x20: _varint_of(_int64),
    0x29: _fixed("d"),
    0x35: _fixed("f"),
    0x38: _varint_of(_bool),
    0x40: _varint_of(_time),
    0x5A: _repeated(b"\x5a", _same),
    0x62: _repeated(b"\x62", _text),
    0x6A: _packed(b"\x6a", _each(_int32)),
    0x72: _packed(b"\x72", _each(_int64)),
    0x7A: _packed(b"\x7a", _floats("d", 8)),
    0x82: _packed(b"\x82\x01", _floats("f", 4)),
    0x8A: _packed(b"\x8a\x01", _each(_bool)),
    0x92: _packed(b"\x92\x01", _each(_time)),
    0x98: _null,
}
"""First byte of the tag: which member of the oneof follows, and how. Two-byte tags are checked whole."""
