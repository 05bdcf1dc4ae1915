"""What to set for a gateway on Triton: each setting beside the defaults."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from loadtests.bench.plan import Plan, ratios
from loadtests.bench.report import Row, absolute
from loadtests.bench.servers import ServerError
from loadtests.bench.targets import Cost, Target, bodies_of, gateway
from loadtests.bench.triton import FREE, NAME
from loadtests.bench.triton_server import Graph, Triton, golden_rows, on, release, running

CLIENTS = 64
INSTANCES = "triton_instances"


@dataclass(frozen=True)
class Setting:
    """gateway: RAPPORT_*, in small letters. model: fields of Triton's ModelConfig. Both beside the defaults."""

    what: str
    gateway: Mapping[str, object] = field(default_factory=dict)
    model: Mapping[str, Any] = field(default_factory=dict)


def in_flight(batches: int) -> Mapping[str, object]:
    """Of a lane, from reading features to the answer; Triton's own limit must not be the lower one."""
    return {"batches_in_flight": batches, "triton_batches_in_flight": batches}


SETTINGS = (
    Setting("1 batch in flight", in_flight(1)),
    # The defaults, as long as they are that: how far two of the same are apart (triton_page.py).
    Setting("2 batches in flight", in_flight(2)),
    Setting("4 batches in flight", in_flight(4)),
    Setting("8 batches in flight", in_flight(8)),
    Setting("2 instances, 4 batches in flight", {**in_flight(4), INSTANCES: 2}),
    Setting("2 threads", model={"parameters": {"intra_op_thread_count": {"string_value": "2"}}}),
    Setting("no dynamic batching", model={"dynamic_batching": None}),
)


def triton_settings(plan: Plan) -> Iterator[Row]:
    """Throughput and p99 at 64 clients, one pair a round, nobody pinned. What a gateway sends to Triton otherwise than
    by default gets a Triton of its own; the rest shares one."""
    directory = release(plan.home)
    bodies = bodies_of(plan.home, plan.home.customers)
    with running(plan.home) as server, gateway(on(server, plan.home), FREE, name=NAME) as defaults:
        shipped = server.graph(directory.name, directory / "1/model.onnx")
        for at, setting in enumerate(SETTINGS):
            # One after the other: gateways that nobody asks prove their graphs once a second, which costs others CPU.
            with changed(plan, setting, server, shipped) as target:
                # Many are compared: each gets half of the usual time.
                drives = [partial(one.drive, bodies, CLIENTS, plan.seconds / 2) for one in (target, defaults)]
                pairs = list(plan.interleaved(*drives))
            yield compared(f"triton_settings_{at + 1}", setting, pairs)


@contextmanager
def changed(plan: Plan, setting: Setting, server: Triton, shipped: Graph) -> Iterator[Target]:
    """server: that of the defaults. Raises ServerError where the gateway runs another model config than it should."""
    directory = release(plan.home)
    file, sent = directory / "1/model.onnx", None
    name = f"{NAME}, {setting.what}"
    alone = setting.model or INSTANCES in setting.gateway
    with running(plan.home) if alone else nullcontext(server) as triton:
        if setting.model:
            # Under the name and version of the gateway's own, which then finds it loaded and proves it.
            triton.load(varied(shipped, setting.model))
            sent = triton.graph(directory.name, file)
            triton.check(sent, golden_rows(directory))
        with gateway(on(triton, plan.home, **setting.gateway), FREE, name=name) as target:
            if sent is not None and triton.graph(directory.name, file) != sent:
                raise ServerError(f"{name}: the gateway loaded the model with its own config in place of this one")
            yield target


def varied(graph: Graph, changes: Mapping[str, Any]) -> Graph:
    """Parameters are added to, everything else is replaced."""
    changes = dict(changes)
    if "parameters" in changes:
        changes["parameters"] = {**graph.config.get("parameters", {}), **changes["parameters"]}
    return graph.varied(changes)


def compared(name: str, setting: Setting, measured: Sequence[tuple[Cost, Cost]]) -> Row:
    rates = [(one.load.requests_per_s, other.load.requests_per_s) for one, other in measured]
    p99_ms = [(one.load.p99_ms, other.load.p99_ms) for one, other in measured]
    return Row(
        name,
        f"predict on Triton, {CLIENTS} clients, {setting.what}, against the defaults",
        ratios(rates),
        "times",
        details={
            "gateway": setting.gateway,
            "model": setting.model,
            "requests_per_s": [round(one, 1) for one, _ in rates],
            "defaults_requests_per_s": [round(other, 1) for _, other in rates],
            "cpu_us": [round(one.cpu_us, 1) for one, _ in measured],
            "p99_ms": [one for one, _ in p99_ms],
            "defaults_p99_ms": [other for _, other in p99_ms],
        },
        absolute=absolute([one for one, _ in rates], [other for _, other in rates], "requests/s")
        + f"; p99 {absolute([one for one, _ in p99_ms], [other for _, other in p99_ms], 'ms')}",
    )
