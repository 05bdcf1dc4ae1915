"""The gateway on Triton, features and all, against ready-made rows that perf_analyzer sends to the same Triton."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from loadtests.bench.explainers import INPUTS
from loadtests.bench.load import Load
from loadtests.bench.perf_analyzer import WAYS, Asked, PerfAnalyzer, install, write_rows
from loadtests.bench.plan import Plan, in_turn, ratios
from loadtests.bench.report import Row, absolute
from loadtests.bench.targets import Cores, Cost, Target, bodies_of, gateway
from loadtests.bench.triton_server import Graph, Triton, golden_rows, installed, on, release, running

CLIENTS = (1, 16, 64)
MARKED = 64
MARK = 1.5
FREE = Cores(None, None)
NAME = "rapport on Triton"

Pairs = list[tuple[Cost, Load]]


@dataclass(frozen=True)
class Straight:
    """perf_analyzer on one graph of one Triton. core: what it is pinned to."""

    tool: PerfAnalyzer
    triton: Triton
    graph: Graph
    rows: Path
    core: int | None
    way: str

    def drive(self, in_flight: int, seconds: float) -> Load:
        asked = Asked(self.triton.address, self.graph.name, self.graph.version, self.rows)
        return self.tool.drive(asked, self.way, in_flight, seconds, self.core)


def triton(plan: Plan) -> Iterator[Row]:
    """Answers a second of both, one after the other in every round, from the same running Triton.

    Nobody is pinned: each load, with its generator and whatever else it needs (for the gateway that is the gateway
    and Redis), has the whole machine beside Triton. Then once more with the gateway, or perf_analyzer in its place, on
    one core and Triton on another, which wrk shares.
    """
    tool = install(installed())
    directory = release(plan.home)
    golden = golden_rows(directory)
    rows = write_rows(plan.home.scratch / "golden-rows.json", {name: golden[name] for name in INPUTS})
    with running(plan.home) as server, gateway(on(server, plan.home), FREE, name=NAME) as ours:
        graph = server.graph(directory.name, directory / "1/model.onnx")
        server.check(graph, golden)
        straight = fastest(plan, Straight(tool, server, graph, rows, None, ""))
        about = {"perf_analyzer": straight.way, "pinned": "nothing", "config": graph.config}
        for clients in CLIENTS:
            measured = pairs(plan, ours, straight, clients, 1 if clients == MARKED else 0.5)
            yield compared(f"triton_{clients}", "", measured, clients, about)
        unbatched = graph.varied({"dynamic_batching": None}, f"{graph.name}.unbatched")
        server.load(unbatched)
        server.check(unbatched, golden)
        yield compared(
            "triton_unbatched",
            " to the model without dynamic batching",
            pairs(plan, ours, replace(straight, graph=unbatched), MARKED),
            MARKED,
            {**about, "perf_analyzer_config": unbatched.config},
        )
    with (
        running(plan.home, plan.cores.client) as server,
        gateway(on(server, plan.home), plan.cores, name=NAME) as ours,
    ):
        straight = replace(straight, triton=server, core=plan.cores.server)
        pinned = {"gateway, perf_analyzer": plan.cores.server, "Triton, wrk": plan.cores.client}
        yield compared(
            "triton_pinned",
            ", each on one core and Triton on another",
            pairs(plan, ours, straight, MARKED),
            MARKED,
            {**about, "pinned": pinned},
        )


def fastest(plan: Plan, straight: Straight) -> Straight:
    """perf_analyzer can keep many in flight in two ways: the one that reaches more is what we are held against."""
    ways = [replace(straight, way=way) for way in WAYS]
    rounds = list(in_turn(min(plan.rounds, 2), [partial(one.drive, MARKED, plan.seconds / 2) for one in ways]))
    reached = [max(loads[at].requests_per_s for loads in rounds) for at in range(len(ways))]
    return ways[reached.index(max(reached))]


def pairs(plan: Plan, ours: Target, straight: Straight, clients: int, share: float = 0.5) -> Pairs:
    """share: of a load's time; what has no mark gets half."""
    bodies, seconds = bodies_of(plan.home, plan.home.customers), share * plan.seconds
    return list(
        plan.interleaved(partial(ours.drive, bodies, clients, seconds), partial(straight.drive, clients, seconds))
    )


def compared(name: str, how: str, measured: Pairs, clients: int, about: dict[str, Any]) -> Row:
    """how: added to what is said of perf_analyzer's load. Only the plain comparison has the mark."""
    rates = [(one.load.requests_per_s, other.requests_per_s) for one, other in measured]
    return Row(
        name,
        f"predict on Triton, {clients} client{'s' * (clients > 1)}, against perf_analyzer's ready rows{how}",
        ratios(rates),
        "times",
        mark=MARK if name == f"triton_{MARKED}" else None,
        at_least=True,
        details={
            **about,
            "requests_per_s": [round(one, 1) for one, _ in rates],
            "perf_analyzer_requests_per_s": [round(other, 1) for _, other in rates],
            "cpu_us": [round(one.cpu_us, 1) for one, _ in measured],
            "p50_ms": [one.load.p50_ms for one, _ in measured],
            "p99_ms": [one.load.p99_ms for one, _ in measured],
            "perf_analyzer_p50_ms": [other.p50_ms for _, other in measured],
            "perf_analyzer_p99_ms": [other.p99_ms for _, other in measured],
        },
        absolute=absolute([one for one, _ in rates], [other for _, other in rates], "requests/s"),
    )
