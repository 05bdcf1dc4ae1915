"""What a test asks of a real Triton, in its own protocol."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt
import tritonclient.grpc as client  # type: ignore[import-untyped]

from feature_client.golden import Tensors
from feature_client.release import ReleaseGraph
from feature_client.triton_config import config_json

TIMEOUT_S = 30.0
DATATYPES = {"float32": "FP32", "int64": "INT64"}

Refused: type[Exception] = client.InferenceServerException


@contextmanager
def connected(address: str) -> Iterator[Any]:
    one = client.InferenceServerClient(address)
    try:
        yield one
    finally:
        one.close()


@contextmanager
def loaded(address: str, graph: ReleaseGraph, changes: Mapping[str, Any] | None = None) -> Iterator[Any]:
    """A client, while Triton has the graph as a gateway sends it. changes: to its configuration."""
    config = json.dumps({**json.loads(config_json(graph)), **(changes or {})})
    with connected(address) as one:
        one.load_model(graph.name, config=config, files={"file:1/model.onnx": graph.file.read_bytes()})
        try:
            yield one
        finally:
            one.unload_model(graph.name)


def infer(one: Any, graph: ReleaseGraph, tensors: Tensors) -> dict[str, npt.NDArray[Any]]:
    """Every output of the graph."""
    reply = one.infer(graph.name, _inputs(tensors), client_timeout=TIMEOUT_S)
    return {name: reply.as_numpy(name) for name in graph.outputs(1)}


def infer_at_once(one: Any, graph: ReleaseGraph, requests: list[Tensors]) -> list[dict[str, npt.NDArray[Any]] | str]:
    """All of them sent before any is waited for; for one that is refused, why."""
    calls = [one.async_infer(graph.name, _inputs(tensors), client_timeout=TIMEOUT_S) for tensors in requests]
    answers: list[dict[str, npt.NDArray[Any]] | str] = []
    for call in calls:
        try:
            reply = call.get_result()
        except Refused as exc:
            answers.append(str(exc))
        else:
            answers.append({name: reply.as_numpy(name) for name in graph.outputs(1)})
    return answers


def batches(one: Any, name: str) -> tuple[int, int]:
    """Rows that were inferred, and runs that it took."""
    [statistics] = one.get_inference_statistics(name).model_stats
    return statistics.inference_count, statistics.execution_count


def _inputs(tensors: Tensors) -> list[Any]:
    inputs = []
    for name, tensor in tensors.items():
        put = client.InferInput(name, list(tensor.shape), DATATYPES[str(tensor.dtype)])
        put.set_data_from_numpy(np.ascontiguousarray(tensor))
        inputs.append(put)
    return inputs
