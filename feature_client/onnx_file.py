"""What a release's ONNX file holds, read without running it: the gateway does so before any runtime sees the file.

The messages are our own copies, in a descriptor pool of our own, so that they never meet those of the onnx package,
which the gateway does without. They are a subset: what is not in it is refused, since nobody has looked at it. Needs
protobuf, which comes with every runtime.
"""

from collections.abc import Iterator, Mapping
from functools import cache
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt

from feature_client.contract import CONTRACT_KEY, Contract
from feature_client.errors import RapportError

MAX_BYTES = 256 * 2**20
"""64 million float32 weights, a thousand times what the built-in networks have."""

MAX_STRUCTURE_BYTES = 4 * 2**20
"""Of all but the weights, which are copied as they are: a node of two bytes takes a hundred of memory while it is
looked at, so that this much may take 400 MB for a moment, in each worker. Exporters write weights as raw data."""

DOMAINS = frozenset({"", "ai.onnx", "ai.onnx.ml"})
"""Operators of the standard: none of them opens a file. Our exporter uses the first alone. com.microsoft is not among
them: its EPContext loads what it names."""

RANDOM = frozenset(
    {"Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike"}
)
"""The same customer would get another score with every request."""

FLOAT, INT64 = 1, 7
FLOATS: Mapping[int, tuple[str, str]] = {
    FLOAT: ("<f4", "float_data"),
    10: ("<f2", "int32_data"),
    11: ("<f8", "double_data"),
    16: ("<u2", "int32_data"),  # bfloat16: NumPy has none
}
"""TensorProto.DataType -> how its values lie in raw_data, and the field that they are in otherwise."""

BFLOAT16, BFLOAT16_EXPONENT = 16, 0x7F80
WHOLE = frozenset({2, 3, 4, 5, 6, 7, 8, 9, 12, 13})
"""Whole numbers, strings and booleans: always finite. What is in neither table (complex, 8 and 4 bits) is refused."""

PACKAGE = "rapport.onnx"
SCALARS = {"double": 1, "float": 2, "int64": 3, "uint64": 4, "int32": 5, "string": 9, "bytes": 12}
"""Type -> FieldDescriptorProto.Type; whatever is not here is a message."""

MESSAGES: Mapping[str, Mapping[int, str]] = {
    "ModelProto": {
        1: "ir_version int64",
        2: "producer_name string",
        3: "producer_version string",
        4: "domain string",
        5: "model_version int64",
        6: "doc_string string",
        7: "graph GraphProto",
        8: "opset_import OperatorSetIdProto repeated",
        14: "metadata_props StringStringEntryProto repeated",
        20: "training_info bytes repeated",
        25: "functions bytes repeated",
    },
    "GraphProto": {
        1: "node NodeProto repeated",
        2: "name string",
        5: "initializer TensorProto repeated",
        10: "doc_string string",
        11: "input ValueInfoProto repeated",
        12: "output ValueInfoProto repeated",
        13: "value_info ValueInfoProto repeated",
        15: "sparse_initializer bytes repeated",
        16: "metadata_props StringStringEntryProto repeated",
    },
    "NodeProto": {
        1: "input string repeated",
        2: "output string repeated",
        3: "name string",
        4: "op_type string",
        5: "attribute AttributeProto repeated",
        6: "doc_string string",
        7: "domain string",
        8: "overload string",
        9: "metadata_props StringStringEntryProto repeated",
    },
    "AttributeProto": {
        1: "name string",
        2: "f float",
        3: "i int64",
        4: "s bytes",
        5: "t TensorProto",
        6: "g bytes",
        7: "floats float repeated",
        8: "ints int64 repeated",
        9: "strings bytes repeated",
        10: "tensors TensorProto repeated",
        11: "graphs bytes repeated",
        13: "doc_string string",
        20: "type int32",
        22: "sparse_tensor bytes",
        23: "sparse_tensors bytes repeated",
    },
    "TensorProto": {
        1: "dims int64 repeated",
        2: "data_type int32",
        4: "float_data float packed",
        5: "int32_data int32 packed",
        6: "string_data bytes repeated",
        7: "int64_data int64 packed",
        8: "name string",
        9: "raw_data bytes",
        10: "double_data double packed",
        11: "uint64_data uint64 packed",
        12: "doc_string string",
        13: "external_data StringStringEntryProto repeated",
        14: "data_location int32",
        16: "metadata_props StringStringEntryProto repeated",
    },
    "ValueInfoProto": {
        1: "name string",
        2: "type TypeProto",
        3: "doc_string string",
        4: "metadata_props StringStringEntryProto repeated",
    },
    "TypeProto": {1: "tensor_type Tensor", 6: "denotation string"},
    "Tensor": {1: "elem_type int32", 2: "shape TensorShapeProto"},
    "TensorShapeProto": {1: "dim Dimension repeated"},
    "Dimension": {1: "dim_value int64", 2: "dim_param string", 3: "denotation string"},
    "OperatorSetIdProto": {1: "domain string", 2: "version int64"},
    "StringStringEntryProto": {1: "key string", 2: "value string"},
}
"""onnx.proto, message -> number -> field. Messages that no release may hold are plain bytes: nothing looks inside."""


class GraphError(RapportError):
    """A file that is no graph of this contract, or that no runtime should be given."""


def check_graph(content: bytes, contract: Contract, explainer: str | None) -> None:
    """content: of model.onnx. explainer: whose graph it is; None: the score graph. Raises GraphError.

    Infinite weights are refused, too: none of the graphs that we export has any.
    """
    model = _parsed(content)
    try:
        _check_reach(model)
        _check_weights(model.graph)
        _check_promises(model, contract, explainer)
    except UnicodeDecodeError as exc:  # a name, read where it is looked at
        raise GraphError(f"not an ONNX model: {exc}") from exc


def _parsed(content: bytes) -> Any:
    if not content:
        raise GraphError("not an ONNX model: it is empty")
    if content[4:8] == b"ORTM":
        # ONNX Runtime would take its own format, of which protobuf sees a harmless model at best.
        raise GraphError("not an ONNX model: it is marked as ONNX Runtime's own format")
    if _structure_bytes(content) > MAX_STRUCTURE_BYTES:
        raise GraphError(f"it has more than {MAX_STRUCTURE_BYTES} bytes besides raw weights")
    protobuf = _protobuf()
    model = _model_class()()
    try:
        model.ParseFromString(content)
    except (protobuf.message.DecodeError, UnicodeDecodeError) as exc:
        raise GraphError("not an ONNX model: damaged, truncated, or another kind of file") from exc
    model.DiscardUnknownFields()
    # Two readers of one file may see two models, for example where a field is there twice; of this form there is one.
    if model.SerializeToString(deterministic=True) != content:
        raise GraphError("it has parts that this version does not know, or is not written as exporters write it")
    if not model.HasField("graph") or not model.opset_import:
        raise GraphError("not an ONNX model: it has no graph, or does not say which operators")
    return model


def _structure_bytes(content: bytes) -> int:
    """Bytes of a model beside its graph's raw weights: from the wire format, before anything is made of it. Stops where
    there are too many. Of what is no protobuf, all bytes count."""
    total = 0
    # Of the nested messages, those that the raw weights are in: ModelProto.graph, GraphProto.initializer.
    spans: list[tuple[int, int, tuple[int, ...]]] = [(0, len(content), (7, 5))]
    while spans:
        at, end, path = spans.pop()
        while at < end:
            start = at
            key, at = _varint(content, at)
            number, kind = key >> 3, key & 7
            size, at = _varint(content, at) if kind == LENGTH else (0, at)
            at = _varint(content, at)[1] if kind == VARINT else at + FIXED.get(kind, size)
            inside = kind == LENGTH and ((path and number == path[0]) or (not path and number == RAW_DATA))
            if inside and path:
                spans.append((at - size, min(at, end), path[1:]))
            total += at - start - (size if inside else 0)
            if total > MAX_STRUCTURE_BYTES:
                return total
    return total


VARINT, LENGTH = 0, 2
FIXED = {1: 8, 5: 4}
RAW_DATA = 9
"""Kinds of fields on the wire, and TensorProto.raw_data."""


def _varint(content: bytes, at: int) -> tuple[int, int]:
    """The number, and where it ends; 0 beyond the end."""
    value = 0
    for shift in range(0, 70, 7):
        byte = content[at] if at < len(content) else 0
        value |= (byte & 0x7F) << shift
        at += 1
        if byte < 0x80:
            break
    return value, at


def _check_reach(model: Any) -> None:
    """Nothing outside the file, nothing that is not the standard's, and nothing that runs for ever."""
    if model.functions:
        raise GraphError("it has local functions, which may stand for anything: inline them")
    if model.training_info:
        raise GraphError("it has training information")
    if model.graph.sparse_initializer:
        raise GraphError("it has sparse weights")
    if foreign := sorted({opset.domain for opset in model.opset_import} - DOMAINS):
        raise GraphError(f"it imports custom operators: {foreign[0]!r}")
    for node in model.graph.node:
        what = f"{node.name!r} ({node.op_type})"
        if node.domain not in DOMAINS:
            raise GraphError(f"{what} is a custom operator of {node.domain!r}")
        if node.op_type in RANDOM:
            raise GraphError(f"{what} is random")
        for attribute in node.attribute:
            _check_attribute(attribute, what)


def _check_attribute(attribute: Any, what: str) -> None:
    if attribute.HasField("g") or attribute.graphs:
        raise GraphError(f"{what} has a subgraph: a score is computed without branches and loops")
    if attribute.HasField("sparse_tensor") or attribute.sparse_tensors:
        raise GraphError(f"{what} has a sparse tensor")
    if not np.isfinite([attribute.f, *attribute.floats]).all():
        raise GraphError(f"{what}: {attribute.name} is not finite")


def _tensors(graph: Any) -> Iterator[Any]:
    yield from graph.initializer
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors


def _check_weights(graph: Any) -> None:
    for tensor in _tensors(graph):
        name = tensor.name or "a constant"
        if tensor.data_location != 0 or tensor.external_data:
            raise GraphError(f"{name}: its values are in another file (external data)")
        if tensor.data_type in WHOLE:
            continue
        if tensor.data_type not in FLOATS:
            raise GraphError(f"{name}: values of type {tensor.data_type}")
        values = _values(name, tensor)
        finite = (
            (values & BFLOAT16_EXPONENT) != BFLOAT16_EXPONENT if tensor.data_type == BFLOAT16 else np.isfinite(values)
        )
        if not finite.all():
            raise GraphError(f"{name}: not all of its values are finite")


def _values(name: str, tensor: Any) -> npt.NDArray[Any]:
    """Of a tensor of floating-point numbers, as runtimes read them: [values]."""
    dtype, field = FLOATS[tensor.data_type]
    typed = getattr(tensor, field)
    if tensor.HasField("raw_data") and typed:
        raise GraphError(f"{name}: it has its values twice")
    sizes = list(tensor.dims)
    expected = prod(sizes)
    if min(sizes, default=0) < 0 or expected * np.dtype(dtype).itemsize > MAX_BYTES:
        raise GraphError(f"{name}: its shape is {sizes}")
    if field == "int32_data" and typed:  # the bits of 16-bit numbers
        values = np.array(typed, np.int64).astype(np.uint16).view(dtype)
    elif typed:
        values = np.array(typed, dtype)
    else:
        raw = tensor.raw_data
        if len(raw) != expected * np.dtype(dtype).itemsize:
            raise GraphError(f"{name}: {len(raw)} bytes for the shape {sizes}")
        values = np.frombuffer(raw, dtype)
    if len(values) != expected:
        raise GraphError(f"{name}: {len(values)} values for the shape {sizes}")
    return values


def _check_promises(model: Any, contract: Contract, explainer: str | None) -> None:
    # A list: which of two entries counts, each reader decides for itself.
    if [entry.value for entry in model.metadata_props if entry.key == CONTRACT_KEY] != [contract.digest]:
        raise GraphError("it was exported with another contract")
    inputs: dict[str, tuple[int, list[int]]] = {
        "numeric": (FLOAT, [len(contract.schema.numeric)]),
        "categorical": (INT64, [len(contract.schema.categorical)]),
    }
    outputs = {name: (FLOAT, list(shape[1:])) for name, shape in contract.outputs(1, explainer).items()}
    for what, values, expected in (("inputs", model.graph.input, inputs), ("outputs", model.graph.output, outputs)):
        found = {value.name: _row(value) for value in values}
        if found != expected or len(values) != len(expected):
            raise GraphError(f"its {what} are not those of its contract: {_shown(found)} and not {_shown(expected)}")


def _row(value: Any) -> tuple[int, list[int]]:
    """Element type, and the dimensions of one row; -1 for one that is not fixed, or for rows that are."""
    tensor = value.type.tensor_type
    batch, *row = tensor.shape.dim or [None]
    fixed = [dimension.dim_value if dimension.HasField("dim_value") else -1 for dimension in row]
    return tensor.elem_type, fixed if batch is not None and not batch.HasField("dim_value") else [-1, *fixed]


def _shown(values: Mapping[str, tuple[int, list[int]]]) -> str:
    return ", ".join(f"{name} (type {kind}) {['rows', *row]}" for name, (kind, row) in sorted(values.items()))


@cache
def _model_class() -> Any:
    protobuf = _protobuf()
    file = protobuf.descriptor_pb2.FileDescriptorProto(name="rapport/onnx.proto", package=PACKAGE, syntax="proto2")
    for message, fields in MESSAGES.items():
        declared = file.message_type.add(name=message)
        for number, text in fields.items():
            name, of, *repeated = text.split()
            field = declared.field.add(name=name, number=number, label=3 if repeated else 1, type=SCALARS.get(of, 11))
            if of not in SCALARS:
                field.type_name = f".{PACKAGE}.{of}"
            if repeated == ["packed"]:
                field.options.packed = True
    pool = protobuf.descriptor_pool.DescriptorPool()
    pool.AddSerializedFile(file.SerializeToString())
    return protobuf.message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{PACKAGE}.ModelProto"))


def _protobuf() -> Any:
    """The package, with the modules of it that we use."""
    try:
        from google import protobuf  # type: ignore[import-untyped]  # noqa: PLC0415  (25 ms that few commands need)
        from google.protobuf import (  # type: ignore[import-untyped]  # noqa: F401, PLC0415
            descriptor_pb2,
            descriptor_pool,
            message,
            message_factory,
        )
    except ImportError as exc:
        raise RapportError(
            "releases are read with protobuf, which is not installed: pip install 'rapport[cpu]'"
        ) from exc
    return protobuf
