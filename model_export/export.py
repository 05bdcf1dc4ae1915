"""Torch module to one self-contained ONNX file."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import onnx
import torch
from onnx import helper, numpy_helper
from onnx.inliner import inline_local_functions

from feature_client.contract import CONTRACT_KEY, Contract
from model_export.attribution import ExplainedNetwork
from model_export.classical import DOMAIN
from model_export.scorer import Scorer

SCORE_OUTPUTS = ("scores",)
EXPLAIN_OUTPUTS = ("scores", "attributions", "base", "margins", "margin_attributions", "margin_base")


def export(module: Scorer | ExplainedNetwork, contract: Contract, path: Path) -> None:
    """Writes `module` with inputs numeric float32 [B, N] and categorical int64 [B, K], any B from 1 on.

    The digest of the contract goes into the file's metadata under `rapport.contract`.
    """
    widths = len(contract.schema.numeric), len(contract.schema.categorical)
    outputs = EXPLAIN_OUTPUTS if isinstance(module, ExplainedNetwork) else SCORE_OUTPUTS
    # Not 1 row: torch.export takes the sizes 0 and 1 for constants.
    example = (torch.zeros(3, widths[0]), torch.zeros(3, widths[1], dtype=torch.int64))
    batch = torch.export.Dim("batch", min=1)
    with _known_warnings():
        program = torch.onnx.export(
            module.eval(),
            example,
            input_names=("numeric", "categorical"),
            output_names=outputs,
            dynamic_shapes=({0: batch}, {0: batch}),
            dynamo=True,
            external_data=False,
            verbose=False,
        )
    if program is None:
        raise RuntimeError("torch.onnx.export returned no program")
    model = program.model_proto
    strip(model)
    model = with_converted(model)
    onnx.helper.set_model_props(model, {CONTRACT_KEY: contract.digest})
    onnx.checker.check_model(model, full_check=True)
    path.write_bytes(model.SerializeToString())


def with_converted(model: Any) -> Any:
    """The model with the graph of a classical model in place of each node that stands for one."""
    files = {tensor.name: tensor for tensor in model.graph.initializer}
    nodes = [node for node in model.graph.node if node.domain == DOMAIN]
    if not nodes:
        return model
    versions = {opset.domain: opset.version for opset in model.opset_import}
    for file in dict.fromkeys(node.input[1] for node in nodes):
        converted = onnx.load_model_from_string(numpy_helper.to_array(files[file]).tobytes())
        imports = {opset.domain: opset.version for opset in converted.opset_import} | {"": versions[""]}
        constants = [
            helper.make_node("Constant", [], [tensor.name], value=tensor) for tensor in converted.graph.initializer
        ]
        # A function of the model, for a moment: inlining it is what renames all values within.
        function = helper.make_function(
            DOMAIN,
            file,
            [converted.graph.input[0].name, "file"],
            [converted.graph.output[0].name],
            [*constants, *converted.graph.node],
            [helper.make_opsetid(domain, version) for domain, version in imports.items()],
        )
        model.functions.append(function)
        versions = imports | versions
    for node in nodes:
        node.op_type = node.input[1]
    kept = [helper.make_opsetid(domain, version) for domain, version in versions.items()]
    del model.opset_import[:]
    model.opset_import.extend(kept)
    inlined = inline_local_functions(model)
    _forget(inlined, {node.input[1] for node in nodes})
    return inlined


def _forget(model: Any, unused: set[str]) -> None:
    """Drops these initializers, and the domain of the nodes that took them."""
    for values in (model.graph.initializer, model.graph.value_info, model.opset_import):
        kept = [value for value in values if getattr(value, "name", None) not in unused]
        kept = [value for value in kept if getattr(value, "domain", None) != DOMAIN]
        del values[:]
        values.extend(kept)


def strip(model: Any) -> None:
    """Removes what the exporter notes for its own debugging: source paths and lines of code on every node."""
    del model.metadata_props[:]
    for container in (model.graph, *model.functions):
        _strip(container)


def _strip(container: Any) -> None:
    """container: an onnx GraphProto or FunctionProto."""
    container.ClearField("doc_string")
    del container.metadata_props[:]
    for name in ("initializer", "value_info", "input", "output"):
        for value in getattr(container, name, ()):
            if not isinstance(value, str):  # a function's inputs are plain names
                value.ClearField("doc_string")
                del value.metadata_props[:]
    for node in container.node:
        node.ClearField("doc_string")
        del node.metadata_props[:]
        for attribute in node.attribute:
            if attribute.HasField("g"):
                _strip(attribute.g)


@contextmanager
def _known_warnings() -> Iterator[None]:
    """Silences what torch 2.13 says in every export and nobody here can mend."""
    registration = logging.getLogger("torch.onnx._internal.exporter._registration")
    level = registration.level
    registration.setLevel(logging.ERROR)  # "torchvision is not installed"
    try:
        with warnings.catch_warnings():
            # The exporter copies a tree specification of a class that torch itself deprecates.
            warnings.filterwarnings("ignore", r"`isinstance\(treespec, LeafSpec\)` is deprecated", FutureWarning)
            # Both inputs have the same batch: that is the point of naming it.
            warnings.filterwarnings("ignore", r"# The axis name: batch will not be used", UserWarning)
            yield
    finally:
        registration.setLevel(level)
