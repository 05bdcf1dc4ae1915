"""What one inference costs through each backend, by rows in it: for `make bench`, and for a Triton of your own.

    python -m service.backends.cost --models .rapport/generated/models --triton 127.0.0.1:8001

One call after the other of Backend.infer for both graphs of the champion, on uvloop as in the gateway. Prints one JSON
object: {"scores" or "explanations": {"<rows>": {"embedded_us", "embedded_cpu_us", "triton_us", "triton_cpu_us"}}},
microseconds a call, one figure a round: the median time, and the CPU of this process. In-process ONNX Runtime is part
of that CPU; Triton, which does its work elsewhere, is not.
"""

import argparse
import asyncio
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import uvloop

from feature_client.errors import RapportError
from feature_client.golden import Tensors
from feature_client.release import ReleaseGraph, read_release
from feature_client.routes import read_routes
from service.backends import GOLDEN_TIMEOUT_S, Backend, BackendUnavailable, BadModelOutput
from service.backends.embedded import EmbeddedBackend
from service.backends.triton import TritonBackend

SIZES = {"scores": (1, 8, 64, 256, 1_000), "explanations": (1, 4, 32)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=Path, required=True, help="a model repository with one model")
    parser.add_argument("--triton", required=True, help="host:port of its gRPC")
    parser.add_argument("--seconds", type=float, default=0.5, help="of one measurement")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        try:
            costs = runner.run(measure(options.models, options.triton, options.seconds, options.rounds))
        except (RapportError, BackendUnavailable, BadModelOutput, TimeoutError) as exc:
            sys.exit(f"cost: {exc}")
    print(json.dumps(costs))  # noqa: T201


async def measure(models: Path, triton: str, seconds: float, rounds: int) -> dict[str, dict[str, dict[str, Any]]]:
    """Raises what loading and inferring raise."""
    [(model, route)] = read_routes(models).items()
    scores, explanations, *_ = read_release(models, model, route.champion).graphs()
    graphs = dict(zip(SIZES, (scores, explanations), strict=True))
    backends: dict[str, Backend] = {"embedded": EmbeddedBackend(), "triton": TritonBackend([triton])}
    costs: dict[str, dict[str, dict[str, Any]]] = {}
    try:
        for backend in backends.values():
            for graph in graphs.values():
                await backend.load(graph)  # proves it, too
        for lane, graph in graphs.items():
            costs[lane] = {str(size): {} for size in SIZES[lane]}
            for number in range(rounds):
                for size in SIZES[lane]:
                    tensors = rows(graph, size)
                    for name in list(backends)[:: -1 if number % 2 else 1]:
                        us, cpu_us = await cost_us(backends[name], graph.name, tensors, seconds)
                        costs[lane][str(size)].setdefault(f"{name}_us", []).append(us)
                        costs[lane][str(size)].setdefault(f"{name}_cpu_us", []).append(cpu_us)
    finally:
        for backend in backends.values():
            await backend.close()
    return costs


def rows(graph: ReleaseGraph, size: int) -> Tensors:
    """Golden rows over and over."""
    return {name: np.resize(values, (size, *values.shape[1:])) for name, values in graph.golden.tensors.items()}


async def cost_us(backend: Backend, name: str, tensors: Tensors, seconds: float) -> tuple[float, float]:
    """Median time and mean CPU of one call."""
    await backend.infer(name, tensors, GOLDEN_TIMEOUT_S)
    took = []
    cpu, ends = time.process_time(), time.perf_counter() + seconds
    while (started := time.perf_counter()) < ends:
        await backend.infer(name, tensors, GOLDEN_TIMEOUT_S)
        took.append(time.perf_counter() - started)
    cpu = time.process_time() - cpu
    return round(statistics.median(took) * 1e6, 1), round(cpu / len(took) * 1e6, 1)


if __name__ == "__main__":
    main()
