"""Whether system shared memory would spare time between a gateway and a Triton on the same host.

    python -m loadtests.bench.triton_shm --address 127.0.0.1:8001 --model engagement.1 --version 1 --rows golden.npz

The same client library, one call after the other, with tensors in the message and tensors in a shared region, into
which they are copied and from which the answer is read. Prints {"rows": {"plain_us": [...], "shared_us": [...]}}.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from tritonclient.grpc import (  # type: ignore[import-untyped]
    InferenceServerClient,
    InferInput,
    InferRequestedOutput,
)
from tritonclient.utils import np_to_triton_dtype, shared_memory  # type: ignore[import-untyped]

from loadtests.answers import ATOL, RTOL
from loadtests.bench.explainers import INPUTS
from loadtests.bench.load import LoadError
from loadtests.bench.plan import Plan, ratios
from loadtests.bench.report import Row, absolute
from loadtests.bench.servers import pinned
from loadtests.bench.targets import gateway
from loadtests.bench.triton_server import infer_input, on, release, running

SIZES = (1, 64, 1_000)
PART = 8
"""One measurement takes this part of a load's time."""

Tensors = Mapping[str, npt.NDArray[Any]]
Call = Callable[[], npt.NDArray[Any]]


def triton_shm(plan: Plan) -> Iterator[Row]:
    """p50 of one call, shared memory against plain gRPC, one client."""
    directory = release(plan.home)
    with running(plan.home) as server, gateway(on(server, plan.home), plan.cores):
        graph = server.graph(directory.name, directory / "1/model.onnx")
        command = [sys.executable, "-m", __name__, "--address", server.address, "--model", graph.name]
        command += ["--version", graph.version, "--rows", str(directory / "golden.npz")]
        command += ["--seconds", str(plan.seconds / PART), "--rounds", str(plan.rounds)]
        run = subprocess.run(  # noqa: S603  (our own command)
            pinned(command, plan.cores.client), capture_output=True, text=True, check=False
        )
    if run.returncode != 0:
        raise LoadError(f"shared memory was not measured: {run.stderr.strip()[-500:]}")
    for rows, took in json.loads(run.stdout.splitlines()[-1]).items():
        yield Row(
            f"triton_shm_{rows}",
            f"p50 of a call to Triton with system shared memory, against plain gRPC, {int(rows):,} rows",
            ratios(list(zip(took["shared_us"], took["plain_us"], strict=True))),
            "times",
            details=took,
            absolute=absolute(took["shared_us"], took["plain_us"], "us"),
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--address", required=True, help="host:port of gRPC")
    parser.add_argument("--model", required=True)
    parser.add_argument("--version", required=True)
    parser.add_argument("--rows", type=Path, required=True, help="golden rows of the model's release")
    parser.add_argument("--seconds", type=float, default=0.5, help="of one measurement")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    with np.load(options.rows, allow_pickle=False) as file:
        golden = {name: file[name] for name in (*INPUTS, "scores")}
    client = InferenceServerClient(options.address)
    took: dict[str, dict[str, list[float]]] = {}
    for size in SIZES:
        rows = {name: np.resize(values, (size, *values.shape[1:])) for name, values in golden.items()}
        tensors, scores = {name: rows[name] for name in INPUTS}, rows["scores"]
        with shared(client, options.model, options.version, tensors, scores) as through_memory:
            calls = {"plain_us": plain(client, options.model, options.version, tensors), "shared_us": through_memory}
            for name, call in calls.items():
                if not (abs(call() - scores) <= ATOL + RTOL * abs(scores)).all():
                    sys.exit(f"{name}: not the golden scores, {size} rows")
            found: dict[str, list[float]] = {name: [] for name in calls}
            for number in range(options.rounds):
                for name in list(calls)[:: -1 if number % 2 else 1]:
                    found[name].append(p50_us(calls[name], options.seconds))
        took[str(size)] = found
    print(json.dumps(took))  # noqa: T201


def p50_us(call: Call, seconds: float) -> float:
    took = []
    ends = time.perf_counter() + seconds
    while (started := time.perf_counter()) < ends:
        call()
        took.append(time.perf_counter() - started)
    return round(float(np.median(took)) * 1e6, 1)


def plain(client: Any, model: str, version: str, tensors: Tensors) -> Call:
    def call() -> npt.NDArray[Any]:
        inputs = [infer_input(name, tensor) for name, tensor in tensors.items()]
        scores: npt.NDArray[Any] = client.infer(model, inputs, version).as_numpy("scores")
        return scores

    return call


@contextmanager
def shared(client: Any, model: str, version: str, tensors: Tensors, like: npt.NDArray[Any]) -> Iterator[Call]:
    """like: an answer, for its shape and type. Regions are gone with the block."""
    with ExitStack() as stack:
        regions = {name: stack.enter_context(region(client, name, tensor.nbytes)) for name, tensor in tensors.items()}
        answers = stack.enter_context(region(client, "scores", like.nbytes))
        inputs = []
        for name, tensor in tensors.items():
            put = InferInput(name, list(tensor.shape), np_to_triton_dtype(tensor.dtype))
            put.set_shared_memory(f"bench_{name}", tensor.nbytes)
            inputs.append(put)
        output = InferRequestedOutput("scores")
        output.set_shared_memory("bench_scores", like.nbytes)

        def call() -> npt.NDArray[Any]:
            for name, tensor in tensors.items():
                shared_memory.set_shared_memory_region(regions[name], [tensor])
            client.infer(model, inputs, version, outputs=[output])
            scores: npt.NDArray[Any] = shared_memory.get_contents_as_numpy(answers, like.dtype, like.shape)
            return scores

        yield call


@contextmanager
def region(client: Any, name: str, size: int) -> Iterator[Any]:
    key = f"/rapport_bench_{name}"
    handle = shared_memory.create_shared_memory_region(f"bench_{name}", key, size)
    try:
        client.register_system_shared_memory(f"bench_{name}", key, size)
        yield handle
        client.unregister_system_shared_memory(f"bench_{name}")
    finally:
        shared_memory.destroy_shared_memory_region(handle)


if __name__ == "__main__":
    main()
