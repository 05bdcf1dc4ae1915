"""Whole columns at a time and row by row are one decoder: the same batch, whatever is stored."""

import math
import random
import struct
from collections.abc import Sequence

import numpy as np
import pytest

from feature_client.online import decoding, wire
from feature_client.online.decoding import Refusal, Reply, WrongEntity, decode
from feature_client.online.plan import EntityKey, ReadPlan
from feature_client.schema import FeatureBatch
from tests.feature_client.online.shop import NOW, SHOP, TOGETHER
from tests.feature_client.online.varints import varint

PLANS = {"one entity": ReadPlan(SHOP), "three entities": ReadPlan(TOGETHER)}


def a_value(draw: random.Random, dtype: str) -> bytes | None:
    """As Feast would store it, or a null, or nothing."""
    if (kind := draw.random()) < 0.1:
        return None
    if kind < 0.2:
        return b""
    number = draw.choice([0, 1, 127, 128, draw.randrange(1 << 31)])
    return {
        "float64": lambda: b"\x29" + struct.pack("<d", draw.choice([0.0, -0.0, math.inf, draw.gauss(0, 1e9)])),
        "float32": lambda: b"\x35" + struct.pack("<f", draw.gauss(0, 1)),
        "int64": lambda: b"\x20" + varint(draw.choice([number, (1 << 64) - 1 - number])),
        "int32": lambda: b"\x18" + varint(number),
        "bool": lambda: b"\x38" + varint(draw.randrange(2)),
        "timestamp": lambda: b"\x40" + varint(draw.choice([int(NOW) - draw.randrange(10**8), number, 1 << 63])),
        "string": lambda: wire.string_value(draw.choice(["", "France", "日本", "x" * 200])),
    }[dtype]()


def replies_of(draw: random.Random, plan: ReadPlan, rows: int) -> list[list[Reply | Refusal]]:
    replies: list[list[Reply | Refusal]] = []
    for position, one in enumerate(plan.hashes):
        dtypes = [block.dtype for block in one.blocks for _ in block.index]
        found: list[Reply | Refusal] = []
        for row in range(rows):
            values = [a_value(draw, dtype) for dtype in dtypes]
            copies = [
                draw.choice([wire.string_value(f"c{row}"), b"", None]) for view in one.views if view.id_at is not None
            ]
            times = [draw.choice([b"\x08" + varint(int(NOW) - draw.randrange(5)), None]) for _ in one.views]
            found.append([*values, *copies, *times])
        assert position < len(plan.hashes)
        replies.append(found)
    return replies


def damaged(draw: random.Random, replies: list[list[Reply | Refusal]]) -> list[list[Reply | Refusal]]:
    """One byte, one value or one row is not what it was."""
    found = draw.choice(replies)
    row = draw.randrange(len(found))
    reply = list(found[row])  # type: ignore[arg-type]
    at = draw.randrange(len(reply))
    raw = bytearray(reply[at] or b"")
    match draw.randrange(5):
        case 0 if raw:
            raw[draw.randrange(len(raw))] ^= 1 << draw.randrange(8)
        case 1:
            raw += draw.randbytes(1)
        case 2:
            raw = raw[:-1]
        case 3:
            raw = bytearray(reply[draw.randrange(len(reply))] or b"")
        case _:
            raw = bytearray(draw.randbytes(draw.randrange(12)))
    reply[at] = bytes(raw)
    return [[reply if r is found[row] else r for r in rows] if rows is found else rows for rows in replies]


def same(one: FeatureBatch, other: FeatureBatch) -> bool:
    return (
        one.numbers.tobytes() == other.numbers.tobytes()
        and np.array_equal(one.event_times, other.event_times, equal_nan=True)
        and one.strings.tolist() == other.strings.tolist()
        and one.corrupt == other.corrupt
        and one.refused == other.refused
    )


def keys_of(plan: ReadPlan, rows: int) -> Sequence[EntityKey]:
    entities = [{"customer_id": f"c{row}", "account_id": str(row)} for row in range(rows)]
    return plan.keys([{key.name: entity[key.name] for key in plan.join_keys} for entity in entities])


@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
def test_columns_and_rows_say_the_same_of_sound_and_damaged_replies(plan: ReadPlan) -> None:
    draw = random.Random(11)
    by_column = 0
    for _ in range(3_000):
        rows = draw.randrange(1, 20)
        keys = keys_of(plan, rows)
        replies = replies_of(draw, plan, rows)
        if draw.random() < 0.5:
            replies = damaged(draw, replies)
        expected = decoding._by_row(plan, keys, replies)
        assert same(decode(plan, keys, replies), expected)
        try:
            assert same(decoding._by_column(plan, keys, replies), expected)
            by_column += 1
        except (wire.WireError, WrongEntity):
            assert expected.corrupt or expected.refused or any(None in row for rows_ in replies for row in rows_)  # type: ignore[operator]

    assert by_column > 1_500


def test_what_is_remembered_stays_bounded() -> None:
    known = decoding.Remembered(len, {None: -1})
    for number in range(3 * decoding.REMEMBERED):
        assert known[b"%d" % number] == len(str(number))
        assert len(known) <= decoding.REMEMBERED + 1

    assert known[None] == -1
    assert known[b"x" * (decoding.REMEMBERED_BYTES + 1)] == decoding.REMEMBERED_BYTES + 1
    assert b"x" * (decoding.REMEMBERED_BYTES + 1) not in known


def test_a_refusal_is_of_its_own_row() -> None:
    plan = PLANS["one entity"]
    replies = replies_of(random.Random(1), plan, 3)
    replies[0][1] = Refusal("a key of another type")

    batch = decode(plan, keys_of(plan, 3), replies)

    assert batch.refused == {1: "a key of another type"}
    assert np.isnan(batch.numbers[1]).all()
    assert not np.isnan(batch.event_times[[0, 2]]).all()
