"""What to set for a gateway on Triton: each setting beside the defaults, at the same time on the same machine."""

import statistics
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from loadtests.bench.plan import Plan, in_turn, ratios
from loadtests.bench.report import Row, absolute
from loadtests.bench.servers import ServerError
from loadtests.bench.targets import Cost, Target, bodies_of, gateway
from loadtests.bench.triton import FREE
from loadtests.bench.triton_server import Graph, Triton, golden_rows, on, release, running

CLIENTS = 64
INSTANCES = "triton_instances"


@dataclass(frozen=True)
class Setting:
    """model: fields of Triton's ModelConfig. gateway: RAPPORT_*, in small letters. Both beside the defaults."""

    what: str
    model: Mapping[str, Any] = field(default_factory=dict)
    gateway: Mapping[str, object] = field(default_factory=dict)

    @property
    def loaded(self) -> tuple[Mapping[str, Any], object]:
        """What decides how Triton runs the model: gateways of which this is equal can share one."""
        return self.model, self.gateway.get(INSTANCES)


def in_flight(batches: int) -> Mapping[str, object]:
    """Of a lane, from reading features to the answer; Triton's own limit must not be the lower one."""
    return {"batches_in_flight": batches, "triton_batches_in_flight": batches}


SETTINGS = (
    Setting("defaults"),
    Setting("1 batch in flight", gateway=in_flight(1)),
    Setting("4 batches in flight", gateway=in_flight(4)),
    Setting("8 batches in flight", gateway=in_flight(8)),
    Setting("2 instances, 4 batches in flight", gateway={**in_flight(4), INSTANCES: 2}),
    Setting("2 threads", {"parameters": {"intra_op_thread_count": {"string_value": "2"}}}),
    Setting("no dynamic batching", {"dynamic_batching": None}),
)


def triton_settings(plan: Plan) -> Iterator[Row]:
    """Throughput and p99 at 64 clients of a gateway each, on a Triton for each model config; nobody is pinned."""
    with ExitStack() as stack:
        targets = [target for _, target in started(plan, stack)]
        bodies = bodies_of(plan.home, plan.home.customers)
        # Many are compared: each gets half of the usual time a round.
        drives = [partial(target.drive, bodies, CLIENTS, plan.seconds / 2) for target in targets]
        rounds = list(in_turn(plan.rounds, drives))
    for at, setting in enumerate(SETTINGS):
        yield compared(setting, at, [(costs[at], costs[0]) for costs in rounds])


def started(plan: Plan, stack: ExitStack) -> Iterator[tuple[Setting, Target]]:
    """Raises ServerError where a gateway runs another model config than it should."""
    directory = release(plan.home)
    file, golden = directory / "1/model.onnx", golden_rows(directory)
    servers: list[tuple[Setting, Triton]] = []
    shipped: Graph | None = None
    for setting in SETTINGS:
        server = next((server for first, server in servers if first.loaded == setting.loaded), None)
        sent: Graph | None = None
        if server is None:
            server = stack.enter_context(running(plan.home))
            servers.append((setting, server))
            if shipped is not None and setting.model:
                # Sent under the name and version of the gateway's own, which then finds it loaded and proves it.
                server.load(varied(shipped, setting.model))
                sent = server.graph(directory.name, file)
                server.check(sent, golden)
        name = f"rapport on Triton, {setting.what}"
        target = stack.enter_context(gateway(on(server, plan.home, **setting.gateway), FREE, name=name))
        found = server.graph(directory.name, file)
        if sent is not None and found != sent:
            raise ServerError(f"{name}: the gateway loaded the model with its own config in place of this one")
        shipped = shipped or found
        yield setting, target


def varied(graph: Graph, changes: Mapping[str, Any]) -> Graph:
    """Parameters are added to, everything else is replaced."""
    changes = dict(changes)
    if "parameters" in changes:
        changes["parameters"] = {**graph.config.get("parameters", {}), **changes["parameters"]}
    return graph.varied(changes)


def compared(setting: Setting, at: int, measured: Sequence[tuple[Cost, Cost]]) -> Row:
    """The defaults are in the table, too, for their own figures."""
    rates = [(one.load.requests_per_s, other.load.requests_per_s) for one, other in measured]
    p99_ms = [one.load.p99_ms for one, _ in measured]
    return Row(
        f"triton_settings_{at}",
        f"predict on Triton, {CLIENTS} clients, {setting.what}, against the defaults",
        ratios(rates),
        "times",
        details={
            "gateway": setting.gateway,
            "model": setting.model,
            "requests_per_s": [round(one, 1) for one, _ in rates],
            "cpu_us": [round(one.cpu_us, 1) for one, _ in measured],
            "p50_ms": [one.load.p50_ms for one, _ in measured],
            "p99_ms": p99_ms,
        },
        absolute=absolute([one for one, _ in rates], [other for _, other in rates], "requests/s")
        + f"; p99 {statistics.median(p99_ms):.3g} ms",
    )
