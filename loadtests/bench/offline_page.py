"""docs/performance-offline.md: what its rows mean, and the cost of every step by size."""

from collections.abc import Mapping, Sequence
from typing import Any

HEAD = """# Performance of the offline half

What `make bench ROWS=offline` measured on one machine; it rewrites this page. `SIZES=100000,1000000` are the numbers of
customers, one data set after the other. Each step is a command of its own: its time on the clock and on all cores
together, and the most memory that was resident at once (of the command, not of Redis). DuckDB gets 2 GB and spills into
the workspace beyond. Features are built at `as_of` for every customer, and at the cutoffs of training for 50,000 of
them, chosen by a hash of the id (`feature_client/offline/learners.py`): that part costs the same for any larger number.
Training takes those alone, so its time is compared as it is; it has to find them, and in Feast's join also passes over
the rows of all others. Events are generated ones, written in the order of customers. Files of one's own (`rapport
events load`) are sorted as a whole, for which the disk has to hold several times their size: not measured here.
"""


def by_size(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Lines of Markdown: every step with every number of customers; none where none was measured. rows: as JSON."""
    measured = {row["details"]["step"]: row["details"] for row in rows if "costs" in row["details"]}
    if not measured:
        return []
    lines = [
        "\n## By size\n",
        "| step | customers | time, s | processor time, s | processor time a customer, µs | peak memory, MiB |",
        "|---|---|---|---|---|---|",
    ]
    for step, details in measured.items():
        for customers, cost in zip(details["customers"], details["costs"], strict=True):
            each = cost["processor_s"] / customers * 1e6
            lines.append(
                f"| {step} | {customers:,} | {cost['seconds']:,.0f} | {cost['processor_s']:,.0f} | {each:,.0f} "
                f"| {cost['mib']:,.0f} |"
            )
    return lines
