"""The metadata of an ONNX model, read from its bytes: a gateway that runs no models has no runtime to ask.

An ONNX file is one protobuf message; its metadata are its fields 14, each a message of key (1) and value (2).
"""

from collections.abc import Iterator

METADATA, KEY, VALUE = 14, 1, 2
VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
FIXED = {FIXED64: 8, FIXED32: 4}


def metadata_of(model: bytes) -> dict[str, str]:
    """Raises ValueError where this is no protobuf message."""
    entries = (dict(_fields(entry)) for number, entry in _fields(memoryview(model)) if number == METADATA)
    return {_text(entry.get(KEY)): _text(entry.get(VALUE)) for entry in entries}


def _fields(message: memoryview) -> Iterator[tuple[int, memoryview]]:
    """Number and content of every field that holds bytes; the others are skipped."""
    at = 0
    while at < len(message):
        tag, at = _varint(message, at)
        kind = tag & 7
        if kind == VARINT:
            _, at = _varint(message, at)
            continue
        size, at = _varint(message, at) if kind == BYTES else (FIXED.get(kind), at)
        if size is None or at + size > len(message):
            raise ValueError(f"the field at byte {at} does not fit")
        if kind == BYTES:
            yield tag >> 3, message[at : at + size]
        at += size


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    """The number that begins there, and where it ends."""
    number = 0
    for shift in range(0, 70, 7):
        if at >= len(message):
            break
        byte = message[at]
        at += 1
        number |= (byte & 0x7F) << shift
        if byte < 0x80:
            return number, at
    raise ValueError(f"no number ends at byte {at}")


def _text(value: memoryview | None) -> str:
    return "" if value is None else str(value, "utf-8", "replace")
