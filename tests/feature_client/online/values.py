"""Serialized Values to hold the decoder to: an example of every member, random ones, and spoiled ones."""

import math
import random
from collections.abc import Callable, Mapping
from typing import Any

UUID = "00000000-0000-4000-8000-00000000002a"
UUID_HEX = "30303030303030302d303030302d343030302d383030302d303030303030303030303261"
NAT = -(1 << 63)

# fmt: off
GOLDEN: Mapping[str, tuple[Any, str]] = {
    "bytes_val": (b"\x00a", "0a020061"),
    "string_val": ("é", "1202c3a9"),
    "int32_val": (-5, "18fbffffffffffffffff01"),
    "int64_val": (300, "20ac02"),
    "double_val": (-0.0, "290000000000000080"),
    "float_val": (0.1, "35cdcccc3d"),
    "bool_val": (False, "3800"),
    "unix_timestamp_val": (1780315200, "40c0e8f5d006"),
    "bytes_list_val": ({"val": [b"a", b""]}, "5a050a01610a00"),
    "string_list_val": ({"val": ["a", ""]}, "62050a01610a00"),
    "int32_list_val": ({"val": [1, -1]}, "6a0d0a0b01ffffffffffffffffff01"),
    "int64_list_val": ({"val": [300, -1]}, "720e0a0cac02ffffffffffffffffff01"),
    "double_list_val": ({"val": [1.5, -0.0]}, "7a120a10000000000000f83f0000000000000080"),
    "float_list_val": ({"val": [0.1]}, "8201060a04cdcccc3d"),
    "bool_list_val": ({"val": [True, False]}, "8a01040a020100"),
    "unix_timestamp_list_val": ({"val": [0, NAT]}, "92010d0a0b0080808080808080808001"),
    "null_val": (0, "980100"),
    "map_val": ({"val": {"a": {"int64_val": 1}}}, "a201090a070a016112022001"),
    "map_list_val": ({"val": [{"val": {"a": {"string_val": "b"}}}]}, "aa010c0a0a0a080a01611203120162"),
    "bytes_set_val": ({"val": [b"a"]}, "b201030a0161"),
    "string_set_val": ({"val": ["a"]}, "ba01030a0161"),
    "int32_set_val": ({"val": [-1]}, "c2010c0a0affffffffffffffffff01"),
    "int64_set_val": ({"val": [300]}, "ca01040a02ac02"),
    "double_set_val": ({"val": [1.5]}, "d2010a0a08000000000000f83f"),
    "float_set_val": ({"val": [0.5]}, "da01060a040000003f"),
    "bool_set_val": ({"val": [True]}, "e201030a0101"),
    "unix_timestamp_set_val": ({"val": [0]}, "ea01030a0100"),
    "json_val": ('{"a": [1, null]}', "8202107b2261223a205b312c206e756c6c5d7d"),
    "json_list_val": ({"val": ["1", "{"]}, "8a02060a01310a017b"),
    "struct_val": ({"val": {"a": {}}}, "9202070a050a01611200"),
    "struct_list_val": ({"val": [{"val": {"a": {"bool_val": True}}}]}, "9a020b0a090a070a016112023801"),
    "uuid_val": (UUID, "a20224" + UUID_HEX),
    "time_uuid_val": (UUID, "aa0224" + UUID_HEX),
    "uuid_list_val": ({"val": [UUID]}, "b202260a24" + UUID_HEX),
    "time_uuid_list_val": ({"val": [UUID]}, "ba02260a24" + UUID_HEX),
    "uuid_set_val": ({"val": [UUID]}, "c202260a24" + UUID_HEX),
    "time_uuid_set_val": ({"val": [UUID]}, "ca02260a24" + UUID_HEX),
    "list_val": ({"val": [{"int64_list_val": {"val": [1]}}, {}]}, "d202090a0572030a01010a00"),
    "set_val": ({"val": [{"string_set_val": {"val": ["a"]}}]}, "da02080a06ba01030a0161"),
    "decimal_val": ("1.50", "e20204312e3530"),
    "decimal_list_val": ({"val": ["1.50"]}, "ea02060a04312e3530"),
    "decimal_set_val": ({"val": ["-0"]}, "f202040a022d30"),
    "scalar_map_val": ({"val": [{"key": {"int64_key": 7}, "value": {"string_val": "a"}}]}, "fa020b0a090a0210071203120161"),  # noqa: E501
    "zoned_timestamp_val": ({"unix_timestamp": 1780315200, "zone": "Europe/Paris"}, "82031408c0e8f5d006120c4575726f70652f5061726973"),  # noqa: E501
}
"""Member of the oneof -> what it is made of, and the bytes that Feast makes of that."""
# fmt: on

INT32S = (0, 1, -1, 127, 128, (1 << 31) - 1, -(1 << 31))
INT64S = (*INT32S, 1 << 31, 1 << 53, (1 << 63) - 1, NAT)
TIMES = (0, -1, 1_780_315_200, 253_402_300_799, -62_135_596_800, NAT)
FLOATS = (0.0, -0.0, 1.5, 0.1, math.inf, -math.inf, math.nan, 3.4e38, 1e-45)
TEXTS = ("", "a", "é", "日本", "x" * 200, "\x00", "1_000")
JSONS = ("1", "null", '{"a": [1, {"b": null}]}', '"text"', "{", "", "NaN", "[" * 40 + "]" * 40, '{"a": 1, "a": 2}')
DECIMALS = ("1.50", "-0", "NaN", "1E+400", "0.1", "Infinity")
UUIDS = (UUID, UUID.upper(), UUID.replace("-", ""), "{" + UUID + "}")
ZONES = ("", "UTC", "Europe/Paris", "America/New_York", "UTC-07:00", "+05:30", "+0530", "GMT", "nowhere", "Etc/GMT+3")

ATOMS: Mapping[str, Callable[[random.Random], Any]] = {
    "bytes": lambda draw: draw.randbytes(draw.randrange(6)),
    "string": lambda draw: draw.choice(TEXTS),
    "int32": lambda draw: draw.choice([*INT32S, draw.randrange(1 << 20)]),
    "int64": lambda draw: draw.choice([*INT64S, draw.randrange(1 << 50)]),
    "double": lambda draw: draw.choice([*FLOATS, draw.gauss(0, 1)]),
    "float": lambda draw: draw.choice([*FLOATS, draw.gauss(0, 1)]),
    "bool": lambda draw: draw.random() < 0.5,
    "unix_timestamp": lambda draw: draw.choice([*TIMES, draw.randrange(1 << 33)]),
    "json": lambda draw: draw.choice(JSONS),
    "uuid": lambda draw: draw.choice(UUIDS),
    "time_uuid": lambda draw: draw.choice(UUIDS),
    "decimal": lambda draw: draw.choice(DECIMALS),
    "null": lambda draw: 0,
}
"""Scalar member, without `_val` -> one of its values."""


def random_member(draw: random.Random, member: str, depth: int = 0) -> Any:
    """What Feast's Value takes as `member`."""
    name = member.removesuffix("_val")
    if name in ATOMS:
        return ATOMS[name](draw)
    if name == "zoned_timestamp":
        return {"unix_timestamp": draw.choice(TIMES), "zone": draw.choice(ZONES)}
    size = draw.choice([0, 1, 1, 2, 3, 20])
    if name in ("map", "struct"):
        return {"val": {draw.choice(TEXTS): random_value(draw, depth + 1) for _ in range(size)}}
    return {"val": [_element(draw, name, depth + 1) for _ in range(size)]}


def _element(draw: random.Random, name: str, depth: int) -> Any:
    if name in ("map_list", "struct_list"):
        return random_member(draw, "map_val", depth)
    if name in ("list", "set"):
        return random_value(draw, depth)
    if name == "scalar_map":
        return {"key": _map_key(draw), "value": random_value(draw, depth)}
    return ATOMS[name.removesuffix("_list").removesuffix("_set")](draw)


def random_value(draw: random.Random, depth: int = 0) -> dict[str, Any]:
    """Arguments of one Value; sometimes none, which is a null."""
    members = [name for name in GOLDEN if depth < 3 or name.removesuffix("_val") in ATOMS]
    if draw.random() < 0.05:
        return {}
    member = draw.choice(members)
    return {member: random_member(draw, member, depth)}


def _map_key(draw: random.Random) -> dict[str, Any]:
    name = draw.choice([*(atom for atom in ATOMS if atom not in ("string", "json", "null")), None])
    return {} if name is None else {f"{name}_key": ATOMS[name](draw)}


def spoiled(draw: random.Random, raw: bytes, other: bytes) -> bytes:
    """`raw` with something changed, cut, added or doubled; `other`: another value, to join it with."""
    return draw.choice(SPOILERS)(draw, raw, other, draw.randrange(len(raw) + 1))


HEADS = [bytes.fromhex(text)[:2] if text[0] in "89abcdef" else bytes.fromhex(text)[:1] for _, text in GOLDEN.values()]


def _varint(draw: random.Random) -> bytes:
    """Of any length up to eleven bytes: cut at ten, and at 64 bits, the rules differ."""
    return bytes(
        [*(draw.randrange(0x80, 0x100) for _ in range(draw.randrange(11))), draw.choice([0, 1, 2, 0x0F, 0x7F])]
    )


def _longer_varint(draw: random.Random, raw: bytes, other: bytes, at: int) -> bytes:
    """A byte that ends a number no longer does, and a zero follows: the same number, if it was one."""
    if at == len(raw) or raw[at] >= 0x80:
        return raw
    return raw[:at] + bytes([raw[at] | 0x80, 0]) + raw[at + 1 :]


SPOILERS: list[Callable[[random.Random, bytes, bytes, int], bytes]] = [
    lambda draw, raw, other, at: raw[:at],
    lambda draw, raw, other, at: raw[:at] + draw.randbytes(draw.randrange(1, 4)) + raw[at:],
    # An unknown field, a second member, another value: protobuf merges.
    lambda draw, raw, other, at: raw + draw.choice([b"\x00", b"\x20\x01", b"\xf8\x07\x01", other]),
    lambda draw, raw, other, at: raw[:at] + other,
    _longer_varint,
    lambda draw, raw, other, at: raw[:at] + raw[at + 1 :],
    lambda draw, raw, other, at: raw[:at] + bytes([draw.randrange(256)]) + raw[at + 1 :],
    lambda draw, raw, other, at: draw.choice(HEADS) + raw[1:],
    lambda draw, raw, other, at: draw.choice(HEADS) + draw.randbytes(draw.randrange(14)),
    lambda draw, raw, other, at: draw.choice([b"\x18", b"\x20", b"\x38", b"\x40"]) + _varint(draw),
]
