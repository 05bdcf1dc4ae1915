"""A released graph on torch: its ONNX nodes one after the other, in a precision of our choice, as one CUDA graph.

Not for serving. It shows what a GPU makes of the very graph that is served, without ONNX Runtime's own costs.
"""

from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from torch import Tensor

Tensors = Mapping[str, Tensor]
Attributes = Mapping[str, Any]
TYPES = {
    onnx.TensorProto.FLOAT: torch.float32,
    onnx.TensorProto.INT64: torch.int64,
    onnx.TensorProto.BOOL: torch.bool,
}


class UnknownNode(Exception):
    """A node that our graphs did not have when this was written."""


@dataclass(frozen=True)
class Call:
    """What a node gets. values: its inputs; those that say shapes or axes are in the memory of the CPU."""

    values: Sequence[Tensor]
    attributes: Attributes
    precision: torch.dtype

    def sizes(self, position: int) -> list[int]:
        return [int(size) for size in self.values[position].reshape(-1).tolist()]

    def product(self, a: Tensor, b: Tensor) -> Tensor:
        return (a.to(self.precision) @ b.to(self.precision)).to(a.dtype)


def gemm(call: Call) -> Tensor:
    a, b = (
        value.T if call.attributes.get(name, 0) else value
        for value, name in zip(call.values, ("transA", "transB"), strict=False)
    )
    result = float(call.attributes.get("alpha", 1.0)) * call.product(a, b)
    return result + float(call.attributes.get("beta", 1.0)) * call.values[2] if len(call.values) > 2 else result


def reshape(call: Call) -> Tensor:
    value, sizes = call.values[0], call.sizes(1)
    kept = [value.shape[at] if size == 0 and not call.attributes.get("allowzero", 0) else size
            for at, size in enumerate(sizes)]  # fmt: skip
    return value.reshape(kept)


def split(call: Call) -> tuple[Tensor, ...]:
    value, axis = call.values[0], call.attributes.get("axis", 0)
    if len(call.values) > 1:
        return torch.split(value, call.sizes(1), dim=axis)
    return torch.chunk(value, call.attributes["num_outputs"], dim=axis)


def gather(call: Call) -> Tensor:
    value, at = call.values
    axis = call.attributes.get("axis", 0) % value.dim()
    found = value.index_select(axis, at.reshape(-1))
    return found.reshape(*value.shape[:axis], *at.shape, *value.shape[axis + 1 :])


def reduced(function: Callable[..., Tensor]) -> Callable[[Call], Tensor]:
    def reduce(call: Call) -> Tensor:
        return function(call.values[0], dim=call.sizes(1), keepdim=bool(call.attributes.get("keepdims", 1)))

    return reduce


def unsqueeze(call: Call) -> Tensor:
    value, axes = call.values[0], call.sizes(1)
    for axis in sorted(axis % (value.dim() + len(axes)) for axis in axes):
        value = value.unsqueeze(axis)
    return value


def shape(call: Call) -> Tensor:
    found = list(call.values[0].shape)
    return torch.tensor(found[call.attributes.get("start", 0) : call.attributes.get("end", len(found))])


def cut(call: Call) -> Tensor:
    value = call.values[0]
    starts, ends = call.sizes(1), call.sizes(2)
    axes = call.sizes(3) if len(call.values) > 3 else range(len(starts))
    steps = call.sizes(4) if len(call.values) > 4 else [1] * len(starts)
    places = [slice(None)] * value.dim()
    for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
        places[axis] = slice(start, end, step)
    return value[tuple(places)]


def pad(call: Call) -> Tensor:
    """With a constant, all axes."""
    value, sizes = call.values[0], call.sizes(1)
    if call.attributes.get("mode", b"constant") != b"constant" or len(sizes) != 2 * value.dim():
        raise UnknownNode("Pad of another kind")
    # torch counts from the last axis, both ends of each one after the other.
    ends = [size for axis in reversed(range(value.dim())) for size in (sizes[axis], sizes[axis + value.dim()])]
    filling = float(call.values[2].item()) if len(call.values) > 2 else 0.0
    return torch.nn.functional.pad(value, ends, value=filling)


def squeeze(call: Call) -> Tensor:
    value = call.values[0]
    return value.squeeze(call.sizes(1)) if len(call.values) > 1 else value.squeeze()


def plain(function: Callable[..., Any]) -> Callable[[Call], Tensor]:
    return lambda call: function(*call.values)


PLAIN: Mapping[str, Callable[..., Any]] = {
    "Abs": torch.abs, "Add": torch.add, "Clip": torch.clamp, "Div": torch.div, "Exp": torch.exp,
    "Greater": torch.gt, "IsNaN": torch.isnan, "Less": torch.lt, "Log": torch.log, "Max": torch.maximum,
    "Min": torch.minimum, "Mul": torch.mul, "Neg": torch.neg, "Sigmoid": torch.sigmoid, "Sign": torch.sign,
    "Softplus": torch.nn.functional.softplus, "Sqrt": torch.sqrt, "Sub": torch.sub, "Where": torch.where,
}  # fmt: skip

SIZES = {
    **dict.fromkeys(("Expand", "Reshape", "ReduceMean", "ReduceSum", "Split", "Squeeze", "Unsqueeze"), (1,)),
    "Pad": (1, 2),
    "Slice": (1, 2, 3, 4),
}
"""Which inputs of a node say shapes or axes."""

NODES: Mapping[str, Callable[[Call], Tensor | tuple[Tensor, ...]]] = {
    **{name: plain(function) for name, function in PLAIN.items()},
    "Cast": lambda call: call.values[0].to(TYPES[call.attributes["to"]]),
    "Concat": lambda call: torch.cat(list(call.values), dim=call.attributes["axis"]),
    "Expand": lambda call: call.values[0] * torch.ones(call.sizes(1), device=call.values[0].device),
    "Gather": gather,
    "Gemm": gemm,
    "Identity": lambda call: call.values[0],
    "MatMul": lambda call: call.product(*call.values),
    "Pad": pad,
    "ReduceMean": reduced(torch.mean),
    "ReduceSum": reduced(torch.sum),
    "Reshape": reshape,
    "Shape": shape,
    "Slice": cut,
    "Split": split,
    "Squeeze": squeeze,
    "Transpose": lambda call: call.values[0].permute(*call.attributes["perm"]),
    "Unsqueeze": unsqueeze,
}  # fmt: skip


@dataclass(frozen=True)
class Node:
    name: str
    inputs: Sequence[str]
    outputs: Sequence[str]
    attributes: Attributes


class OnnxOnTorch:
    """precision: of the operands of matrix products, whose results and everything else stay in float32."""

    def __init__(self, file: Path, device: str, precision: torch.dtype = torch.float32) -> None:
        """Raises UnknownNode."""
        graph = onnx.load(file).graph
        self.precision = precision
        constants = {one.name: one for one in graph.initializer}
        self.nodes: list[Node] = []
        for node in graph.node:
            attributes = {one.name: onnx.helper.get_attribute_value(one) for one in node.attribute}
            if node.op_type == "Constant":
                constants[node.output[0]] = attributes["value"]
            elif node.op_type in NODES:
                self.nodes.append(Node(node.op_type, list(node.input), list(node.output), attributes))
            else:
                raise UnknownNode(f"{node.op_type} in {file}")
        products = {node.inputs[1] for node in self.nodes if node.name in ("Gemm", "MatMul")}
        self.constants = {}
        for name, one in constants.items():
            value = torch.from_numpy(np.array(numpy_helper.to_array(one)))
            # What says shapes or axes is needed in the memory of the CPU; the same constant may be an operand, too.
            self.constants[said(name)] = value
            # Weights are rounded once, and not in every run.
            self.constants[name] = value.to(device, precision) if name in products else value.to(device)
        self.nodes = with_said_sizes(self.nodes, constants)
        self.outputs = [one.name for one in graph.output]
        # A tensor goes once nothing needs it any more: a large batch has dozens, of gigabytes.
        self.last = {name: at for at, node in enumerate(self.nodes) for name in node.inputs}

    @torch.no_grad()
    def __call__(self, inputs: Tensors) -> dict[str, Tensor]:
        values: dict[str, Tensor] = {**self.constants, **inputs}
        for at, node in enumerate(self.nodes):
            call = Call([values[name] for name in node.inputs], node.attributes, self.precision)
            found = NODES[node.name](call)
            del call
            values.update(zip(node.outputs, (found,) if isinstance(found, Tensor) else found, strict=True))
            for name in node.inputs:
                if self.last[name] == at and name not in self.outputs:
                    values.pop(name, None)
        return {name: values[name] for name in self.outputs}


def said(name: str) -> str:
    return f"{name}, said"


def with_said_sizes(nodes: Sequence[Node], constants: Container[str]) -> list[Node]:
    """The same nodes, of which those that need or compute shapes and axes take constants from the CPU's memory."""
    sizes: set[str] = set()
    for node in reversed(nodes):
        sizes.update(name for at, name in enumerate(node.inputs) if at in SIZES.get(node.name, ()))
        if node.name != "Shape" and sizes & set(node.outputs):
            sizes.update(node.inputs)
    found = []
    for node in nodes:
        computes = bool(sizes & set(node.outputs))
        inputs = [
            said(name) if name in constants and (computes or at in SIZES.get(node.name, ())) else name
            for at, name in enumerate(node.inputs)
        ]
        found.append(replace(node, inputs=inputs))
    return found


class Captured:
    """The same for one batch size, as a CUDA graph: a single launch."""

    def __init__(self, graph: OnnxOnTorch, inputs: Tensors) -> None:
        """inputs: on the GPU, and what every replay reads."""
        # A replay reads where they were when it was recorded: they must stay there.
        self.graph, self.inputs = graph, inputs
        stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):  # capture needs libraries that are warm
            for _ in range(3):
                graph(inputs)
        torch.cuda.current_stream().wait_stream(stream)
        self.replayed = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.replayed):
            self.outputs = graph(inputs)

    def __call__(self) -> dict[str, Tensor]:
        self.replayed.replay()
        torch.cuda.synchronize()
        return self.outputs
