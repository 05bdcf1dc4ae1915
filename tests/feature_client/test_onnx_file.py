"""Graphs that no runtime may be given, each as somebody would make it who knows how to recompute the checksums."""

import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from feature_client import onnx_file
from feature_client.contract import CONTRACT_KEY
from feature_client.errors import RapportError
from feature_client.onnx_file import MESSAGES, SCALARS, GraphError, check_graph
from feature_client.release import Release, ReleaseError
from tests.feature_client.poison import read_again, seal

Poison = Callable[[Any], None]
"""Changes an onnx ModelProto in place."""


def weight(model: Any) -> Any:
    """The first float tensor with several values."""
    return next(tensor for tensor in model.graph.initializer if tensor.data_type == 1 and len(tensor.raw_data) > 64)


def reweigh(tensor: Any, values: Any) -> None:
    tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))


def with_value(value: float, dtype: Any = np.float32) -> Poison:
    def poison(model: Any) -> None:
        values = numpy_helper.to_array(weight(model)).astype(dtype)
        values.flat[3] = value
        reweigh(weight(model), values)

    return poison


def typed_nan(model: Any) -> None:
    tensor = weight(model)
    values = numpy_helper.to_array(tensor).copy()
    values.flat[3] = np.nan
    tensor.CopyFrom(helper.make_tensor(tensor.name, 1, values.shape, values.flatten().tolist()))


def bfloat16_infinity(model: Any) -> None:
    model.graph.initializer.append(helper.make_tensor("b", TensorProto.BFLOAT16, [2], [1.0, float("inf")]))


def typed_half_nan(model: Any) -> None:
    model.graph.initializer.append(helper.make_tensor("h", TensorProto.FLOAT16, [2], [1.0, float("nan")]))


def external(location: str) -> Poison:
    def poison(model: Any) -> None:
        tensor = weight(model)
        onnx.external_data_helper.set_external_data(tensor, location)
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL

    return poison


def external_by_entry_alone(model: Any) -> None:
    onnx.external_data_helper.set_external_data(weight(model), "elsewhere")
    weight(model).data_location = TensorProto.DEFAULT


def external_attribute(model: Any) -> None:
    tensor = numpy_helper.from_array(np.ones(4, np.float32), "c")
    onnx.external_data_helper.set_external_data(tensor, "/etc/passwd")
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    model.graph.node.append(helper.make_node("Constant", [], ["c"], value=tensor))


def in_subgraph(node: Any) -> Poison:
    def poison(model: Any) -> None:
        branch = helper.make_graph([node], "b", [], [helper.make_tensor_value_info("y", 1, [1])])
        model.graph.node.append(helper.make_node("If", ["c"], ["z"], then_branch=branch, else_branch=branch))

    return poison


def in_function(model: Any) -> None:
    body = [helper.make_node("Evil", ["x"], ["y"], domain="evil")]
    model.functions.append(helper.make_function("local", "f", ["x"], ["y"], body, [helper.make_opsetid("evil", 1)]))


def node(op: str, domain: str = "", **attributes: Any) -> Poison:
    def poison(model: Any) -> None:
        model.graph.node.append(helper.make_node(op, ["numeric"], ["more"], domain=domain, **attributes))

    return poison


def imports(domain: str) -> Poison:
    return lambda model: model.opset_import.append(helper.make_opsetid(domain, 1))


def sparse(model: Any) -> None:
    values = numpy_helper.from_array(np.array([np.nan], np.float32), "s")
    indices = numpy_helper.from_array(np.array([0], np.int64))
    model.graph.sparse_initializer.append(helper.make_sparse_tensor(values, indices, [4]))


def training(model: Any) -> None:
    model.training_info.add().algorithm.name = "t"


def props(*entries: tuple[str, str]) -> Poison:
    def poison(model: Any) -> None:
        del model.metadata_props[:]
        for key, value in entries:
            model.metadata_props.add(key=key, value=value)

    return poison


def wider_input(model: Any) -> None:
    model.graph.input[0].type.tensor_type.shape.dim[1].dim_value += 1


def one_row_only(model: Any) -> None:
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1


def double_input(model: Any) -> None:
    model.graph.input[0].type.tensor_type.elem_type = TensorProto.DOUBLE


def renamed_output(model: Any) -> None:
    model.graph.output[0].name = "probabilities"


def another_input(model: Any) -> None:
    model.graph.input.append(helper.make_tensor_value_info("more", 1, [None, 1]))


def same_input_twice(model: Any) -> None:
    model.graph.input.append(model.graph.input[0])


def fewer_tasks(model: Any) -> None:
    model.graph.output[0].type.tensor_type.shape.dim[1].dim_value -= 1


def truncated_weights(model: Any) -> None:
    weight(model).raw_data = weight(model).raw_data[:-4]


def both_kinds_of_values(model: Any) -> None:
    weight(model).float_data.append(1.0)


def absurd_shape(model: Any) -> None:
    weight(model).dims[:] = [2**40, 2**40]


def complex_weights(model: Any) -> None:
    model.graph.initializer.append(numpy_helper.from_array(np.ones(1, np.complex64), "c"))


POISONS: dict[str, tuple[Poison, str]] = {
    "NaN": (with_value(np.nan), "not all of its values are finite"),
    "infinity": (with_value(np.inf), "not all of its values are finite"),
    "NaN in float64": (with_value(np.nan, np.float64), "not all of its values are finite"),
    "NaN in float16": (with_value(np.nan, np.float16), "not all of its values are finite"),
    "NaN in a typed field": (typed_nan, "not all of its values are finite"),
    "NaN in a typed field of float16": (typed_half_nan, "not all of its values are finite"),
    "infinity in bfloat16": (bfloat16_infinity, "not all of its values are finite"),
    "NaN in an attribute": (node("Selu", alpha=float("nan")), "alpha is not finite"),
    "NaN in a list": (node("Scaler", "ai.onnx.ml", scale=[1.0, float("nan")]), "scale is not finite"),
    "complex numbers": (complex_weights, "values of type 14"),
    "external data beside": (external("weights.bin"), "external data"),
    "external data above": (external("../../../etc/passwd"), "external data"),
    "external data by a path": (external("/etc/passwd"), "external data"),
    "external data in memory": (external("*/_ORT_MEM_ADDR_/*"), "external data"),
    "external data by its entry alone": (external_by_entry_alone, "external data"),
    "external data of a constant": (external_attribute, "external data"),
    "sparse weights": (sparse, "sparse weights"),
    "training": (training, "training"),
    "custom operator": (node("Evil", "evil"), "custom operator of 'evil'"),
    "custom domain": (imports("evil"), "imports custom operators: 'evil'"),
    "contrib operator": (node("EPContext", "com.microsoft", embed_mode=0), "custom operator of 'com.microsoft'"),
    "Python operator": (node("PyOp", "pyopmulti"), "custom operator of 'pyopmulti'"),
    "custom operator in a subgraph": (in_subgraph(helper.make_node("Evil", [], ["y"], domain="evil")), "subgraph"),
    "local function": (in_function, "local functions"),
    "random operator": (node("RandomNormalLike"), "is random"),
    "contract of another release": (props((CONTRACT_KEY, "0" * 64)), "another contract"),
    "no contract": (props(), "another contract"),
    "wider input": (wider_input, "inputs are not those of its contract"),
    "one row only": (one_row_only, "inputs are not those of its contract"),
    "double input": (double_input, "inputs are not those of its contract"),
    "another input": (another_input, "inputs are not those of its contract"),
    "the same input twice": (same_input_twice, "inputs are not those of its contract"),
    "renamed output": (renamed_output, "outputs are not those of its contract"),
    "fewer tasks": (fewer_tasks, "outputs are not those of its contract"),
    "truncated weights": (truncated_weights, "bytes for the shape"),
    "values twice": (both_kinds_of_values, "has its values twice"),
    "absurd shape": (absurd_shape, "its shape is"),
}


OF_EACH_KIND = ("NaN", "external data above", "custom operator", "no contract", "double input", "renamed output")


@pytest.mark.parametrize(
    ("poison", "explainer"),
    [
        *((poison, explainer) for poison in POISONS for explainer in (None, "fast")),
        *((poison, "exact") for poison in OF_EACH_KIND),  # every explainer's graph goes the same way
    ],
)
def test_a_poisoned_graph_is_refused_by_name_whatever_the_manifest_says(
    release: Release, poison: str, explainer: str | None
) -> None:
    change, reason = POISONS[poison]
    file = release.root / release.graph_name(explainer) / "1" / "model.onnx"
    model = onnx.load(file, load_external_data=False)
    change(model)
    file.write_bytes(model.SerializeToString())
    seal(release)

    with pytest.raises(ReleaseError, match=reason) as refused:
        read_again(release)

    assert f"{file.parent.parent.name}/1/model.onnx" in str(refused.value)


def test_the_contracts_digest_twice_is_refused(pristine: Release) -> None:
    """Which of two entries counts, each reader decides for itself."""
    model = onnx.load(pristine.directory / "1" / "model.onnx")
    digest = pristine.contract.digest
    props((CONTRACT_KEY, digest), (CONTRACT_KEY, "0" * 64))(model)

    with pytest.raises(GraphError, match="another contract"):
        check_graph(model.SerializeToString(), pristine.contract, None)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "it is empty"),
        (b"\0" * 4096, "not an ONNX model"),
        (b"PK\x03\x04", "not an ONNX model"),
        (b"\x08\x0a\x12\x04ORTM", "ONNX Runtime's own format"),
        (b"\x08\x0a", "it has no graph"),
    ],
)
def test_a_file_of_another_kind_is_refused(pristine: Release, content: bytes, reason: str) -> None:
    with pytest.raises(GraphError, match=reason):
        check_graph(content, pristine.contract, None)


def test_every_truncation_is_refused(pristine: Release) -> None:
    content = (pristine.directory / "1" / "model.onnx").read_bytes()
    for end in [*range(0, len(content), 997), len(content) - 1]:
        with pytest.raises(GraphError):
            check_graph(content[:end], pristine.contract, None)


def test_what_a_reader_could_understand_in_two_ways_is_refused(pristine: Release) -> None:
    """A second copy of a field, and a field that onnx.proto does not have (yet)."""
    content = (pristine.directory / "1" / "model.onnx").read_bytes()
    for more in (b"\x28\x07", b"\xba\x3e\x01x"):
        with pytest.raises(GraphError, match="parts that this version does not know"):
            check_graph(content + more, pristine.contract, None)


def test_it_takes_exactly_what_was_exported(pristine: Release) -> None:
    for graph in pristine.graphs():
        check_graph(graph.read(), pristine.contract, graph.explainer)
        for explainer in (None, *pristine.manifest.explainers):
            if pristine.contract.outputs(1, explainer) != graph.outputs(1):
                with pytest.raises(GraphError, match="outputs are not those"):
                    check_graph(graph.read(), pristine.contract, explainer)
        with pytest.raises(GraphError, match="another contract"):
            check_graph(graph.read(), replace(pristine.contract, model="other"), graph.explainer)


def test_a_graph_beyond_the_limit_is_not_even_read(release: Release) -> None:
    file = release.directory / "1" / "model.onnx"
    with file.open("ab") as opened:
        opened.truncate(onnx_file.MAX_BYTES + 1)  # a hole: it takes no disk
    seal(release)

    with pytest.raises(ReleaseError, match="larger than 268,435,456 bytes"):
        read_again(release)


def test_our_messages_are_onnx_protos(pristine: Release) -> None:
    """Name, type and packing of every field that we declare; plain bytes stand for messages that we refuse."""
    onnx_messages = {
        **{name: getattr(onnx, name).DESCRIPTOR for name in MESSAGES if hasattr(onnx, name)},
        "Tensor": onnx.TypeProto.Tensor.DESCRIPTOR,
        "Dimension": onnx.TensorShapeProto.Dimension.DESCRIPTOR,
    }
    for message, fields in MESSAGES.items():
        theirs = onnx_messages[message].fields_by_number
        for number, text in fields.items():
            name, of, *repeated = text.split()
            field = theirs[number]
            assert field.name == name
            assert field.is_repeated == bool(repeated)
            assert field.is_packed == (repeated == ["packed"])
            if of not in SCALARS:
                assert field.message_type.name == of
            elif field.type == field.TYPE_ENUM:
                assert of == "int32"
            else:
                assert field.type == SCALARS[of] or (of == "bytes" and field.type == field.TYPE_MESSAGE)


def test_without_protobuf_a_sentence_says_what_to_install(release: Release, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "google.protobuf", None)
    with pytest.raises(RapportError, match=r"rapport\[cpu\]"):
        read_again(release)


@pytest.mark.parametrize("part", ["empty nodes", "empty inputs", "float_data", "names"])
def test_what_would_take_much_more_memory_than_its_bytes_is_refused_before_it_is_parsed(
    pristine: Release, part: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnx_file, "MAX_STRUCTURE_BYTES", 100_000)
    graph = pristine.graphs()[0]
    model = onnx.load_from_string(graph.read())
    check_graph(model.SerializeToString(deterministic=True), pristine.contract, None)
    if part == "empty nodes":
        model.graph.node.extend([onnx.NodeProto()] * 50_000)
    if part == "empty inputs":
        model.graph.input.extend([onnx.ValueInfoProto()] * 50_000)
    if part == "float_data":
        model.graph.initializer.add(data_type=1, dims=[30_000], float_data=[1.0] * 30_000, name="more")
    if part == "names":
        model.graph.node[0].doc_string = "x" * 100_000
    monkeypatch.setattr(onnx_file, "_model_class", None)  # nothing is parsed

    with pytest.raises(GraphError, match="100000 bytes besides raw weights"):
        check_graph(model.SerializeToString(deterministic=True), pristine.contract, None)


def test_raw_weights_are_no_structure(pristine: Release, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx_file, "MAX_STRUCTURE_BYTES", 100_000)
    graph = pristine.graphs()[0]
    model = onnx.load_from_string(graph.read())
    model.graph.initializer.add(data_type=1, dims=[100_000], raw_data=bytes(400_000), name="more")

    check_graph(model.SerializeToString(deterministic=True), pristine.contract, None)
