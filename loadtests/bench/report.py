"""What was measured, as a table, as JSON and as pages of docs/."""

import os
import platform
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

from redis import Redis

from loadtests.bench.machine import commit, described
from loadtests.bench.offline_page import HEAD as HEAD_OFFLINE
from loadtests.bench.offline_page import by_size
from loadtests.bench.triton_page import HEAD as HEAD_TRITON
from loadtests.bench.triton_page import is_triton, recommended
from loadtests.peers.page import section

HEAD = """# Performance

What `make bench` measured on one machine; it rewrites this page. Every ratio is between two things measured side by
side in one run: the figure is the median of the rounds, and the spread between rounds is what the machine adds. The
gateway runs as it does in production, one worker on one core, with an API key, validation, deadlines, freshness,
metrics and its log line for every request; its load comes from another core, and Redis may use both. What the rows
mean and where the marks come from is in `loadtests/bench`. What it takes to get there, from events to a trained model,
is on [a page of its own](performance-offline.md).
"""

OFFLINE = "offline"
BELOW: Mapping[str, Callable[[Sequence[Mapping[str, Any]]], list[str]]] = {
    "performance.md": section,
    "performance-offline.md": by_size,
    "performance-triton.md": recommended,
}
"""Page -> what stands below its table."""

HEADS = {"performance.md": HEAD, "performance-offline.md": HEAD_OFFLINE, "performance-triton.md": HEAD_TRITON}


@dataclass(frozen=True)
class Row:
    """One figure: the median of `values`, one a round. mark: what it should be at most (or at least); None: only told.

    details: what the figure was computed from, for the JSON. absolute: the gist of that, for people.
    """

    name: str
    what: str
    values: Sequence[float]
    unit: str
    mark: float | None = None
    at_least: bool = False
    details: Mapping[str, Any] = field(default_factory=dict)
    absolute: str = ""

    @property
    def figure(self) -> float:
        return statistics.median(self.values)

    @property
    def met(self) -> bool | None:
        if self.mark is None:
            return None
        # Written so that NaN is never met.
        return self.figure >= self.mark if self.at_least else self.figure <= self.mark

    def as_json(self) -> dict[str, Any]:
        return asdict(self) | {"figure": self.figure, "met": self.met}


def absolute(values: Iterable[float], others: Iterable[float], unit: str) -> str:
    """Medians of both sides of a ratio."""
    return f"{_short(statistics.median(values))} against {_short(statistics.median(others))} {unit}"


def line(row: Row) -> str:
    """One line of the table."""
    low, high = min(row.values), max(row.values)
    mark = "" if row.mark is None else f"{'at least' if row.at_least else 'at most'} {row.mark:g}"
    verdict = {None: "", True: "met", False: "NOT MET"}[row.met]
    told = f"{row.what:<84} {row.figure:9.2f} {row.unit:<6} {low:9.2f} ..{high:9.2f}  {mark:<13} {verdict:<8}"
    return f"{told} {row.absolute}".rstrip()


def circumstances(redis_address: str) -> dict[str, Any]:
    """Where, when and on what was measured."""
    host, _, port = redis_address.rpartition(":")
    with Redis(host, int(port)) as redis:
        redis_version = redis.info("server")["redis_version"]
    libraries = ("uvicorn", "fastapi", "onnxruntime", "feast", "numpy")
    return {
        "machine": described(),
        "cores": os.cpu_count(),
        "commit": commit(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": {
            "python": platform.python_version(),
            "redis": redis_version,
            **{library: version(library) for library in libraries},
        },
    }


def pages(result: Mapping[str, Any]) -> dict[str, str]:
    """File -> its text, for the pages of docs/ whose rows were asked for."""
    asked = {_page_of(name) for name in result["rows"]}
    return {page: _page(page, result) for page in HEADS if page in asked}


def _page_of(group: str) -> str:
    if group == OFFLINE:
        return "performance-offline.md"
    return "performance-triton.md" if is_triton(group) else "performance.md"


def _page(page: str, result: Mapping[str, Any]) -> str:
    versions = ", ".join(f"{name} {number}" for name, number in result["versions"].items())
    rows = [row for row in result["results"] if _page_of(row["group"]) == page]
    lines = [
        HEADS[page],
        f"Machine: {result['machine']}. Commit {result['commit']}, {result['date']}.",
        f"{_rounds(page, result)}{versions}.\n",
        *table([row for row in rows if not row["group"].startswith("peer_")]),
        *BELOW[page](rows),
    ]
    failed = {name: reason for name, reason in result["failed"].items() if _page_of(name) == page}
    # A reason may be the last words of some program, of many lines.
    lines += [f"\nNot measured: {name} ({' '.join(reason.split())})." for name, reason in failed.items()]
    return "\n".join(lines) + "\n"


def _rounds(page: str, result: Mapping[str, Any]) -> str:
    """The steps of the offline half are run once."""
    return "" if page == "performance-offline.md" else f"{result['rounds']} rounds of {result['seconds']:g} s. "


def table(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Lines of Markdown. rows: as JSON."""
    lines = [
        "| what | figure | lowest to highest round | mark | | in absolute terms | command |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        low, high = min(row["values"]), max(row["values"])
        mark = "" if row["mark"] is None else f"{'at least' if row['at_least'] else 'at most'} {row['mark']:g}"
        verdict = {None: "", True: "met", False: "**not met**"}[row["met"]]
        lines.append(
            f"| {row['what']} | {row['figure']:.2f} {row['unit']} | {low:.2f} to {high:.2f} | {mark} | {verdict} "
            f"| {row['absolute']} | `make bench ROWS={row['group']}` |"
        )
    return lines


def _short(number: float) -> str:
    """Three digits that say something: 12,345 but 1.23."""
    return f"{number:,.0f}" if number >= 100 else f"{number:.3g}"
