"""The decoder of compat mode against Feast's own: the same value, or an error where Feast has one; nothing else."""

import logging
import random
import struct
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from feature_client.errors import RapportError
from feature_client.offline.comparison import Mismatch, canonical, require_same
from feature_client.online import value, value_message, wire
from feature_client.online.wire import WireError
from tests.feature_client.online.shop import VALUE_MEMBERS
from tests.feature_client.online.values import GOLDEN, random_member, random_value, spoiled

if TYPE_CHECKING:
    from feast import FeatureStore

INPUTS = 100_000
DECLARED = {"uuid": "UUID", "uuid_list": "UUID_LIST", "uuid_set": "UUID_SET"}


@pytest.fixture(scope="module")
def value_type(feast_store: "FeatureStore") -> type[Any]:
    """feast.types.Value; the store is asked for so that Feast is imported once, in one place."""
    from feast.protos.feast.types.Value_pb2 import Value  # noqa: PLC0415

    return Value


@pytest.fixture(scope="module")
def theirs(value_type: type[Any]) -> Iterator[Callable[..., Any]]:
    """What Feast shows of serialized Values. Its warnings about zones that it does not know are not ours to read."""
    from feast.type_map import feast_value_type_to_python_type  # noqa: PLC0415
    from feast.value_type import ValueType  # noqa: PLC0415

    def show(raw: bytes, declared: str | None = None) -> Any:
        message = value_type()
        message.ParseFromString(raw)
        return feast_value_type_to_python_type(message, ValueType[DECLARED[declared]] if declared else None)

    logging.getLogger("feast.type_map").setLevel(logging.ERROR)
    yield show
    logging.getLogger("feast.type_map").setLevel(logging.NOTSET)


@pytest.fixture(scope="module")
def corpus(value_type: type[Any]) -> list[bytes]:
    """Values that Feast wrote, of every member."""
    draw = random.Random(3)
    return [value_type(**random_value(draw)).SerializeToString() for _ in range(4_000)]


def require_same_reading(
    theirs: Callable[..., Any], inputs: Iterable[bytes], declared: str | None = None
) -> Counter[str]:
    """Counts what came of the inputs. Raises Mismatch; an exception of ours but WireError is a crash, and comes out."""
    outcomes: Counter[str] = Counter()
    for raw in inputs:
        try:
            expected = [theirs(raw, declared)]
        except Exception:  # noqa: BLE001  (protobuf's, uuid's, decimal's, datetime's: Feast lets them all through)
            expected = []
        try:
            got = [value.decode(raw, declared)]
        except WireError:
            got = []
        require_same({raw.hex(): expected}, {raw.hex(): got})
        outcomes["values" if expected else "errors"] += 1
    return outcomes


def spoilt(corpus: list[bytes], seed: int, count: int) -> Iterator[bytes]:
    draw = random.Random(seed)
    for _ in range(count):
        raw = draw.choice(corpus)
        yield raw if draw.random() < 0.2 else spoiled(draw, raw, draw.choice(corpus))


@pytest.mark.parametrize("member", GOLDEN)
def test_golden_bytes(member: str, value_type: type[Any], theirs: Callable[..., Any]) -> None:
    made_of, golden = GOLDEN[member]
    raw = bytes.fromhex(golden)

    assert value_type(**{member: made_of}).SerializeToString() == raw
    assert canonical(value.decode(raw)) == canonical(theirs(raw))


def test_golden_bytes_cover_every_member(value_type: type[Any]) -> None:
    assert set(GOLDEN) == {field.name for field in value_type.DESCRIPTOR.fields}


@pytest.mark.parametrize(
    ("member", "shown"),
    [
        ("int32_val", -5),
        ("float_val", 0.10000000149011612),
        ("null_val", 0),
        ("unix_timestamp_list_val", [datetime(1970, 1, 1, tzinfo=UTC), None]),
        ("json_list_val", [1, "{"]),
        ("map_val", {"a": 1}),
        ("string_set_val", {"a"}),
        ("scalar_map_val", {7: "a"}),
    ],
)
def test_what_is_shown_is_known_without_feast(member: str, shown: Any) -> None:
    assert canonical(value.decode(bytes.fromhex(GOLDEN[member][1]))) == canonical(shown)


def test_our_messages_are_feasts_but_for_their_names(value_type: type[Any]) -> None:
    """Drift of a later Feast shows here first."""

    def described(descriptor: Any, seen: dict[str, Any]) -> Any:
        # Sets have messages of their own at Feast's; what they hold is what counts.
        if descriptor.name.replace("Set", "List") in seen:
            return descriptor.name.replace("Set", "List")
        seen[descriptor.name.replace("Set", "List")] = fields = {}
        for field in descriptor.fields:
            of = described(field.message_type, seen) if field.message_type else field.type
            oneof = field.containing_oneof.name if field.containing_oneof else None
            fields[field.number] = (field.name, of, field.is_repeated, oneof)
        return descriptor.name.replace("Set", "List")

    theirs: dict[str, Any] = {}
    ours: dict[str, Any] = {}
    described(value_type.DESCRIPTOR, theirs)
    described(value_message.value_class().DESCRIPTOR, ours)

    assert ours == theirs
    assert len(ours) > 10


@pytest.mark.parametrize("declared", [None, *DECLARED])
def test_every_member_reads_as_feast_reads_it(
    declared: str | None, theirs: Callable[..., Any], corpus: list[bytes]
) -> None:
    outcomes = require_same_reading(theirs, corpus, declared)

    assert outcomes["values"] > 2_500


def test_fuzzed_bytes_read_as_feast_reads_them(theirs: Callable[..., Any], corpus: list[bytes]) -> None:
    outcomes = require_same_reading(theirs, spoilt(corpus, 11, INPUTS))

    # Neither all rubbish nor all well.
    assert min(outcomes["values"], outcomes["errors"]) > INPUTS / 4
    assert outcomes.total() == INPUTS


def test_bytes_that_hypothesis_makes_up_read_as_feast_reads_them(
    theirs: Callable[..., Any], corpus: list[bytes]
) -> None:
    @settings(max_examples=2_000, deadline=None, database=None)
    @given(st.one_of(st.binary(max_size=24), st.tuples(st.sampled_from(corpus), st.binary(max_size=6)).map(b"".join)))
    def holds(raw: bytes) -> None:
        require_same_reading(theirs, [raw])

    holds()


def require_strict(value_type: type[Any], inputs: Iterable[bytes]) -> int:
    """Counts the values that the strict decoder gives. Raises Mismatch where protobuf does not give the same."""
    values = 0
    for raw in inputs:
        for dtype, member in VALUE_MEMBERS.items():
            try:
                ours = wire.decode(raw, dtype)
            except WireError:
                continue
            values += 1
            try:
                message = value_type.FromString(raw)
            except Exception as exc:
                raise Mismatch(f"protobuf reads no value in {raw.hex()}, we read {ours!r}") from exc
            found = message.WhichOneof("val")
            theirs = (
                getattr(message, found) if found == member and message.unix_timestamp_val != wire.NOT_A_TIME else None
            )
            expected = float(theirs) if theirs is not None and dtype != "string" else theirs
            require_same({found: [expected]}, {found if ours is None else member: [ours]})
    return values


@pytest.fixture(scope="module")
def scalars(value_type: type[Any]) -> list[bytes]:
    draw = random.Random(5)
    members = [member for member in VALUE_MEMBERS.values() for _ in range(100)]
    return [value_type(**{member: random_member(draw, member)}).SerializeToString() for member in members]


def test_the_strict_decoder_gives_protobufs_value_or_refuses(
    value_type: type[Any], corpus: list[bytes], scalars: list[bytes]
) -> None:
    values = require_strict(value_type, (*spoilt(scalars, 6, INPUTS - 20_000), *spoilt(corpus, 7, 20_000)))

    assert values > INPUTS / 4


strict_decode = wire.decode

STRICT_BUGS: dict[str, Callable[[bytes, str], Any]] = {
    "int32 without its range": lambda raw, dtype: (
        strict_decode(b"\x20" + raw[1:], "int64")
        if (raw[:1], dtype) == (b"\x18", "int32")
        else strict_decode(raw, dtype)
    ),
    "bytes left over": lambda raw, dtype: strict_decode(raw[:9] if dtype == "float64" else raw, dtype),
    "swapped types": lambda raw, dtype: strict_decode(raw, "int64" if dtype == "timestamp" else dtype),
    "a null for what cannot be read": lambda raw, dtype: strict_decode(raw if raw[:1] != b"\x0a" else b"", dtype),
    "signs of zero lost": lambda raw, dtype: strict_decode(raw, dtype) or None,
}


@pytest.mark.parametrize("bug", STRICT_BUGS)
def test_a_bug_planted_in_the_strict_decoder_is_found(
    bug: str, value_type: type[Any], corpus: list[bytes], scalars: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wire, "decode", STRICT_BUGS[bug])

    with pytest.raises(Mismatch):
        require_strict(value_type, (*spoilt(scalars, 6, INPUTS - 20_000), *spoilt(corpus, 7, 20_000)))


def _unbounded_varint(raw: bytes, at: int) -> tuple[int, int]:
    number, shift = 0, 0
    while True:
        if at >= len(raw):
            raise WireError
        byte = raw[at]
        number |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return number, at


def _behind_without_end(raw: bytes, tag: bytes) -> bytes:
    if not raw.startswith(tag):
        raise value.Unusual
    length, at = wire.varint(raw, len(tag))
    return raw[at : at + length]


BUGS: dict[str, tuple[dict[int, Callable[[bytes], Any]], dict[str, Any]]] = {
    "int32 without its range": ({0x18: value._varint_of(value._int64)}, {}),
    "swapped types": ({0x29: value._fixed("q")}, {}),
    "big endian": ({0x35: lambda raw: struct.unpack(">f", raw[1:5].ljust(4))[0]}, {}),
    "bytes as text": ({0x0A: value._sized(b"\x0a", value._text)}, {}),
    "a bool of any number": ({0x38: value._varint_of(lambda number: number == 1)}, {}),
    "a number in place of a time": ({0x40: value._varint_of(value._int64)}, {}),
    "a tag of one byte where it has two": ({0x82: lambda raw: value._packed(raw[:2], value._floats("f", 4))(raw)}, {}),
    "a list without its last": ({0x7A: lambda raw: value._packed(b"\x7a", value._floats("d", 8))(raw)[:-1]}, {}),
    "elements of text unchecked": ({0x62: value._repeated(b"\x62", lambda raw: raw.decode(errors="replace"))}, {}),
    "a null that is None": ({0x98: lambda raw: None}, {}),
    "unsigned numbers": ({}, {"signed": lambda number: number}),
    "a varint without bounds": ({}, {"varint": _unbounded_varint}),
    "bytes left over": ({}, {"_behind": _behind_without_end}),
    "text unchecked": ({0x12: lambda raw: value._behind(raw, b"\x12").decode(errors="ignore")}, {}),
}
"""What is planted -> entries of the decoder's table, and names of its module."""

MESSAGE_BUGS: dict[str, Callable[[Any], Any]] = {
    "uuid_val": str,
    "decimal_val": float,
    "decimal_set_val": lambda message: [Decimal(item) for item in message.val],
    "json_val": str,
    "int64_set_val": lambda message: list(message.val),
    "map_val": lambda message: dict.fromkeys(message.val),
    "struct_list_val": lambda message: [value_message._map(item) for item in message.val][::-1],
    "scalar_map_val": lambda message: {str(value_message._key(entry.key)): None for entry in message.val},
    "zoned_timestamp_val": lambda zoned: value_message.time_of(zoned.unix_timestamp),
    "list_val": lambda message: [value_message._python(item) or [] for item in message.val],
}


@pytest.mark.parametrize("bug", BUGS)
def test_a_planted_bug_is_found(
    bug: str, theirs: Callable[..., Any], corpus: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Controls: what the fuzz above is worth."""
    table, names = BUGS[bug]
    monkeypatch.setattr(value, "BY_FIRST_BYTE", {**value.BY_FIRST_BYTE, **table})
    for name, planted in names.items():
        monkeypatch.setattr(value, name, planted)

    with pytest.raises(Mismatch):
        require_same_reading(theirs, spoilt(corpus, 11, INPUTS))


@pytest.mark.parametrize("member", MESSAGE_BUGS)
def test_a_planted_bug_behind_protobuf_is_found(
    member: str, theirs: Callable[..., Any], corpus: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(value_message, "PYTHON", {**value_message.PYTHON, member: MESSAGE_BUGS[member]})

    with pytest.raises(Mismatch):
        require_same_reading(theirs, corpus)


def test_event_times_are_rounded_as_feast_rounds_them(feast_store: "FeatureStore") -> None:
    from google.protobuf.timestamp_pb2 import Timestamp  # type: ignore[import-untyped]  # noqa: PLC0415

    draw = random.Random(2)
    for _ in range(5_000):
        seconds = draw.choice([0, 1, -1, 1_780_315_200, 253_402_300_798, draw.randrange(1 << 33)])
        stored = Timestamp(seconds=seconds, nanos=draw.choice([0, 1, 500, 999_999_499, 999_999_999, 999_999_600]))
        theirs = Timestamp()
        theirs.FromDatetime(datetime.fromtimestamp(stored.seconds + stored.nanos / 1_000_000_000.0, tz=UTC))
        assert value.decode_event_time(stored.SerializeToString()) == theirs.seconds


@pytest.mark.parametrize("raw", [b"\x08", b"\x08\x80", b"junk", b"\x08" + b"\xff" * 8 + b"\x7f"])
def test_a_damaged_event_time_is_an_error(raw: bytes) -> None:
    with pytest.raises(WireError):
        value.decode_event_time(raw)


def test_common_values_need_no_protobuf_and_others_name_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    value_message.value_class.cache_clear()
    for module in ("google.protobuf", "google"):
        monkeypatch.setitem(sys.modules, module, None)

    assert value.decode(b"\x20\x07") == 7
    assert value.decode(bytes.fromhex(GOLDEN["float_list_val"][1])) == [0.10000000149011612]
    with pytest.raises(RapportError, match=r"pip install 'rapport\[compat\]'"):
        value.decode(bytes.fromhex(GOLDEN["map_val"][1]))


BOTH = """
from feature_client.online import value
shown = value.decode(bytes.fromhex("a201020a00"))
from feast.protos.feast.types.Value_pb2 import Value
from google.protobuf import descriptor_pool
assert shown == {"": None} == value.decode(Value(map_val={"val": {"": {}}}).SerializeToString())
assert Value.DESCRIPTOR.file.pool is descriptor_pool.Default()
"""


def test_our_messages_do_not_meet_feasts_when_they_come_first() -> None:
    process = subprocess.run([sys.executable, "-c", BOTH], capture_output=True, text=True, check=False)

    assert process.returncode == 0, process.stderr


def test_our_messages_do_not_meet_feasts_when_those_come_first(value_type: type[Any]) -> None:
    value_message.value_class.cache_clear()
    ours = value_message.value_class()

    assert value.decode(value_type(map_val={"val": {"a": {"int64_val": 1}}}).SerializeToString()) == {"a": 1}
    assert ours.DESCRIPTOR.file.pool is not value_type.DESCRIPTOR.file.pool
    assert ours.DESCRIPTOR.full_name != value_type.DESCRIPTOR.full_name
