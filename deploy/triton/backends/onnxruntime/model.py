"""Triton's backend `onnxruntime` where NVIDIA's image cannot run: the same graphs, executed by ONNX Runtime in Python.

Only the executor differs from NVIDIA's image, whose backend of this name is C++. Everything around it is Triton's own:
configurations, versions, batching, metrics, model control, both protocols. It runs on CPUs.

Triton starts one process of this for each instance of a model. Requests that its batcher put together run as one.
"""

import json
from pathlib import Path

import numpy as np
import onnxruntime
import triton_python_backend_utils as triton


class TritonPythonModel:
    def initialize(self, args):
        """args: Triton's. Whatever is raised here refuses the model, with its words."""
        self.config = json.loads(args["model_config"])
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = int(self._parameter("intra_op_thread_count", "1"))
        options.inter_op_num_threads = 1
        # Threads that spin while they wait take the cores from everybody else.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        file = Path(args["model_repository"]) / args["model_version"] / "model.onnx"
        self.session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
        self.inputs = [put["name"] for put in self.config["input"]]
        self.outputs = [put["name"] for put in self.config["output"]]
        # Of an explanation graph, as in the gateway: it works on many rows of the network for each of its own, so that
        # more at once are no faster, but hold memory.
        self.slice_rows = int(self._parameter("rapport.entities_at_once", "0")) or None

    def execute(self, requests):
        """One answer for each request, in order."""
        tensors = [self._read(request) for request in requests]
        try:
            return self._answer(tensors)
        except Exception as exc:  # noqa: BLE001  (ONNX Runtime's errors share no base but Exception)
            if len(requests) == 1:
                return [_refusal(exc)]
        # One of them cannot be run, and its neighbours do not know it: each by itself.
        return [self._alone(one) for one in tensors]

    def _alone(self, one):
        try:
            return self._answer([one])[0]
        except Exception as exc:  # noqa: BLE001  (the same)
            return _refusal(exc)

    def _answer(self, requests):
        """requests: for each, its tensors in the order of the inputs."""
        if len(requests) == 1:
            return [self._response(self._run(requests[0]))]
        rows = [len(tensors[0]) for tensors in requests]
        answers = self._run([np.concatenate(parts) for parts in zip(*requests, strict=True)])
        ends = np.cumsum(rows)
        return [
            self._response([answer[end - size : end] for answer in answers])
            for size, end in zip(rows, ends, strict=True)
        ]

    def _run(self, tensors):
        rows = len(tensors[0])
        if self.slice_rows is None or rows <= self.slice_rows:
            return self.session.run(self.outputs, dict(zip(self.inputs, tensors, strict=True)))
        slices = [
            self._run([tensor[start : start + self.slice_rows] for tensor in tensors])
            for start in range(0, rows, self.slice_rows)
        ]
        return [np.concatenate(parts) for parts in zip(*slices, strict=True)]

    def _read(self, request):
        return [triton.get_input_tensor_by_name(request, name).as_numpy() for name in self.inputs]

    def _response(self, answers):
        # A slice of a batch is a view: Triton copies what is contiguous.
        tensors = [
            triton.Tensor(name, np.ascontiguousarray(answer))
            for name, answer in zip(self.outputs, answers, strict=True)
        ]
        return triton.InferenceResponse(tensors)

    def _parameter(self, name, default):
        return self.config["parameters"].get(name, {}).get("string_value", default)


def _refusal(exc):
    return triton.InferenceResponse(error=triton.TritonError(f"ONNX Runtime: {exc}"))
