"""Requests a second on one core, and what one client waits and costs, against the empty endpoint."""

from collections.abc import Iterator
from dataclasses import asdict
from functools import partial

from loadtests.bench.plan import Plan, ratios
from loadtests.bench.report import Row, absolute
from loadtests.bench.targets import bodies_of, empty, gateway

CLIENTS = (1, 16, 64)
MARKED = 64


def throughput(plan: Plan) -> Iterator[Row]:
    """Answers a second with 1, 16 and 64 clients, the gateway's over the empty endpoint's."""
    bodies = bodies_of(plan.home, plan.home.customers)
    with gateway(plan.home, plan.cores) as ours, empty(plan.home, plan.cores) as yardstick:
        for clients in CLIENTS:
            pairs = list(
                plan.interleaved(
                    partial(ours.drive, bodies, clients, plan.seconds),
                    partial(yardstick.drive, bodies, clients, plan.seconds),
                )
            )
            yield Row(
                f"throughput_{clients}",
                f"predict throughput, {clients} client{'s' * (clients > 1)}, against the empty endpoint",
                ratios([(one.load.requests_per_s, other.load.requests_per_s) for one, other in pairs]),
                "times",
                mark=2.0 if clients == MARKED else None,
                at_least=True,
                details={
                    "requests_per_s": [round(one.load.requests_per_s, 1) for one, _ in pairs],
                    "empty_requests_per_s": [round(other.load.requests_per_s, 1) for _, other in pairs],
                    "cpu_us": [one.cpu_us for one, _ in pairs],
                    "empty_cpu_us": [other.cpu_us for _, other in pairs],
                    "p50_ms": [one.load.p50_ms for one, _ in pairs],
                    "p99_ms": [one.load.p99_ms for one, _ in pairs],
                    "empty_p99_ms": [other.load.p99_ms for _, other in pairs],
                },
                absolute=absolute(
                    [one.load.requests_per_s for one, _ in pairs],
                    [other.load.requests_per_s for _, other in pairs],
                    "requests/s",
                ),
            )


def one_client(plan: Plan) -> Iterator[Row]:
    """Server CPU a request, and the median wait, of one client, the gateway's over the empty endpoint's."""
    bodies = bodies_of(plan.home, plan.home.customers)
    with gateway(plan.home, plan.cores) as ours, empty(plan.home, plan.cores) as yardstick:
        pairs = list(
            plan.interleaved(
                partial(ours.drive, bodies, 1, plan.seconds), partial(yardstick.drive, bodies, 1, plan.seconds)
            )
        )
    details = {"pairs": [{"rapport": asdict(one), "empty": asdict(other)} for one, other in pairs]}
    yield Row(
        "one_client_cpu",
        "server CPU a request, one client, against the empty endpoint",
        ratios([(one.cpu_us, other.cpu_us) for one, other in pairs]),
        "times",
        mark=1.5,
        details=details,
        absolute=absolute([one.cpu_us for one, _ in pairs], [other.cpu_us for _, other in pairs], "us"),
    )
    yield Row(
        "one_client_p50",
        "p50, one client, against the empty endpoint",
        ratios([(one.load.p50_ms, other.load.p50_ms) for one, other in pairs]),
        "times",
        mark=2.5,
        details=details,
        absolute=absolute([one.load.p50_ms for one, _ in pairs], [other.load.p50_ms for _, other in pairs], "ms"),
    )


def floor(plan: Plan) -> Iterator[Row]:
    """What uvicorn itself leaves room for: a bare ASGI application that does nothing, over the empty endpoint."""
    bodies = bodies_of(plan.home, plan.home.customers)
    with empty(plan.home, plan.cores, "bare") as bare, empty(plan.home, plan.cores) as yardstick:
        pairs = list(
            plan.interleaved(
                partial(bare.drive, bodies, MARKED, plan.seconds),
                partial(yardstick.drive, bodies, MARKED, plan.seconds),
            )
        )
    yield Row(
        "floor",
        f"throughput of bare ASGI that does nothing, {MARKED} clients, against the empty endpoint",
        ratios([(one.load.requests_per_s, other.load.requests_per_s) for one, other in pairs]),
        "times",
        details={"cpu_us": [one.cpu_us for one, _ in pairs], "empty_cpu_us": [other.cpu_us for _, other in pairs]},
        absolute=absolute([one.cpu_us for one, _ in pairs], [other.cpu_us for _, other in pairs], "us of CPU"),
    )
