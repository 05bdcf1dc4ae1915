"""What dynamic batching and its settings do to those who wait: Triton asked for single rows, and under the gateway."""

import json
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from loadtests.answers import WrongAnswer
from loadtests.bench.explainers import INPUTS
from loadtests.bench.load import Load, closed_loop
from loadtests.bench.open_loop import OpenLoad, open_loop
from loadtests.bench.plan import Plan, in_turn, ratios
from loadtests.bench.report import Row, absolute
from loadtests.bench.tail import CLIENTS, SHARE
from loadtests.bench.targets import bodies_of, gateway
from loadtests.bench.triton import NAME
from loadtests.bench.triton_server import Config, Golden, Graph, Triton, golden_rows, on, release, running

DATATYPES = {np.dtype("<f4"): "FP32", np.dtype("<i8"): "INT64"}

BATCHING: Mapping[str, Mapping[str, Any] | None] = {
    "dynamic batching": {},
    "no dynamic batching": None,
    "max_queue_delay_microseconds 200": {"max_queue_delay_microseconds": 200},
}
"""The first is what we generate."""

QUEUE_POLICY = {"default_queue_policy": {"max_queue_size": 64}}
IMPATIENT = 2
"""Clients in a closed loop: what a queue policy does shows best where little is in flight."""


def triton_tail(plan: Plan) -> Iterator[Row]:
    """Poisson arrivals at half of what 64 clients reach without dynamic batching, the same for each of BATCHING.

    Single rows, straight to Triton, over HTTP, because that is what our loads speak: clients that do not batch. Then
    customers, through the gateway, at half of what it reaches with our settings.
    """
    directory = release(plan.home)
    golden = golden_rows(directory)
    rows = write_requests(plan.home.scratch / "golden-requests.jsonl", golden)
    with running(plan.home, http=True) as server, gateway(on(server, plan.home), plan.cores, name=NAME) as ours:
        graph = server.graph(directory.name, directory / "1/model.onnx")
        configs = [*BATCHING.values(), QUEUE_POLICY]
        varied = [graph.varied({"dynamic_batching": one}, f"{graph.name}.{at}") for at, one in enumerate(configs)]
        for one in varied:
            server.load(one)
            server.check(one, golden)
        capacity = [closed(plan, server, rows, CLIENTS, one).requests_per_s for one in varied[:2]]
        rate = SHARE * min(capacity)
        opens = [partial(opened, plan, server, rows, rate, one) for one in varied[: len(BATCHING)]]
        rounds = list(in_turn(plan.rounds, opens))
        yield waited("triton_tail", "single rows straight to it", [each[0] for each in rounds], {"capacity": capacity})
        for at, name in enumerate(BATCHING):
            if at:
                yield against(at, name, [(each[at], each[0]) for each in rounds], varied[at].config)
        closeds = [partial(closed, plan, server, rows, IMPATIENT, one) for one in (varied[-1], varied[0])]
        yield forgotten(list(plan.interleaved(*closeds)), varied[-1].config)
        bodies = bodies_of(plan.home, plan.home.customers)
        rate = SHARE * ours.drive(bodies, CLIENTS, plan.seconds).load.requests_per_s
        loads = [ours.drive_open(bodies, rate, plan.seconds) for _ in range(plan.rounds)]
        yield waited("triton_tail_rapport", "through the gateway", loads, {})


def waited(name: str, who: str, loads: Sequence[OpenLoad], about: Mapping[str, Any]) -> Row:
    return Row(
        name,
        f"p99 / p50 on Triton, half of capacity, open loop, {who}",
        tuple(load.p99_ms / load.p50_ms for load in loads),
        "times",
        details={**about, "rounds": [asdict(load) for load in loads]},
        absolute=f"{absolute([load.p99_ms for load in loads], [load.p50_ms for load in loads], 'ms')}; "
        f"{statistics.median(load.offered for load in loads):,.0f} offered, "
        f"{statistics.median(load.achieved for load in loads):,.0f} achieved requests/s",
    )


def against(at: int, name: str, measured: Sequence[tuple[OpenLoad, OpenLoad]], config: Config) -> Row:
    p50 = absolute([one.p50_ms for one, _ in measured], [other.p50_ms for _, other in measured], "ms")
    return Row(
        f"triton_tail_{at}",
        f"p99 of single rows at Triton, open loop, {name}, against dynamic batching",
        ratios([(one.p99_ms, other.p99_ms) for one, other in measured]),
        "times",
        details={"config": config, "rounds": [[asdict(one), asdict(other)] for one, other in measured]},
        absolute=absolute([one.p99_ms for one, _ in measured], [other.p99_ms for _, other in measured], "ms")
        + f"; p50 {p50}",
    )


def forgotten(measured: Sequence[tuple[Load, Load]], config: Config) -> Row:
    """Why no config of ours has a queue policy: Triton forgets some requests for half a second."""
    shares = [(100 * one.slow, 100 * other.slow) for one, other in measured]
    rates = [(one.requests_per_s, other.requests_per_s) for one, other in measured]
    return Row(
        "triton_queue_policy",
        f"single rows at Triton that take over 400 ms with a queue policy, {IMPATIENT} clients, against without one",
        tuple(one for one, _ in shares),
        "%",
        absolute=absolute([one for one, _ in shares], [other for _, other in shares], "%")
        + f"; {absolute([one for one, _ in rates], [other for _, other in rates], 'requests/s')}",
        details={"config": config, "rounds": [[asdict(one), asdict(other)] for one, other in measured]},
    )


def closed(plan: Plan, server: Triton, rows: Path, clients: int, graph: Graph) -> Load:
    core = plan.cores.client
    load = closed_loop(server.http, rows, clients, plan.seconds, path=path_of(graph), key=None, core=core)
    if load.errors or not load.requests:
        raise WrongAnswer(f"Triton, {graph.name}: {load.errors} errors in {load.requests} requests")
    return load


def opened(plan: Plan, server: Triton, rows: Path, rate: float, graph: Graph) -> OpenLoad:
    core = plan.cores.client
    load = open_loop(server.http, rows, rate, plan.seconds, path=path_of(graph), key=None, core=core)
    if load.errors or load.unanswered:
        raise WrongAnswer(f"Triton, {graph.name}: {load.errors} errors and {load.unanswered} without an answer")
    return load


def path_of(graph: Graph) -> str:
    return f"/v2/models/{graph.name}/versions/{graph.version}/infer"


def write_requests(path: Path, golden: Golden) -> Path:
    """Golden rows, one a request, in Triton's own JSON. That has no NaN, so what is missing is sent as 0 here."""
    tensors = {name: np.nan_to_num(golden[name]) for name in INPUTS}
    bodies = [
        {"inputs": [as_json(name, values[row : row + 1]) for name, values in tensors.items()]}
        for row in range(len(golden["scores"]))
    ]
    path.write_text("".join(f"{json.dumps(body)}\n" for body in bodies))
    return path


def as_json(name: str, values: "np.ndarray[Any, Any]") -> dict[str, Any]:
    shape, data = list(values.shape), values.ravel().tolist()
    return {"name": name, "shape": shape, "datatype": DATATYPES[values.dtype], "data": data}
