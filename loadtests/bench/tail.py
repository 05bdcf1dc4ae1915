"""How much longer than the middle one the slowest of a hundred waits, at half of what the server can do."""

import statistics
from collections.abc import Iterator
from dataclasses import asdict
from functools import partial

from loadtests.bench.plan import Plan
from loadtests.bench.report import Row, absolute
from loadtests.bench.targets import Target, bodies_of, empty, gateway

CLIENTS = 64
SHARE = 0.5


def tail(plan: Plan) -> Iterator[Row]:
    """p99 / p50 of Poisson arrivals at half of the rate that 64 clients reach, latency from the instant due."""
    bodies = bodies_of(plan.home, plan.home.customers)

    def capacity(target: Target) -> float:
        loads = [target.drive(bodies, CLIENTS, plan.seconds).load for _ in range(min(plan.rounds, 3))]
        return statistics.median(load.requests_per_s for load in loads)

    with gateway(plan.home, plan.cores) as ours, empty(plan.home, plan.cores) as yardstick:
        rates = {target: SHARE * capacity(target) for target in (ours, yardstick)}
        pairs = list(
            plan.interleaved(
                *(partial(target.drive_open, bodies, rate, plan.seconds) for target, rate in rates.items())
            )
        )
    for position, (target, mark) in enumerate(((ours, 4.0), (yardstick, None))):
        loads = [pair[position] for pair in pairs]
        yield Row(
            f"tail_{target.name}",
            f"p99 / p50 at half of capacity, open loop, {target.name}",
            tuple(load.p99_ms / load.p50_ms for load in loads),
            "times",
            mark=mark,
            details={"rounds": [asdict(load) for load in loads]},
            absolute=f"{absolute([load.p99_ms for load in loads], [load.p50_ms for load in loads], 'ms')}; "
            f"{statistics.median(load.offered for load in loads):,.0f} offered, "
            f"{statistics.median(load.achieved for load in loads):,.0f} achieved requests/s",
        )
