"""Keys of entities, both ways, against Feast's own bytes."""

import random
from typing import TYPE_CHECKING, Any

import pytest

from feature_client.online.entity_key import TYPES, ForeignKey, decode, encode

if TYPE_CHECKING:
    from feast import FeatureStore

GOLDEN: dict[str, dict[str, tuple[str, Any]]] = {
    "0100000002000000090000006472697665725f696404000000080000000001000000000000": {"driver_id": ("int64", 256)},
    "010000000200000002000000696403000000040000 00ffffffff": {"id": ("int32", -1)},
    "01000000020000000200000069640200000003000000c3a961": {"id": ("string", "éa")},
    "01000000020000000200000069640100000002000000ff00": {"id": ("bytes", b"\xff\x00")},
    "0100000002000000020000006964080000000800000000ca9a3b00000000": {"id": ("timestamp", 1_000_000_000)},
    "0200000002000000 01000000 61 02000000 01000000 62 02000000 01000000 78 04000000 08000000 0700000000000000": {
        "b": ("int64", 7),
        "a": ("string", "x"),
    },
    "010000000200 00000a0000005f5f64756d6d795f69640200000000000000": {"__dummy_id": ("string", "")},
    "00000000": {},
}
MEMBERS = {"string": "string_val", "bytes": "bytes_val", "int32": "int32_val", "int64": "int64_val"} | {
    "timestamp": "unix_timestamp_val"
}


def feasts(values: dict[str, tuple[str, Any]], project: str) -> bytes:
    from feast.infra.online_stores.helpers import _redis_key  # noqa: PLC0415  (imported once a session)
    from feast.protos.feast.types.EntityKey_pb2 import EntityKey  # noqa: PLC0415
    from feast.protos.feast.types.Value_pb2 import Value  # noqa: PLC0415

    parts = [Value(**{MEMBERS[dtype]: value}) for dtype, value in values.values()]
    return bytes(_redis_key(project, EntityKey(join_keys=list(values), entity_values=parts)))


@pytest.mark.parametrize("golden", GOLDEN)
def test_golden_keys(golden: str, feast_store: "FeatureStore") -> None:
    values, raw = GOLDEN[golden], bytes.fromhex(golden) + b"shop"

    assert feasts(values, "shop") == raw
    assert encode(values, "shop") == raw
    assert decode(raw, "shop") == values


def draw_values(draw: random.Random) -> dict[str, tuple[str, Any]]:
    samples: dict[str, Any] = {
        "string": draw.choice(["", "a", "é", "x" * 300, "\x00", "shop"]),
        "bytes": draw.randbytes(draw.randrange(5)),
        "int32": draw.choice([0, -1, (1 << 31) - 1, -(1 << 31)]),
        "int64": draw.choice([0, -1, (1 << 63) - 1, -(1 << 63)]),
        "timestamp": draw.randrange(1 << 40),
    }
    names = draw.sample(["a", "b", "B", "é", "customer_id", "a_b"], draw.randrange(5))
    return {name: (dtype, samples[dtype]) for name in names for dtype in [draw.choice(list(TYPES))]}


def test_random_keys_are_feasts_and_come_back(feast_store: "FeatureStore") -> None:
    draw = random.Random(4)
    for _ in range(2_000):
        values, project = draw_values(draw), draw.choice(["shop", "p", "é", "a*b[c]"])
        raw = encode(values, project)
        assert raw == feasts(values, project)
        assert decode(raw, project) == values


def test_spoiled_keys_are_foreign_or_another_key_as_feast_writes_it() -> None:
    draw, foreign = random.Random(8), 0
    for _ in range(20_000):
        raw = bytearray(encode(draw_values(draw), "shop"))
        for _ in range(draw.randrange(1, 3)):
            at = draw.randrange(len(raw))
            raw[at : at + draw.randrange(2)] = draw.randbytes(draw.randrange(3))
        try:
            values = decode(bytes(raw), "shop")
        except ForeignKey:
            foreign += 1
            continue
        assert encode(values, "shop") == raw
    assert 1_000 < foreign < 20_000


@pytest.mark.parametrize("project", ["preshop", "hop", "shops", "", "other"])
def test_a_key_of_another_project_is_foreign(project: str) -> None:
    with pytest.raises(ForeignKey):
        decode(encode({"id": ("string", "x")}, "shop"), project)


def test_a_count_that_cannot_be_is_foreign_at_once() -> None:
    with pytest.raises(ForeignKey):
        decode(b"\xff\xff\xff\xff" + b"\x02\x00\x00\x00" * 2 + b"shop", "shop")
