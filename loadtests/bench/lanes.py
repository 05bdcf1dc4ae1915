"""What small requests feel of large ones."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from loadtests.bench.open_loop import OpenLoad
from loadtests.bench.plan import Plan, ratios
from loadtests.bench.report import Row, absolute
from loadtests.bench.targets import Target, bodies_of, gateway

LARGE = 1_000
RATE = 100.0
"""Requests/s for one entity: far below what any server here can do, so what they wait for is the large ones."""
LONGER = 3
"""Times the usual, because so few requests have few slowest ones."""


def mixed(plan: Plan) -> Iterator[Row]:
    """p99 of requests for one entity while one client asks for 1,000 at a time, over p99 without it; open loop."""
    small, large = bodies_of(plan.home, plan.home.customers), bodies_of(plan.home, plan.home.customers, LARGE)
    seconds = LONGER * plan.seconds
    with gateway(plan.home, plan.cores) as ours:
        pairs = list(
            plan.interleaved(
                partial(beside, ours, small, large, seconds), partial(ours.drive_open, small, RATE, seconds)
            )
        )
    details = {
        "with_p99_ms": [one.p99_ms for one, _ in pairs],
        "with_p50_ms": [one.p50_ms for one, _ in pairs],
        "without_p99_ms": [other.p99_ms for _, other in pairs],
        "without_p50_ms": [other.p50_ms for _, other in pairs],
    }
    yield Row(
        "mixed",
        f"p99 of requests for 1 at {RATE:g}/s, beside a client that asks for {LARGE:,}, against without",
        ratios([(one.p99_ms, other.p99_ms) for one, other in pairs]),
        "times",
        details=details,
        absolute=absolute(details["with_p99_ms"], details["without_p99_ms"], "ms"),
    )


def beside(target: Target, small: Path, large: Path, seconds: float) -> OpenLoad:
    with ThreadPoolExecutor(1) as pool:
        # Ends after the small ones do, so that all of them are beside it.
        flood = pool.submit(target.drive, large, 1, seconds + 1)
        load = target.drive_open(small, RATE, seconds)
        flood.result()
    return load
