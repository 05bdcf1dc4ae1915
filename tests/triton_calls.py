"""What a test asks of a real Triton, in its own protocol."""

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt
import tritonclient.grpc as client  # type: ignore[import-untyped]

from feature_client.golden import Tensors
from feature_client.release import ReleaseGraph
from feature_client.triton_config import config_json

TIMEOUT_S = 30.0
Answer = dict[str, npt.NDArray[Any]]
DATATYPES = {"float32": "FP32", "int64": "INT64"}

Refused: type[Exception] = client.InferenceServerException


@contextmanager
def connected(address: str) -> Iterator[Any]:
    one = client.InferenceServerClient(address)
    try:
        yield one
    finally:
        one.close()


def load(one: Any, graph: ReleaseGraph, changes: Mapping[str, Any] | None = None) -> None:
    """As a gateway sends it. changes: to its configuration."""
    config = json.dumps({**json.loads(config_json(graph)), **(changes or {})})
    one.load_model(graph.name, config=config, files={"file:1/model.onnx": graph.file.read_bytes()})


@contextmanager
def loaded(address: str, graph: ReleaseGraph, changes: Mapping[str, Any] | None = None) -> Iterator[Any]:
    """A client, while Triton has the graph."""
    with connected(address) as one:
        load(one, graph, changes)
        try:
            yield one
        finally:
            one.unload_model(graph.name)


def infer(one: Any, graph: ReleaseGraph, tensors: Tensors) -> Answer:
    """Every output of the graph."""
    reply = one.infer(graph.name, _inputs(tensors), client_timeout=TIMEOUT_S)
    return {name: reply.as_numpy(name) for name in graph.outputs(1)}


def infer_at_once(one: Any, graph: ReleaseGraph, requests: Sequence[Tensors]) -> list[Answer | str]:
    """All of them sent before any is waited for; for one that is refused, why."""

    def answer(tensors: Tensors) -> Answer | str:
        try:
            return infer(one, graph, tensors)
        except Refused as exc:
            return str(exc)

    with ThreadPoolExecutor(len(requests)) as pool:
        return list(pool.map(answer, requests))


def batches(one: Any, name: str) -> tuple[int, int]:
    """Rows that were inferred, and runs that it took. Triton counts a run a moment after it has answered."""
    [statistics] = one.get_inference_statistics(name).model_stats
    return statistics.inference_count, statistics.execution_count


def batches_when(one: Any, name: str, *, rows: int = 0, runs: int = 0) -> tuple[int, int]:
    """The same, as soon as there are so many."""
    deadline = time.monotonic() + TIMEOUT_S
    while (found := batches(one, name))[0] < rows or found[1] < runs:
        assert time.monotonic() < deadline, found
        time.sleep(0.02)
    return found


def _inputs(tensors: Tensors) -> list[Any]:
    inputs = []
    for name, tensor in tensors.items():
        put = client.InferInput(name, list(tensor.shape), DATATYPES[str(tensor.dtype)])
        put.set_data_from_numpy(np.ascontiguousarray(tensor))
        inputs.append(put)
    return inputs
