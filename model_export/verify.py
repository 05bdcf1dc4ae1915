"""Holds the exported graphs against torch, on real rows and hostile ones, before anybody can serve them."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnxruntime
import torch

from feature_client.contract import attribution_scale, discrepancy
from feature_client.errors import RapportError
from feature_client.golden import SPLIT_UP, golden_name
from feature_client.triton_config import EXPLAIN_MAX_ROWS
from model_export.attribution import ExplainedNetwork
from model_export.export import EXPLAIN_OUTPUTS, SCORE_OUTPUTS
from model_export.scorer import Scorer

BATCHES = (1, 2, 7, 32, 64, 256)
GOLDEN_ROWS = 16

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]


class ParityError(RapportError):
    """An exported graph that does not say what the trained network says; the message has the figures."""


@dataclass(frozen=True)
class Parity:
    """The worst discrepancies of all graphs, in scores and margins, in units of what is allowed (at most 1)."""

    scores: float
    attributions: float
    additivity: float


@dataclass(frozen=True)
class Graphs:
    """The graphs of a release, with the torch modules they were exported from; of explanations, by explainer."""

    network: Scorer
    score_file: Path
    explained: Mapping[str, ExplainedNetwork]
    explain_files: Mapping[str, Path]


class Session:
    """One graph in ONNX Runtime, on one CPU thread: the golden answers shall not depend on a machine's cores."""

    def __init__(self, path: Path, outputs: tuple[str, ...]) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self._session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        self._outputs = outputs

    def run(self, numeric: Floats, categorical: Ints) -> dict[str, Floats]:
        answers = self._session.run(list(self._outputs), {"numeric": numeric, "categorical": categorical})
        return dict(zip(self._outputs, answers, strict=True))


def verify(graphs: Graphs, numeric: Floats, categorical: Ints) -> Parity:
    """numeric [rows, N], categorical [rows, K]: real rows, repeated where a batch needs more. Raises ParityError."""
    score = Session(graphs.score_file, SCORE_OUTPUTS)
    explain = {name: Session(path, EXPLAIN_OUTPUTS) for name, path in graphs.explain_files.items()}
    batches = [(numeric[rows], categorical[rows]) for rows in (np.arange(size) % len(numeric) for size in BATCHES)]
    batches.append(hostile_rows(graphs.network, numeric.shape[1]))
    worst = {"scores": 0.0, "attributions": 0.0, "additivity": 0.0}
    for batch in batches:
        answers = score.run(*batch)
        with torch.no_grad():
            expected = graphs.network(*map(torch.from_numpy, batch)).numpy()
        _hold(worst, "scores", f"batch of {len(batch[0])}", discrepancy(answers["scores"], expected))
        if len(batch[0]) <= EXPLAIN_MAX_ROWS:
            for name, session in explain.items():
                what = f"{name} explanations of a batch of {len(batch[0])}"
                found = session.run(*batch)
                _hold(worst, "scores", what, discrepancy(found["scores"], answers["scores"]))
                _verify_explanation(graphs.explained[name], found, batch, what, worst)
    return Parity(**worst)


def hostile_rows(network: Scorer, width: int) -> tuple[Floats, Ints]:
    """All missing, the ends of float32, zeros; categories missing, unseen and the last of each vocabulary."""
    largest = np.finfo(np.float32).max
    values = [np.nan, largest, -largest, 0.0, -1.0, 1e6]
    last = [size - 1 for size in network.inputs.table_sizes]
    kinds = [[0] * len(last), [min(1, size) for size in last], last]
    numeric = np.repeat(np.array(values, dtype=np.float32)[:, None], width, axis=1)
    alternating = np.where(np.arange(width) % 2, largest, np.nan).astype(np.float32)[None]
    numeric = np.concatenate([numeric, alternating])
    categorical = np.array([kinds[row % len(kinds)] for row in range(len(numeric))], dtype=np.int64)
    return numeric, categorical.reshape(len(numeric), len(last))


def write_golden(graphs: Graphs, numeric: Floats, categorical: Ints, path: Path) -> None:
    """Real rows and an all-missing one with ONNX Runtime's answers: what every backend must reproduce."""
    rows = min(GOLDEN_ROWS, len(numeric))
    nothing = np.full((1, numeric.shape[1]), np.nan, dtype=np.float32)
    inputs = np.concatenate([numeric[:rows], nothing])
    categories = np.concatenate([categorical[:rows], np.zeros((1, categorical.shape[1]), dtype=np.int64)])
    answers = Session(graphs.score_file, SCORE_OUTPUTS).run(inputs, categories)
    for explainer, graph in graphs.explain_files.items():
        explained = Session(graph, EXPLAIN_OUTPUTS).run(inputs, categories)
        answers |= {golden_name(explainer, output): values for output, values in explained.items()}
    np.savez(path, numeric=inputs, categorical=categories, **answers)  # type: ignore[arg-type]


def _verify_explanation(
    explained: ExplainedNetwork,
    answers: dict[str, Floats],
    batch: tuple[Floats, Ints],
    what: str,
    worst: dict[str, float],
) -> None:
    with torch.no_grad():
        outputs = [output.numpy() for output in explained(*map(torch.from_numpy, batch))]
    expected = dict(zip(EXPLAIN_OUTPUTS, outputs, strict=True))
    for whole, parts in (("scores", "attributions"), ("margins", "margin_attributions")):
        base = SPLIT_UP[parts]
        for output in (whole, base):
            _hold(worst, "scores", what, discrepancy(answers[output], expected[output]))
        scale = attribution_scale(expected[parts], expected[base])
        _hold(worst, "attributions", what, discrepancy(answers[parts], expected[parts], scale))
        total = answers[base] + answers[parts].sum(axis=-1, dtype=np.float64)
        _hold(worst, "additivity", what, discrepancy(total, answers[whole], scale[..., 0]))


def _hold(worst: dict[str, float], figure: str, what: str, found: npt.NDArray[np.float64]) -> None:
    largest = float(found.max())
    if not largest <= 1.0:  # also true of NaN
        raise ParityError(f"{figure}, {what}: the worst difference is {largest:.3g} times what is allowed")
    worst[figure] = max(worst[figure], largest)
