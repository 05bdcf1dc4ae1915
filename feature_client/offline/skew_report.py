"""What a check for skew found: for people as a table, for machines as one JSON object."""

import statistics
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import msgspec

from feature_client.clock import to_iso
from feature_client.schema import Override

EXAMPLES = 3


@dataclass(frozen=True)
class Difference:
    """A value in service, and what raw events make of it."""

    entity: str
    served: Override
    recomputed: Override

    @property
    def absolute(self) -> float | None:
        """None unless both are numbers."""
        if isinstance(self.served, float) and isinstance(self.recomputed, float):
            return abs(self.served - self.recomputed)
        return None

    @property
    def relative(self) -> float | None:
        """Of the recomputed number; None where it is zero, or there is none."""
        absolute = self.absolute
        if absolute is None or not isinstance(self.recomputed, float) or not self.recomputed:
            return None
        return absolute / abs(self.recomputed)


@dataclass
class Report:
    """compared: feature -> values compared. stale: feature -> values whose row is too old for it, used or not.

    behind: feature -> customers for whom it would be another one if it were computed at `as_of`. absent: customers of
    whom the store has no row, though there were events of them when it was filled. new: those of whom there were none.
    declaration: feature -> what is another in the release's contract than in the feature repository.
    allowed: features whose differences are known.
    """

    source: str
    allowed: Sequence[str] = ()
    versions: set[str] = field(default_factory=set)
    instants: set[datetime] = field(default_factory=set)
    customers: int = 0
    new: int = 0
    absent: list[str] = field(default_factory=list)
    compared: Counter[str] = field(default_factory=Counter)
    differences: dict[str, list[Difference]] = field(default_factory=lambda: defaultdict(list))
    stale: Counter[str] = field(default_factory=Counter)
    behind: Counter[str] = field(default_factory=Counter)
    declaration: dict[str, str] = field(default_factory=dict)

    @property
    def skewed(self) -> list[str]:
        """Features that differ in value, the most frequent first, or in declaration; without those allowed."""
        by_number = sorted(self.differences, key=lambda name: (-len(self.differences[name]), name))
        return [name for name in dict.fromkeys((*by_number, *self.declaration)) if name not in self.allowed]

    @property
    def is_clean(self) -> bool:
        return not self.skewed and not self.absent

    @property
    def verdict(self) -> str:
        """What is wrong, in words."""
        differ = [f"service and raw events differ in {', '.join(self.skewed)}"] if self.skewed else []
        absent = [f"{len(self.absent):,} customers are not in the store"] if self.absent else []
        return ", and ".join(differ + absent)

    @property
    def _between(self) -> list[str]:
        """The first and the last `as_of`."""
        return [to_iso(instant.timestamp()) for instant in sorted({min(self.instants), max(self.instants)})]

    def lines(self) -> Iterator[str]:
        yield f"{self.source}: release {', '.join(sorted(self.versions))}, as of {' to '.join(self._between)}"
        yield (
            f"{self.customers:,} customers, {self.compared.total():,} values compared: "
            f"{sum(map(len, self.differences.values())):,} differ, in {len(self.differences)} of "
            f"{len(self.compared)} features"
        )
        if self.differences:
            yield f"{'feature':<28}{'differ':>8}{'of':>8}{'max |d|':>12}{'median |d|':>12}{'max rel':>9}  such as"
        for name in sorted(self.differences, key=lambda name: (-len(self.differences[name]), name)):
            yield self._line(name)
        for name, what in self.declaration.items():
            yield f"{name}: {what}"
        if self.absent:
            yield f"not in the store, though known when it was filled: {_some(self.absent)}"
        if self.new:
            yield f"not in the store, and not known when it was filled: {self.new:,} customers"
        if self.stale:
            yield f"older than max_age: {_counts(self.stale)}"
        if self.behind:
            yield f"no skew, but behind (by now another value, for so many customers): {_counts(self.behind)}"

    def _line(self, name: str) -> str:
        found = self.differences[name]
        figures = _figures(found)
        numbers = "".join(
            f"{'' if figure is None else format(figure, form):>{width}}"
            for figure, form, width in (
                (figures["max_absolute"], ",.6g", 12),
                (figures["median_absolute"], ",.6g", 12),
                (figures["max_relative"], ".2%", 9),
            )
        )
        worst = _worst(found)[0]
        known = " (allowed)" if name in self.allowed else ""
        return (
            f"{name + known:<28}{len(found):>8,}{self.compared[name]:>8,}{numbers}  "
            f"{worst.entity}: {_said(worst.served)} in service, {_said(worst.recomputed)} recomputed"
        )

    def to_json(self) -> str:
        """On one line."""
        return msgspec.json.encode(self._facts()).decode()

    def _facts(self) -> dict[str, Any]:
        return {
            "ok": self.is_clean,
            "source": self.source,
            "versions": sorted(self.versions),
            "as_of": self._between,
            "customers": self.customers,
            "values": self.compared.total(),
            "skewed": self.skewed,
            "features": {
                name: {
                    "compared": self.compared[name],
                    "differ": len(found),
                    **_figures(found),
                    "examples": [
                        {"customer": one.entity, "served": one.served, "recomputed": one.recomputed}
                        for one in _worst(found)
                    ],
                }
                for name, found in self.differences.items()
            },
            "declaration": self.declaration,
            "allowed": list(self.allowed),
            "absent": len(self.absent),
            "new": self.new,
            "stale": dict(self.stale),
            "behind": dict(self.behind),
        }


def _figures(found: Sequence[Difference]) -> dict[str, float | None]:
    """Null where no two numbers are compared."""
    absolute = [one.absolute for one in found if one.absolute is not None]
    relative = [one.relative for one in found if one.relative is not None]
    return {
        "max_absolute": max(absolute, default=None),
        "median_absolute": statistics.median(absolute) if absolute else None,
        "max_relative": max(relative, default=None),
        "median_relative": statistics.median(relative) if relative else None,
    }


def _worst(found: Sequence[Difference]) -> Sequence[Difference]:
    """A few, the largest differences first; a number beside none is larger than any."""
    return sorted(found, key=lambda one: (one.absolute is not None, -(one.absolute or 0.0), one.entity))[:EXAMPLES]


def _said(value: Override) -> str:
    return "nothing" if value is None else f"{value:,.6g}" if isinstance(value, float) else value


def _some(customers: Sequence[str]) -> str:
    return f"{len(customers):,} customers, such as {', '.join(customers[:EXAMPLES])}"


def _counts(counter: Counter[str]) -> str:
    return ", ".join(f"{name} {number:,}" for name, number in counter.most_common())
