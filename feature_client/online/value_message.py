"""feast.types.Value, every member of it, through protobuf and as Feast presents it: the long way of value.py.

The messages are our own copies, in a descriptor pool of our own and under a package name of our own, so that they never
meet Feast's: protobuf refuses a process in which one file is registered twice and differs. Needs the extra `compat`.
"""

import json
import re
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta, timezone, tzinfo
from decimal import Decimal
from functools import cache
from typing import Any
from uuid import UUID
from zoneinfo import ZoneInfo

from feature_client.errors import RapportError
from feature_client.online.wire import NOT_A_TIME, WireError

PACKAGE = "rapport.feast"

SCALARS = {"double": 1, "float": 2, "int64": 3, "int32": 5, "bool": 8, "string": 9, "bytes": 12, "Null": 14}
"""Type -> FieldDescriptorProto.Type; whatever is not here is a message."""

VALUE: Mapping[int, tuple[str, str]] = {
    1: ("bytes_val", "bytes"),
    2: ("string_val", "string"),
    3: ("int32_val", "int32"),
    4: ("int64_val", "int64"),
    5: ("double_val", "double"),
    6: ("float_val", "float"),
    7: ("bool_val", "bool"),
    8: ("unix_timestamp_val", "int64"),
    11: ("bytes_list_val", "BytesList"),
    12: ("string_list_val", "StringList"),
    13: ("int32_list_val", "Int32List"),
    14: ("int64_list_val", "Int64List"),
    15: ("double_list_val", "DoubleList"),
    16: ("float_list_val", "FloatList"),
    17: ("bool_list_val", "BoolList"),
    18: ("unix_timestamp_list_val", "Int64List"),
    19: ("null_val", "Null"),
    20: ("map_val", "Map"),
    21: ("map_list_val", "MapList"),
    22: ("bytes_set_val", "BytesList"),
    23: ("string_set_val", "StringList"),
    24: ("int32_set_val", "Int32List"),
    25: ("int64_set_val", "Int64List"),
    26: ("double_set_val", "DoubleList"),
    27: ("float_set_val", "FloatList"),
    28: ("bool_set_val", "BoolList"),
    29: ("unix_timestamp_set_val", "Int64List"),
    32: ("json_val", "string"),
    33: ("json_list_val", "StringList"),
    34: ("struct_val", "Map"),
    35: ("struct_list_val", "MapList"),
    36: ("uuid_val", "string"),
    37: ("time_uuid_val", "string"),
    38: ("uuid_list_val", "StringList"),
    39: ("time_uuid_list_val", "StringList"),
    40: ("uuid_set_val", "StringList"),
    41: ("time_uuid_set_val", "StringList"),
    42: ("list_val", "RepeatedValue"),
    43: ("set_val", "RepeatedValue"),
    44: ("decimal_val", "string"),
    45: ("decimal_list_val", "StringList"),
    46: ("decimal_set_val", "StringList"),
    47: ("scalar_map_val", "ScalarMap"),
    48: ("zoned_timestamp_val", "ZonedTimestamp"),
}
"""Number -> name and type of the oneof's members. Feast's sets have messages of their own, alike to the lists'."""

MAP_KEY: Mapping[int, tuple[str, str]] = {
    1: ("int32_key", "int32"),
    2: ("int64_key", "int64"),
    3: ("float_key", "float"),
    4: ("double_key", "double"),
    5: ("bool_key", "bool"),
    6: ("unix_timestamp_key", "int64"),
    7: ("bytes_key", "bytes"),
    8: ("uuid_key", "string"),
    9: ("time_uuid_key", "string"),
    10: ("decimal_key", "string"),
}

REPEATED = {
    "BytesList": "bytes",
    "StringList": "string",
    "Int32List": "int32",
    "Int64List": "int64",
    "DoubleList": "double",
    "FloatList": "float",
    "BoolList": "bool",
    "MapList": "Map",
    "RepeatedValue": "Value",
    "ScalarMap": "ScalarMapEntry",
}
"""Messages of one repeated field, `val` = 1."""


def decode(raw: bytes, declared: str | None = None) -> Any:
    """What Feast's `to_dict()` shows of a serialized Value. declared: see value.decode.

    Raises WireError for bytes of which Feast makes an error, and RapportError where protobuf is not installed.
    """
    message = value_class()()
    try:
        message.ParseFromString(raw)
        return _python(message, declared)
    # Whatever protobuf, uuid, decimal, json and datetime call their refusals: Feast fails with them, and we by name.
    except (ValueError, TypeError, ArithmeticError, OSError, RecursionError, _protobuf().message.DecodeError) as exc:
        raise WireError(f"not a Value: {type(exc).__name__}") from exc


def decode_timestamp(raw: bytes) -> tuple[int, int]:
    """A serialized google.protobuf.Timestamp as seconds and nanoseconds. Raises as `decode` does."""
    protobuf = _protobuf()
    message = protobuf.timestamp_pb2.Timestamp()
    try:
        message.ParseFromString(raw)
    except protobuf.message.DecodeError as exc:
        raise WireError("not a Timestamp") from exc
    return message.seconds, message.nanos


@cache
def value_class() -> Any:
    """Our copy of feast.types.Value. Raises RapportError where protobuf is not installed."""
    protobuf = _protobuf()
    name = "rapport/feast_value.proto"
    file = protobuf.descriptor_pb2.FileDescriptorProto(name=name, package=PACKAGE, syntax="proto3")
    file.enum_type.add(name="Null").value.add(name="NULL", number=0)
    _add_oneof(file.message_type.add(name="Value"), "val", VALUE)
    _add_oneof(file.message_type.add(name="MapKey"), "key", MAP_KEY)
    for message, of in REPEATED.items():
        _add(file.message_type.add(name=message), 1, "val", of, repeated=True)
    entry = file.message_type.add(name="ScalarMapEntry")
    _add(entry, 1, "key", "MapKey")
    _add(entry, 2, "value", "Value")
    zoned = file.message_type.add(name="ZonedTimestamp")
    _add(zoned, 1, "unix_timestamp", "int64")
    _add(zoned, 2, "zone", "string")
    map_message = file.message_type.add(name="Map")
    pair = map_message.nested_type.add(name="ValEntry")
    pair.options.map_entry = True
    _add(pair, 1, "key", "string")
    _add(pair, 2, "value", "Value")
    _add(map_message, 1, "val", "Map.ValEntry", repeated=True)
    pool = protobuf.descriptor_pool.DescriptorPool()
    pool.AddSerializedFile(file.SerializeToString())
    return protobuf.message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{PACKAGE}.Value"))


def _add_oneof(message: Any, name: str, members: Mapping[int, tuple[str, str]]) -> None:
    message.oneof_decl.add(name=name)
    for number, (member, of) in members.items():
        _add(message, number, member, of).oneof_index = 0


def _add(message: Any, number: int, name: str, of: str, *, repeated: bool = False) -> Any:
    field = message.field.add(name=name, number=number, label=3 if repeated else 1, type=SCALARS.get(of, 11))
    if of == "Null" or of not in SCALARS:
        field.type_name = f".{PACKAGE}.{of}"
    return field


def _protobuf() -> Any:
    """The package, with the modules of it that we use."""
    try:
        from google import protobuf  # type: ignore[import-untyped]  # noqa: PLC0415  (most values do without)
        from google.protobuf import (  # type: ignore[import-untyped]  # noqa: F401, PLC0415
            descriptor_pb2,
            descriptor_pool,
            message,
            message_factory,
            timestamp_pb2,
        )
    except ImportError as exc:
        raise RapportError(
            "the store holds values that only protobuf reads, and it is not installed: pip install 'rapport[compat]'"
        ) from exc
    return protobuf


# From here on: feast/type_map.py, feast_value_type_to_python_type, member by member.


def _python(value: Any, declared: str | None = None) -> Any:
    member = value.WhichOneof("val")
    if member is None:
        return None
    return (DECLARED.get((declared, member)) or PYTHON[member])(getattr(value, member))


def _same(value: Any) -> Any:
    return value


def time_of(seconds: int) -> datetime | None:
    """Raises ValueError or OverflowError beyond the years that a datetime can hold."""
    return None if seconds == NOT_A_TIME else datetime.fromtimestamp(seconds, UTC)


def _zoned(value: Any) -> datetime | None:
    if value.unix_timestamp == NOT_A_TIME:
        return None
    return datetime.fromtimestamp(value.unix_timestamp, _zone(value.zone))


def _zone(name: str) -> tzinfo:
    """A zone of the time zone database, else a fixed offset, else UTC."""
    if not name:
        return UTC
    try:
        return ZoneInfo(name)
    except (KeyError, ValueError, OSError):
        pass
    if match := re.fullmatch(r"(?:UTC|GMT)?([+-])(\d{2}):?(\d{2})", name.strip()):
        offset = timedelta(hours=int(match[2]), minutes=int(match[3]))
        return timezone(-offset if match[1] == "-" else offset)
    return UTC


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text


def _list(element: Callable[[Any], Any]) -> Callable[[Any], list[Any]]:
    return lambda message: [element(item) for item in message.val]


def _set(element: Callable[[Any], Any]) -> Callable[[Any], set[Any]]:
    # Texts first, as Feast does it: two NaN are one text but two decimals.
    return lambda message: {element(item) for item in set(message.val)}


def _map(message: Any) -> dict[str, Any]:
    return {key: _python(value) for key, value in message.val.items()}


def _scalar_map(message: Any) -> dict[Any, Any]:
    return {_key(entry.key): _python(entry.value) for entry in message.val}


def _key(key: Any) -> Any:
    member = key.WhichOneof("key")
    return None if member is None else KEYS.get(member, _same)(getattr(key, member))


KEYS: Mapping[str, Callable[[Any], Any]] = {
    "unix_timestamp_key": time_of,
    "uuid_key": UUID,
    "time_uuid_key": UUID,
    "decimal_key": Decimal,
}

ELEMENTS: Mapping[str, Callable[[Any], Any]] = {
    "unix_timestamp": time_of,
    "uuid": UUID,
    "time_uuid": UUID,
    "decimal": Decimal,
    "json": _json,
}
"""Scalars that Feast turns into something of Python's; all others stay as protobuf gives them."""

PYTHON: dict[str, Callable[[Any], Any]] = {
    **{
        name: _list(ELEMENTS.get(name.removesuffix("_list_val"), _same))
        for name, _ in VALUE.values()
        if "_list_" in name
    },
    **{name: _set(ELEMENTS.get(name.removesuffix("_set_val"), _same)) for name, _ in VALUE.values() if "_set_" in name},
    **{name: ELEMENTS.get(name.removesuffix("_val"), _same) for name, of in VALUE.values() if of in SCALARS},
    "map_val": _map,
    "struct_val": _map,
    "map_list_val": _list(_map),
    "struct_list_val": _list(_map),
    "scalar_map_val": _scalar_map,
    "list_val": _list(_python),
    "set_val": _list(_python),
    "zoned_timestamp_val": _zoned,
}
"""Member of the oneof -> what Feast shows of it."""

DECLARED: Mapping[tuple[str | None, str], Callable[[Any], Any]] = {
    ("uuid", "string_val"): UUID,
    ("uuid_list", "string_list_val"): _list(UUID),
    ("uuid_set", "string_set_val"): _set(UUID),
}
"""Features declared as UUIDs, stored as text by earlier versions of Feast."""
