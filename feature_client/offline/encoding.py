"""Columns of features as Redis arguments: the bytes that Feast stores, encoded a column at a time.

What is made here is what online/wire.py reads. A float column is one block of memory cut into equal pieces; of all
other columns each distinct value is encoded once.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from feature_client.online import wire

CRLF = b"\r\n"
MICROSECONDS = 1_000_000


def argument(raw: bytes) -> bytes:
    """One argument of a command, as RESP has it."""
    return b"$%d\r\n%b\r\n" % (len(raw), raw)


def features(name: bytes, dtype: str, column: pa.Array) -> list[bytes]:
    """Name and value of one feature, two arguments a row.

    dtype: as in the feature schema. column: the Arrow type of that name; timestamps are int64, microseconds since the
    epoch. Nulls and NaN become what Feast makes of them.
    """
    if dtype in FLOATS:
        return _floats(argument(name), dtype, column)
    encode = _VALUES[dtype]
    distinct = column.dictionary_encode()
    pairs = [argument(name) + argument(encode(value)) for value in distinct.dictionary.to_pylist()]
    pairs.append(argument(name) + argument(_NULLS.get(dtype, b"")))
    at: list[int] = distinct.indices.fill_null(len(pairs) - 1).to_numpy().tolist()
    return [pairs[index] for index in at]


def event_times(name: bytes, column: pa.Array) -> list[bytes]:
    """The same for the time of a view's row; column: microseconds since the epoch, int64."""
    return features(name, "event time", column)


def _floats(name: bytes, dtype: str, column: pa.Array) -> list[bytes]:
    tag, kind = FLOATS[dtype]
    numbers: npt.NDArray[Any] = column.to_numpy(zero_copy_only=False).astype(kind)  # nulls are NaN, as for Feast
    size = numbers.itemsize
    head = name + b"$%d\r\n" % (1 + size) + bytes([tag])
    rows = np.empty((len(numbers), len(head) + size + len(CRLF)), dtype=np.uint8)
    rows[:, : len(head)] = np.frombuffer(head, dtype=np.uint8)
    rows[:, len(head) : -len(CRLF)] = numbers.view(np.uint8).reshape(len(numbers), size)
    rows[:, -len(CRLF) :] = np.frombuffer(CRLF, dtype=np.uint8)
    # NumPy's bytes drop zeros at their end alone, where there is none.
    pairs: list[bytes] = rows.view(f"S{rows.shape[1]}").ravel().tolist()
    for row in np.flatnonzero(np.isnan(numbers)).tolist():
        pairs[row] = name + argument(b"")
    return pairs


def _varint(number: int) -> bytes:
    number &= (1 << 64) - 1  # a negative one is its 64 bits
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


def _integer(tag: int) -> Callable[[int], bytes]:
    head = bytes([tag])
    return lambda number: head + _varint(number)


def _string(text: str) -> bytes:
    raw = text.encode()
    return bytes([wire.STRING]) + _varint(len(raw)) + raw


def _timestamp(microseconds: int) -> bytes:
    return bytes([wire.UNIX_TIMESTAMP]) + _varint(microseconds // MICROSECONDS)


def _event_time(microseconds: int) -> bytes:
    """A protobuf Timestamp, which leaves out what is zero; its nanos count forwards also before 1970."""
    seconds, rest = divmod(microseconds, MICROSECONDS)
    return (b"\x08" + _varint(seconds) if seconds else b"") + (b"\x10" + _varint(rest * 1000) if rest else b"")


FLOATS = {"float64": (wire.DOUBLE, np.dtype("<f8")), "float32": (wire.FLOAT, np.dtype("<f4"))}

_VALUES: Mapping[str, Callable[[Any], bytes]] = {
    "string": _string,
    "int64": _integer(wire.INT64),
    "int32": _integer(wire.INT32),
    "bool": _integer(wire.BOOL),
    "timestamp": _timestamp,
    "event time": _event_time,
}

_NULLS = {"timestamp": bytes([wire.UNIX_TIMESTAMP]) + _varint(wire.NOT_A_TIME)}
"""What Feast stores in place of a null, where that is not the empty value."""
