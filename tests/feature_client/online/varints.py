"""Protobuf's varints, written plainly, for tests that make Feast's bytes by hand."""


def varint(number: int) -> bytes:
    """An unsigned number; negative ones are written as `number + 2**64`."""
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)
