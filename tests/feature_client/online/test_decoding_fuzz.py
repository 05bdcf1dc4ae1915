"""The gateway's own decoder, whole columns at a time, against protobuf: its value or none, whatever is in a column."""

import math
import random
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from feature_client.offline.comparison import Mismatch, require_same
from feature_client.online import decoding, wire
from feature_client.online.plan import ReadPlan
from feature_client.schema import JoinKey
from tests.feature_client.online.shop import TYPES, VALUE_MEMBERS, feature, schema_of
from tests.feature_client.online.values import random_member, random_value, spoiled

if TYPE_CHECKING:
    from feast import FeatureStore

VALUES = 100_000
AT = b"\x08\x80\x94\xeb\xdc\x03"
"""An event time that every row has."""


Column = list[bytes | None]

TAGS = [
    bytes([tag]) for tag in (wire.STRING, wire.INT32, wire.INT64, wire.DOUBLE, wire.FLOAT, wire.BOOL, 0x40, 0x0A, 0x49)
]


@pytest.fixture(scope="module")
def value_type(feast_store: "FeatureStore") -> type[Any]:
    from feast.protos.feast.types.Value_pb2 import Value  # noqa: PLC0415  (the store is asked for: it imports Feast)

    return Value


@pytest.fixture(scope="module")
def plan() -> ReadPlan:
    features = [feature("profile", field, dtype) for field, dtype in TYPES.items()]
    return ReadPlan(schema_of(*features, entity=(JoinKey("customer_id"),)))


def tables(value_type: type[Any], seed: int) -> Iterator[dict[str, Column]]:
    """Field -> a column, of up to 40 rows. One damage a table, mostly: with more, columns are never read as such."""
    draw = random.Random(seed)
    others = [value_type(**random_value(draw)).SerializeToString() for _ in range(500)]
    sound = {
        dtype: [value_type(**{member: random_member(draw, member)}).SerializeToString() for _ in range(300)]
        for dtype, member in VALUE_MEMBERS.items()
    }
    # Today's: the fast path for timestamps is theirs.
    sound["timestamp"] += [
        value_type(unix_timestamp_val=draw.randrange(10**9, 2 * 10**9)).SerializeToString() for _ in range(900)
    ]
    left = VALUES
    while left > 0:
        rows = draw.randrange(1, 40)
        table: dict[str, Column] = {field: draw.choices(sound[dtype], k=rows) for field, dtype in TYPES.items()}
        field, row = draw.choice(list(TYPES)), draw.randrange(rows)
        kind = draw.choice(["sound", "one value", "its tag", "a column", "of another type", "everywhere"])
        if kind == "one value":
            table[field][row] = spoiled(draw, table[field][row] or b"", draw.choice(others))
        elif kind == "its tag":
            table[field][row] = draw.choice(TAGS) + (table[field][row] or b"")[1:]
        elif kind == "a column":
            table[field] = [spoiled(draw, raw or b"", draw.choice(others)) for raw in table[field]]
        elif kind == "of another type":
            table[field] = draw.choices(sound[draw.choice(list(VALUE_MEMBERS))], k=rows)
        elif kind == "everywhere":
            table = {
                name: [spoiled(draw, raw or b"", draw.choice(others)) if draw.random() < 0.2 else raw for raw in column]
                for name, column in table.items()
            }
        if draw.random() < 0.5:
            nulls = [None, b"", wire.NULL] if kind == "everywhere" else [None, b""]
            table = {
                name: [draw.choice(nulls) if draw.random() < 0.1 else raw for raw in column]
                for name, column in table.items()
            }
        yield table
        left -= rows * len(TYPES)


def shown(value_type: type[Any], raw: bytes | None, dtype: str) -> tuple[Any, bool]:
    """What may be shown of a value, and whether it must be: bytes that protobuf would write so itself."""
    message = value_type()
    try:
        message.ParseFromString(raw or b"")
    except Exception:  # noqa: BLE001  (DecodeError)
        return None, False
    if message.WhichOneof("val") != VALUE_MEMBERS[dtype]:
        return None, False
    value = getattr(message, VALUE_MEMBERS[dtype])
    if dtype == "timestamp" and value == wire.NOT_A_TIME:
        return None, False
    message.DiscardUnknownFields()
    return value if dtype == "string" else float(value), raw == message.SerializeToString()


def require_protobufs(value_type: type[Any], plan: ReadPlan, tables: Iterator[dict[str, Column]]) -> int:
    """Counts the values that are shown. Raises Mismatch."""
    values = 0
    [hash_] = plan.hashes
    for table in tables:
        rows = len(next(iter(table.values())))
        keys = plan.keys([{"customer_id": str(row)} for row in range(rows)])
        columns: Sequence[Column] = [table[field] for _, field in hash_.names]
        replies = [[*(column[row] for column in columns), AT] for row in range(rows)]
        batch = decoding.decode(plan, keys, [replies])
        numbers = {str(f.field): batch.numbers[:, i] for i, f in enumerate(plan.schema.stored_numbers)}
        strings = {str(f.field): batch.strings[:, i] for i, f in enumerate(plan.schema.categorical)}
        for field, dtype in TYPES.items():
            for row, ours in enumerate((numbers | strings)[field]):
                expected, certain = shown(value_type, table[field][row], dtype)
                got = ours if isinstance(ours, str) or ours is None else float(ours)
                if got is None or got != got:  # noqa: PLR0124  (NaN: missing)
                    if certain and not (isinstance(expected, float) and math.isnan(expected)):
                        raise Mismatch(f"{field}: {table[field][row]!r} is lost")
                    continue
                values += 1
                require_same({field: [expected]}, {field: [got]})
    return values


def test_columns_hold_protobufs_values_or_none(value_type: type[Any], plan: ReadPlan) -> None:
    assert require_protobufs(value_type, plan, tables(value_type, 21)) > VALUES / 2


def loose(number: str, tag: int) -> Callable[[Sequence[bytes | None]], Any]:
    """Columns read without a look at their tags."""
    layout = np.dtype([("tag", "u1"), ("value", number)])

    def decode(values: Sequence[bytes | None]) -> Any:
        raw = [value or np.array((tag, np.nan), layout).tobytes() for value in values]
        if set(map(len, raw)) - {layout.itemsize}:
            raise wire.WireError
        return np.frombuffer(b"".join(raw), layout)["value"].astype(np.float64)

    return decode


def reversed_(dtype: str) -> Callable[[Sequence[bytes | None]], Any]:
    decode = decoding.NUMBERS[dtype]
    return lambda values: decode(values)[::-1]


timestamps = decoding.NUMBERS["timestamp"]

BUGS: dict[str, dict[str, Callable[[Sequence[bytes | None]], Any]]] = {
    "tags unread": {"float64": loose("<f8", wire.DOUBLE)},
    "the other byte order": {"float32": loose(">f4", wire.FLOAT)},
    "rows in another order": {"int64": reversed_("int64")},
    "another type read": {"int32": decoding.NUMBERS["int64"]},
    "nulls as zeros": {"bool": lambda values: np.nan_to_num(decoding.NUMBERS["int64"]([None] * len(values)))},
    "times one off": {"timestamp": lambda values: timestamps(values) + 1},
}


@pytest.mark.parametrize("bug", BUGS)
def test_a_planted_bug_is_found(
    bug: str, value_type: type[Any], plan: ReadPlan, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decoding, "NUMBERS", decoding.NUMBERS | BUGS[bug])

    with pytest.raises(Mismatch):
        require_protobufs(value_type, plan, tables(value_type, 21))


@pytest.mark.filterwarnings("error")
def test_a_signalling_nan_is_a_missing_number(plan: ReadPlan) -> None:
    """Found by the fuzz above: NumPy warns of it, and a warning may be an error."""
    [hash_] = plan.hashes
    values = {("profile", "ratio"): b"\x35\x01\x00\xa0\x7f", ("profile", "visits"): b"\x20\x07"}

    batch = decoding.decode(plan, plan.keys([{"customer_id": "c"}]), [[[*(values.get(n) for n in hash_.names), AT]]])

    assert sorted(batch.numbers[0][~np.isnan(batch.numbers[0])]) == [7.0]
