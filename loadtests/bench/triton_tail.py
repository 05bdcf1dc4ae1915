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
from loadtests.bench.load import Load, closed_loop
from loadtests.bench.open_loop import OpenLoad, open_loop
from loadtests.bench.plan import Plan, in_turn, ratios
from loadtests.bench.report import Row, absolute
from loadtests.bench.tail import CLIENTS, SHARE
from loadtests.bench.targets import bodies_of, gateway
from loadtests.bench.triton import NAME
from loadtests.bench.triton_server import INPUTS, Graph, Triton, golden_rows, on, release, running

DATATYPES = {np.dtype("<f4"): "FP32", np.dtype("<i8"): "INT64"}
QUEUED = 10_000
"""What a queue policy may hold: more than ever wait here, so that it refuses nobody."""

BATCHING: Mapping[str, Mapping[str, Any] | None] = {
    "dynamic batching": {},
    "no dynamic batching": None,
    "max_queue_delay_microseconds 200": {"max_queue_delay_microseconds": 200},
    "a queue policy": {"default_queue_policy": {"max_queue_size": QUEUED}},
}
"""The first is what we generate, the last what nobody should."""


def triton_tail(plan: Plan) -> Iterator[Row]:
    """Poisson arrivals at half of what 64 clients reach without dynamic batching, the same for each of BATCHING.

    Single rows, straight to Triton, over HTTP, because that is what our open loop speaks: a client that does not batch.
    Then customers, through the gateway, at half of what it reaches with our settings.
    """
    directory = release(plan.home)
    rows = write_requests(plan.home.scratch / "golden-requests.jsonl", directory)
    with running(plan.home, http=True) as server, gateway(on(server, plan.home), plan.cores, name=NAME) as ours:
        graph = server.graph(directory.name, directory / "1/model.onnx")
        varied = [
            graph.varied({"dynamic_batching": batching}, f"{graph.name}.batching{at}")
            for at, batching in enumerate(BATCHING.values())
        ]
        for one in varied:
            server.load(one)
            server.check(one, golden_rows(directory))
        capacity = [closed(plan, server, one, rows).requests_per_s for one in varied[:2]]
        rate = SHARE * min(capacity)
        rounds = list(in_turn(plan.rounds, [partial(opened, plan, server, one, rows, rate) for one in varied]))
        yield waited("triton_tail", "single rows straight to it", [each[0] for each in rounds])
        for at, name in enumerate(BATCHING):
            if at:
                about = {"config": varied[at].config.get("dynamic_batching"), "capacity_per_s": capacity[at : at + 1]}
                yield against(at, name, [(each[at], each[0]) for each in rounds], about)
        bodies = bodies_of(plan.home, plan.home.customers)
        rate = SHARE * ours.drive(bodies, CLIENTS, plan.seconds).load.requests_per_s
        loads = [ours.drive_open(bodies, rate, plan.seconds) for _ in range(plan.rounds)]
        yield waited("triton_tail_rapport", "through the gateway", loads)
    yield forgotten([(each[-1], each[0]) for each in rounds])


def waited(name: str, who: str, loads: Sequence[OpenLoad]) -> Row:
    return Row(
        name,
        f"p99 / p50 on Triton, half of capacity, open loop, {who}",
        tuple(load.p99_ms / load.p50_ms for load in loads),
        "times",
        details={"rounds": [asdict(load) for load in loads]},
        absolute=f"{absolute([load.p99_ms for load in loads], [load.p50_ms for load in loads], 'ms')}; "
        f"{statistics.median(load.offered for load in loads):,.0f} offered, "
        f"{statistics.median(load.achieved for load in loads):,.0f} achieved requests/s",
    )


def against(at: int, name: str, measured: Sequence[tuple[OpenLoad, OpenLoad]], about: Mapping[str, Any]) -> Row:
    p50 = absolute([one.p50_ms for one, _ in measured], [other.p50_ms for _, other in measured], "ms")
    return Row(
        f"triton_tail_{at}",
        f"p99 of single rows at Triton, open loop, {name}, against dynamic batching",
        ratios([(one.p99_ms, other.p99_ms) for one, other in measured]),
        "times",
        details={**about, "rounds": [[asdict(one), asdict(other)] for one, other in measured]},
        absolute=absolute([one.p99_ms for one, _ in measured], [other.p99_ms for _, other in measured], "ms")
        + f"; p50 {p50}",
    )


def forgotten(measured: Sequence[tuple[OpenLoad, OpenLoad]]) -> Row:
    """Why no config of ours has a queue policy."""
    return Row(
        "triton_queue_policy",
        "single rows at Triton that took over 400 ms with a queue policy, against none",
        tuple(100 * one.slow for one, _ in measured),
        "%",
        absolute=absolute([100 * one.slow for one, _ in measured], [100 * other.slow for _, other in measured], "%"),
        details={
            "max_ms": [one.max_ms for one, _ in measured],
            "without_max_ms": [other.max_ms for _, other in measured],
        },
    )


def closed(plan: Plan, server: Triton, graph: Graph, rows: Path) -> Load:
    core = plan.cores.client
    load = closed_loop(server.http, rows, CLIENTS, plan.seconds, path=path_of(graph), key=None, core=core)
    if load.errors or not load.requests:
        raise WrongAnswer(f"Triton, {graph.name}: {load.errors} errors in {load.requests} requests")
    return load


def opened(plan: Plan, server: Triton, graph: Graph, rows: Path, rate: float) -> OpenLoad:
    core = plan.cores.client
    load = open_loop(server.http, rows, rate, plan.seconds, path=path_of(graph), key=None, core=core)
    if load.errors or load.unanswered:
        raise WrongAnswer(f"Triton, {graph.name}: {load.errors} errors and {load.unanswered} without an answer")
    return load


def path_of(graph: Graph) -> str:
    return f"/v2/models/{graph.name}/versions/{graph.version}/infer"


def write_requests(path: Path, directory: Path) -> Path:
    """Golden rows, one a request, in Triton's own JSON. That has no NaN, so what is missing is sent as 0 here."""
    golden = golden_rows(directory)
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
