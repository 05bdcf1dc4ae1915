"""The decoder against protobuf's own messages: the same value, or an error; never another value."""

import math
import struct
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from feature_client.online.wire import NOT_A_TIME, NULL, WireError, decode, decode_event_time
from tests.feature_client.online.shop import VALUE_MEMBERS

if TYPE_CHECKING:
    from feast import FeatureStore


EXAMPLES = settings(max_examples=400, deadline=None, database=None)

int64s = st.integers(-(2**63), 2**63 - 1)
scalars = st.one_of(
    st.tuples(st.just("string"), st.text()),
    st.tuples(st.just("int32"), st.integers(-(2**31), 2**31 - 1)),
    st.tuples(st.just("int64"), int64s),
    st.tuples(st.just("float64"), st.floats()),
    st.tuples(st.just("float32"), st.floats(width=32)),
    st.tuples(st.just("bool"), st.booleans()),
    st.tuples(st.just("timestamp"), int64s.filter(lambda seconds: seconds != NOT_A_TIME)),
)


@pytest.fixture(scope="module")
def value_type(feast_store: "FeatureStore") -> type[Any]:
    """feast.types.Value; the store is asked for so that Feast is imported once, in one place."""
    from feast.protos.feast.types.Value_pb2 import Value  # noqa: PLC0415

    return Value


@pytest.fixture(scope="module")
def timestamp_type(feast_store: "FeatureStore") -> type[Any]:
    from google.protobuf import timestamp_pb2  # type: ignore[import-untyped]  # noqa: PLC0415

    message: type[Any] = timestamp_pb2.Timestamp
    return message


def test_every_scalar_reads_as_it_was_written(value_type: type[Any]) -> None:
    @EXAMPLES
    @given(scalars)
    def holds(scalar: tuple[str, Any]) -> None:
        dtype, value = scalar
        raw = value_type(**{VALUE_MEMBERS[dtype]: value}).SerializeToString()
        assert same(decode(raw, dtype), value)

    holds()


def test_a_value_of_another_type_is_an_error_never_a_value(value_type: type[Any]) -> None:
    @EXAMPLES
    @given(scalars, st.sampled_from(sorted(VALUE_MEMBERS)))
    def holds(scalar: tuple[str, Any], dtype: str) -> None:
        written, value = scalar
        raw = value_type(**{VALUE_MEMBERS[written]: value}).SerializeToString()
        if dtype != written:
            with pytest.raises(WireError):
                decode(raw, dtype)

    holds()


def test_lists_and_bytes_are_errors(value_type: type[Any]) -> None:
    for raw in (
        value_type(bytes_val=b"17850").SerializeToString(),
        value_type(double_list_val={"val": [1.0]}).SerializeToString(),
        value_type(string_list_val={"val": ["a"]}).SerializeToString(),
    ):
        for dtype in VALUE_MEMBERS:
            with pytest.raises(WireError):
                decode(raw, dtype)


@st.composite
def spoiled(draw: st.DrawFn) -> bytes:
    """Bytes close to a Value: a real start, with something cut, changed or added; or anything at all."""
    start = draw(st.sampled_from([b"", b"\x12", b"\x18", b"\x20", b"\x29", b"\x35", b"\x38", b"\x40", NULL]))
    body = draw(
        st.one_of(
            st.binary(max_size=14),
            st.binary(max_size=8).map(lambda text: bytes([len(text)]) + text),
            st.lists(st.integers(0x80, 0xFF), max_size=10).map(lambda more: bytes([*more, 1])),
            st.floats().map(lambda number: struct.pack("<d", number)),
        )
    )
    return start + body + draw(st.sampled_from([b"", b"\x00", b"\x20\x01"]))


def test_bytes_that_give_a_value_give_protobuf_the_same(value_type: type[Any]) -> None:
    @settings(EXAMPLES, max_examples=2_000)
    @given(spoiled(), st.sampled_from(sorted(VALUE_MEMBERS)))
    def holds(raw: bytes, dtype: str) -> None:
        try:
            ours = decode(raw, dtype)
        except WireError:
            return
        theirs = value_type.FromString(raw)
        member = theirs.WhichOneof("val")
        if ours is None:
            assert member in (None, "null_val") or theirs.unix_timestamp_val == NOT_A_TIME
        else:
            assert member == VALUE_MEMBERS[dtype]
            assert same(ours, getattr(theirs, member))

    holds()


@pytest.mark.parametrize("dtype", sorted(VALUE_MEMBERS))
def test_feasts_nulls_are_none(dtype: str) -> None:
    assert decode(b"", dtype) is None
    assert decode(NULL, dtype) is None


def test_pandas_missing_time_is_none(value_type: type[Any]) -> None:
    assert decode(value_type(unix_timestamp_val=NOT_A_TIME).SerializeToString(), "timestamp") is None


def test_an_empty_string_is_a_value(value_type: type[Any]) -> None:
    assert decode(value_type(string_val="").SerializeToString(), "string") == ""


@pytest.mark.parametrize(
    ("raw", "dtype"),
    [
        (b"\x20" + b"\xff" * 10 + b"\x01", "int64"),  # eleven bytes
        (b"\x20" + b"\xff" * 9 + b"\x02", "int64"),  # ten bytes, 65 bits
        (b"\x20\x80", "int64"),  # cut
        (b"\x20", "int64"),
        (b"\x20\x01\x00", "int64"),  # one byte more
        (b"\x18\xff\xff\xff\xff\x0f", "int32"),  # 2**32 - 1: protobuf would make -1 of it
        (b"\x38\x02", "bool"),
        (b"\x29" + b"\x00" * 7, "float64"),
        (b"\x29" + b"\x00" * 9, "float64"),
        (b"\x35" + b"\x00" * 3, "float32"),
        (b"\x12\x03ab", "string"),
        (b"\x12\x01ab", "string"),
        (b"\x12\x02\xc3\x28", "string"),
        (b"\x12\x03\xed\xa0\x80", "string"),  # a surrogate
        (b"\x12", "string"),
        (b"\x98\x01", "int64"),
        (b"\x00", "int64"),
    ],
)
def test_damaged_values_are_errors(raw: bytes, dtype: str) -> None:
    with pytest.raises(WireError):
        decode(raw, dtype)


def test_event_times_read_as_protobuf_reads_them(timestamp_type: type[Any]) -> None:
    @EXAMPLES
    @given(st.datetimes(min_value=datetime(1, 1, 2), max_value=datetime(9999, 12, 30)))  # noqa: DTZ001  (made aware below)
    def holds(at: datetime) -> None:
        timestamp = timestamp_type()
        timestamp.FromDatetime(at.replace(tzinfo=UTC))
        assert decode_event_time(timestamp.SerializeToString()) == timestamp.seconds + timestamp.nanos / 1e9

    holds()


def test_bytes_that_give_an_event_time_give_protobuf_the_same(timestamp_type: type[Any]) -> None:
    @settings(EXAMPLES, max_examples=2_000)
    @given(st.tuples(st.sampled_from([b"", b"\x08", b"\x10", b"\x08\x05\x10"]), st.binary(max_size=12)).map(b"".join))
    def holds(raw: bytes) -> None:
        try:
            ours = decode_event_time(raw)
        except WireError:
            return
        theirs = timestamp_type.FromString(raw)
        assert ours == theirs.seconds + theirs.nanos / 1e9

    holds()


@pytest.mark.parametrize("raw", [b"\x08", b"\x08\x80", b"\x10\x80\x94\xeb\xdc\x03", b"\x08\x01\x08\x01", b"junk"])
def test_damaged_event_times_are_errors(raw: bytes) -> None:
    """Cut; a second of 1,000,000,000 ns; said twice; anything."""
    with pytest.raises(WireError):
        decode_event_time(raw)


def same(ours: float | str | None, theirs: Any) -> bool:
    if isinstance(theirs, float) and math.isnan(theirs):
        return isinstance(ours, float) and math.isnan(ours)
    return ours == (theirs if isinstance(theirs, str) else float(theirs))
