"""An inference in the words of the Open Inference Protocol over gRPC: the request, and the reply held against it."""

import math
from collections.abc import Mapping

import numpy as np
from tritonclient.grpc import service_pb2 as pb  # type: ignore[import-untyped]

from feature_client.golden import Tensors
from service.backends import BackendUnavailable, BadModelOutput

DATATYPES = {np.dtype("<f4"): "FP32", np.dtype("<i8"): "INT64"}


def infer_request(name: str, version: str, tensors: Tensors, outputs: Mapping[str, object]) -> pb.ModelInferRequest:
    """Raises BackendUnavailable for tensors of a type that no graph takes."""
    try:
        inputs = [
            pb.ModelInferRequest.InferInputTensor(name=key, datatype=DATATYPES[tensor.dtype], shape=tensor.shape)
            for key, tensor in tensors.items()
        ]
    except KeyError as exc:
        raise BackendUnavailable(f"{name}: no graph takes tensors of {exc}") from exc
    return pb.ModelInferRequest(
        model_name=name,
        model_version=version,
        inputs=inputs,
        outputs=[pb.ModelInferRequest.InferRequestedOutputTensor(name=output) for output in outputs],
        raw_input_contents=[tensor.tobytes() for tensor in tensors.values()],
    )


def outputs_of(
    reply: pb.ModelInferResponse, name: str, version: str, expected: Mapping[str, tuple[int, ...]]
) -> Tensors:
    """expected: output -> shape, all of them float32. The arrays are views of the reply, and cannot be written to.

    Raises BadModelOutput for whatever else than these outputs of this very model came: a server whose backend is broken
    says OK, too.
    """
    if (reply.model_name, reply.model_version) != (name, version):
        raise BadModelOutput(f"{name}: the answer is from another model or version")
    if sorted(output.name for output in reply.outputs) != sorted(expected):
        raise BadModelOutput(f"{name}: the outputs are not {', '.join(expected)}")
    if len(reply.raw_output_contents) != len(reply.outputs):
        raise BadModelOutput(f"{name}: an output has no bytes")
    tensors = {}
    for output, content in zip(reply.outputs, reply.raw_output_contents, strict=True):
        shape = expected[output.name]
        if output.datatype != "FP32" or tuple(output.shape) != shape:
            raise BadModelOutput(
                f"{name}: {output.name} is {output.datatype[:16]} {list(output.shape)[:8]}, not FP32 {list(shape)}"
            )
        if len(content) != 4 * math.prod(shape):
            raise BadModelOutput(f"{name}: {output.name} has {len(content)} bytes, not {4 * math.prod(shape)}")
        tensors[output.name] = np.frombuffer(content, np.dtype("<f4")).reshape(shape)
    return tensors
