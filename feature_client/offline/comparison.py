"""Whether two answers of an online store are the same: type, value, sign of zero, zone of a time; NaN equals NaN."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from feature_client.errors import RapportError

SHOWN = 80
"""Characters of a value in a message."""


class Mismatch(RapportError):
    """Two readers of one store answered differently."""


@dataclass(frozen=True)
class Difference:
    """feature: the column. row: of the request."""

    feature: str
    row: int
    theirs: str
    ours: str

    def __str__(self) -> str:
        return f"{self.feature}, row {self.row}: Feast says {self.theirs[:SHOWN]}, we say {self.ours[:SHOWN]}"


def canonical(value: Any) -> str:
    """Equal texts for equal values and for nothing else: 1 is not 1.0 is not True, 0.0 is not -0.0."""
    if isinstance(value, dict):
        pairs = sorted(f"{canonical(key)}: {canonical(item)}" for key, item in value.items())
        return "{" + ", ".join(pairs) + "}"
    if isinstance(value, set):
        return "set(" + ", ".join(sorted(canonical(item) for item in value)) + ")"
    if isinstance(value, list):
        return "[" + ", ".join(canonical(item) for item in value) + "]"
    return repr(value)


def differences(theirs: Mapping[str, Sequence[Any]], ours: Mapping[str, Sequence[Any]]) -> list[Difference]:
    """Of two answers, column -> one value a row. A column or row that one of them lacks is a difference, too."""
    found = []
    for name in sorted({*theirs, *ours}):
        left, right = theirs.get(name), ours.get(name)
        if left is None or right is None or len(left) != len(right):
            found.append(Difference(name, -1, _length(left), _length(right)))
            continue
        for row, (one, other) in enumerate(zip(left, right, strict=True)):
            if (expected := canonical(one)) != (got := canonical(other)):
                found.append(Difference(name, row, expected, got))
    return found


def require_same(theirs: Mapping[str, Sequence[Any]], ours: Mapping[str, Sequence[Any]]) -> None:
    """Raises Mismatch, with the first difference in words."""
    if found := differences(theirs, ours):
        raise Mismatch(f"{len(found)} of the values differ, first {found[0]}")


def _length(column: Sequence[Any] | None) -> str:
    return "no such column" if column is None else f"{len(column)} rows"
