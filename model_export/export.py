"""Torch module to one self-contained ONNX file."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import onnx
import torch

from feature_client.contract import CONTRACT_KEY, Contract
from model_export.attribution import ExplainedNetwork
from model_export.network import Network

SCORE_OUTPUTS = ("scores",)
EXPLAIN_OUTPUTS = ("scores", "attributions", "base", "margins", "margin_attributions", "margin_base")


def export(module: Network | ExplainedNetwork, contract: Contract, path: Path) -> None:
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
    onnx.helper.set_model_props(model, {CONTRACT_KEY: contract.digest})
    onnx.checker.check_model(model, full_check=True)
    path.write_bytes(model.SerializeToString())


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
