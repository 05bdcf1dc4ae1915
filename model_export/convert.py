"""Fitted LightGBM boosters and scikit-learn models to one ONNX graph: `x` [rows, C] float32 -> `raw` [rows, M].

raw has one column a model: log-odds of a probability, or the logarithm of an amount; what follows (calibration, link)
is the same for all kinds of models and not part of it.
"""

import re
from collections.abc import Sequence
from typing import Any

import lightgbm as lgb
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from feature_client.errors import RapportError

OPSETS = {"": 20, "ai.onnx.ml": 3}
"""What graphs are written for. ai.onnx.ml 3 is in every ONNX Runtime since 1.10, Triton's included."""

LIGHTGBM_OPSET = 15
"""The latest that onnxmltools' converter knows; of its graph only operators of trees are left, which are the same."""

MISSING_ZERO = 1
"""In bits 2 and 3 of LightGBM's decision_type (include/LightGBM/tree.h)."""

IR_VERSION = 10
INPUT, OUTPUT = "x", "raw"


class ConversionError(RapportError):
    """A model that ONNX cannot express, or not exactly; the message says which part of it."""


def from_boosters(boosters: Sequence[lgb.Booster]) -> onnx.ModelProto:
    """Their raw scores, before any link function, on columns of float32, as the boosters themselves give them.

    Raises ConversionError for categorical splits and for zeros that count as missing.
    """
    # Seconds to import, and needed by none but these kinds of models.
    from onnxmltools import convert_lightgbm  # noqa: PLC0415
    from onnxmltools.convert.common.data_types import FloatTensorType  # noqa: PLC0415

    converted = []
    for booster in boosters:
        exact = exact_in_float32(booster)
        inputs = [(INPUT, FloatTensorType([None, exact.num_feature()]))]
        model = convert_lightgbm(exact, initial_types=inputs, target_opset=LIGHTGBM_OPSET, zipmap=False)
        for node in model.graph.node:
            # How many training rows came by: a sixth of the file, and no runtime reads it.
            kept = [attribute for attribute in node.attribute if attribute.name != "nodes_hitrates"]
            del node.attribute[:]
            node.attribute.extend(kept)
        converted.append(model)
    return _side_by_side(converted, boosters[0].num_feature())


def from_sklearn(models: Sequence[Any], columns: int) -> onnx.ModelProto:
    """Regressors give their predictions, classifiers of two classes their decision function (log-odds).

    Raises ConversionError where skl2onnx has no converter.
    """
    from skl2onnx import to_onnx  # noqa: PLC0415  (as above)
    from skl2onnx.common.data_types import FloatTensorType  # noqa: PLC0415

    converted = []
    for model in models:
        last = model[-1] if hasattr(model, "steps") else model
        options = {id(last): {"raw_scores": True, "zipmap": False}} if hasattr(last, "classes_") else None
        try:
            converted.append(
                to_onnx(
                    model,
                    initial_types=[(INPUT, FloatTensorType([None, columns]))],
                    target_opset=OPSETS,
                    options=options,
                )
            )
        except (RuntimeError, ValueError, NameError) as exc:  # whatever a converter stumbles over
            raise ConversionError(f"{type(last).__name__} cannot be converted: {str(exc)[:200]}") from exc
    return _side_by_side(converted, columns)


def exact_in_float32(booster: lgb.Booster) -> lgb.Booster:
    """The same answers, raw, for all float32 columns, by thresholds that float32 can hold.

    A threshold rounded down splits float32 numbers as it did: none lies between the two.
    """
    lines = []
    for line in booster.model_to_string().splitlines():
        name, _, value = line.partition("=")
        if name == "threshold":
            lines.append(f"threshold={' '.join(map(repr, _rounded_down(value.split())))}")
        elif name == "objective":
            lines.append("objective=regression")  # no link function
        elif name != "tree_sizes":  # in bytes; without it, trees are read one after the other
            _check(name, value)
            lines.append(line)
    text = re.sub(r"\[objective: \w+\]", "[objective: regression]", "\n".join(lines))
    return lgb.Booster(model_str=text + "\n")


def _rounded_down(thresholds: Sequence[str]) -> list[float]:
    exact = np.array(thresholds, dtype=np.float64)
    nearest = exact.astype(np.float32)
    below = np.nextafter(nearest, np.float32(-np.inf))
    return [float(value) for value in np.where(nearest > exact, below, nearest)]


def _check(name: str, value: str) -> None:
    """A line of a booster's text. Raises ConversionError for what ONNX's trees do otherwise."""
    if name == "num_cat" and int(value):
        raise ConversionError("a categorical split: give LightGBM categories as plain numbers")
    if name == "decision_type" and any(int(decision) >> 2 & 3 == MISSING_ZERO for decision in value.split()):
        raise ConversionError("a split that takes zero for missing: fit without zero_as_missing")


def _side_by_side(models: Sequence[onnx.ModelProto], columns: int) -> onnx.ModelProto:
    """Graphs of the same `x`, whose last outputs' last columns become the columns of `raw`."""
    nodes, initializers, raws = [], [], []
    last = numpy_helper.from_array(np.array([-1], dtype=np.int64), "last_column")
    for position, model in enumerate(models):
        graph = onnx.compose.add_prefix_graph(model.graph, f"{position}/", rename_inputs=False)
        answer = graph.output[-1].name
        needed = _behind(graph, answer)
        nodes += [node for node in graph.node if needed & set(node.output)]
        initializers += [tensor for tensor in graph.initializer if tensor.name in needed]
        raws.append(f"{position}/{OUTPUT}")
        # Of a classifier's two columns the second is its decision function, the first that of the other class.
        nodes.append(helper.make_node("Gather", [answer, last.name], [raws[-1]], f"{position}/last", axis=1))
    nodes.append(helper.make_node("Concat", raws, [OUTPUT], "all", axis=1))
    graph = helper.make_graph(
        nodes,
        "models",
        [helper.make_tensor_value_info(INPUT, TensorProto.FLOAT, ["rows", columns])],
        [helper.make_tensor_value_info(OUTPUT, TensorProto.FLOAT, ["rows", len(models)])],
        [*initializers, last],
    )
    imports = [helper.make_opsetid(domain, version) for domain, version in OPSETS.items()]
    model = helper.make_model(graph, opset_imports=imports, ir_version=IR_VERSION)
    onnx.checker.check_model(model, full_check=True)
    return model


def _behind(graph: onnx.GraphProto, output: str) -> set[str]:
    """Names of all values that this one is computed from, itself included; a label, for one, is not among them."""
    makers = {name: node for node in graph.node for name in node.output}
    found: set[str] = set()
    waiting = [output]
    while waiting:
        name = waiting.pop()
        if name not in found:
            found.add(name)
            waiting += makers[name].input if name in makers else []
    return found
