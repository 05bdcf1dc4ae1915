"""The ways to run a released graph that are compared: on the CPU, and on a GPU by ONNX Runtime and by torch."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort
import torch

from loadtests.bench.explainers import INPUTS, Tensors, session
from loadtests.bench.onnx_torch import Captured, OnnxOnTorch

Outputs = Mapping[str, npt.NDArray[Any]]
MATRIX_NODES = ("Gemm", "MatMul")


class NoGpu(Exception):
    """A way that cannot be gone on this machine."""


@dataclass(frozen=True)
class Ready:
    """A graph with rows in place. run: what is timed, done when it returns. read: what the last run gave."""

    run: Callable[[], object]
    read: Callable[[], Outputs]


Prepare = Callable[[Path, Tensors], AbstractContextManager[Ready]]


@dataclass(frozen=True)
class Way:
    """rounded: operands of matrix products have fewer bits than float32. explains: told for explanation graphs, too."""

    name: str
    device: str
    prepare: Prepare
    rounded: bool = False
    explains: bool = False


@contextmanager
def on_cpu(file: Path, rows: Tensors, *, threads: int) -> Iterator[Ready]:
    run = partial(outputs_of, session(file, threads), rows)
    yield Ready(run, run)


@contextmanager
def with_copies(file: Path, rows: Tensors) -> Iterator[Ready]:
    """From arrays to arrays, over the bus and back: what a server does that was sent rows."""
    run = partial(outputs_of, on_cuda(file.read_bytes()), rows)
    yield Ready(run, run)


@contextmanager
def in_place(file: Path, rows: Tensors, *, half: bool = False, **options: int) -> Iterator[Ready]:
    """ONNX Runtime on rows that are on the GPU, with results that stay there."""
    graph = on_cuda(halved(file) if half else file.read_bytes(), **options)
    binding = graph.io_binding()
    names = [one.name for one in graph.get_outputs()]
    for name in INPUTS:
        binding.bind_ortvalue_input(name, ort.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(rows[name]), "cuda", 0))
    # A CUDA graph writes where it wrote when it was recorded, so its results need a place of their own.
    for name, values in outputs_of(session(file), rows).items():
        binding.bind_ortvalue_output(name, ort.OrtValue.ortvalue_from_numpy(np.full_like(values, np.nan), "cuda", 0))

    def run() -> None:
        graph.run_with_iobinding(binding)
        binding.synchronize_outputs()

    yield Ready(run, lambda: dict(zip(names, binding.copy_outputs_to_cpu(), strict=True)))


@contextmanager
def on_torch(
    file: Path, rows: Tensors, *, precision: torch.dtype = torch.float32, tf32: bool = False
) -> Iterator[Ready]:
    """Rows on the GPU, results that stay there, one launch."""
    torch.backends.cuda.matmul.allow_tf32 = tf32
    inputs = {name: torch.from_numpy(np.ascontiguousarray(rows[name])).cuda() for name in INPUTS}
    captured = Captured(OnnxOnTorch(file, "cuda", precision), inputs)
    yield Ready(captured, lambda: {name: value.cpu().numpy() for name, value in captured.outputs.items()})


@contextmanager
def on_torch_cpu(file: Path, rows: Tensors) -> Iterator[Ready]:
    """What shows, where there is no GPU, that the graph on torch is the graph."""
    graph = OnnxOnTorch(file, "cpu")
    inputs = {name: torch.from_numpy(np.ascontiguousarray(rows[name])) for name in INPUTS}
    yield Ready(partial(graph, inputs), lambda: {name: value.numpy() for name, value in graph(inputs).items()})


def on_cuda(content: bytes, **options: int) -> ort.InferenceSession:
    """Raises NoGpu where ONNX Runtime would silently run on the CPU instead."""
    cuda = {"use_tf32": 0, **options}
    graph = ort.InferenceSession(content, ort.SessionOptions(), providers=[("CUDAExecutionProvider", cuda)])
    if graph.get_providers()[0] != "CUDAExecutionProvider":
        raise NoGpu("ONNX Runtime has no CUDA here")
    return graph


def halved(file: Path) -> bytes:
    """The graph with matrix products in float16; all else, inputs and outputs too, stays in float32."""
    model = onnx.load(file)
    nodes = []
    for node in model.graph.node:
        if node.op_type in MATRIX_NODES:
            for at, name in enumerate(node.input):
                node.input[at] = f"{node.output[0]}.{at}.half"
                nodes.append(onnx.helper.make_node("Cast", [name], [node.input[at]], to=onnx.TensorProto.FLOAT16))
            made, node.output[0] = node.output[0], f"{node.output[0]}.half"
            nodes += [node, onnx.helper.make_node("Cast", [node.output[0]], [made], to=onnx.TensorProto.FLOAT)]
        else:
            nodes.append(node)
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    return bytes(model.SerializeToString())


def outputs_of(graph: ort.InferenceSession, rows: Tensors) -> Outputs:
    names = [one.name for one in graph.get_outputs()]
    return dict(zip(names, graph.run(names, dict(rows)), strict=True))


def ways(cores: int, *, cuda: bool) -> Sequence[Way]:
    """cores: of the CPU. cuda: False for a machine without."""
    cpu = [Way("CPU, 1 thread", "cpu", partial(on_cpu, threads=1), explains=True)]
    cpu += [Way(f"CPU, {cores} threads", "cpu", partial(on_cpu, threads=cores), explains=True)]
    if not cuda:
        return [*cpu, Way("torch on the CPU", "cpu", on_torch_cpu)]
    return [
        *cpu,
        Way("ORT, with copies", "cuda", with_copies, explains=True),
        Way("ORT", "cuda", in_place, explains=True),
        Way("ORT, TF32", "cuda", partial(in_place, use_tf32=1), rounded=True),
        Way("ORT, fp16", "cuda", partial(in_place, half=True), rounded=True),
        Way("ORT, CUDA graph", "cuda", partial(in_place, enable_cuda_graph=1), explains=True),
        Way("torch", "cuda", on_torch, explains=True),
        Way("torch, TF32", "cuda", partial(on_torch, tf32=True), rounded=True),
        Way("torch, bf16", "cuda", partial(on_torch, precision=torch.bfloat16), rounded=True),
        Way("torch, fp16", "cuda", partial(on_torch, precision=torch.float16), rounded=True),
    ]
