"""LightGBM and scikit-learn models as torch modules, so that all that is done with the network is done with them.

The fitted models are one ONNX graph (`convert`), kept as bytes in a buffer: it is saved, hashed and read back with the
other weights, and nothing is pickled. In torch it runs in ONNX Runtime. An export writes a node in its place, which
`export` replaces by the graph itself.
"""

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import torch
from torch import Tensor, nn

from feature_client.contract import Task
from feature_client.schema import FeatureSchema
from model_export.columns import Columns
from model_export.convert import INPUT, OUTPUT

DOMAIN, OPERATOR = "rapport", "Converted"
"""Of the node that stands for the graph in an export: inputs x and the file's bytes, output raw."""

CONVERTED = "converted"
"""The buffer; and what tells the weights of a classical model from a network's."""

FURTHER = 1.0
"""An amount's logarithm goes no further than this beyond the largest in training, as the network's."""


class Classical(nn.Module):
    """numeric [B, N] float32 (NaN is missing), categorical [B, K] int64 -> scores [B, T] float32."""

    converted: Tensor  # uint8 [bytes]: x [rows, inputs.width] -> raw [rows, T]
    smooth: Tensor  # bool: of the columns
    slope: Tensor  # [T] calibration: of the logit of a probability
    shift: Tensor  # [T] calibration: of the logit of a probability, of the log of an amount
    log_ceiling: Tensor  # [T] no amount is predicted above exp(ceiling)

    def __init__(self, columns: Columns, tasks: Sequence[Task], converted: Tensor) -> None:
        super().__init__()
        self.kinds = [task.kind for task in tasks]
        self.inputs = columns
        self.register_buffer(CONVERTED, converted)
        self.register_buffer("smooth", torch.tensor(columns.smooth))
        for name, value in (("slope", 1.0), ("shift", 0.0), ("log_ceiling", 20.0)):
            self.register_buffer(name, torch.full((len(tasks),), value))

    @classmethod
    def of(
        cls, columns: Columns, tasks: Sequence[Task], model: onnx.ModelProto, labels: npt.NDArray[np.float32]
    ) -> "Classical":
        """model: as `convert` makes them, one column a task. labels [rows, T]: of the training rows."""
        file = torch.from_numpy(np.frombuffer(model.SerializeToString(), dtype=np.uint8).copy())
        scorer = cls(columns, tasks, file)
        for task, kind in enumerate(scorer.kinds):
            positive = labels[labels[:, task] > 0, task]
            if kind == "amount" and len(positive):
                scorer.log_ceiling[task] = float(np.log(positive.max(), dtype=np.float64)) + FURTHER
        return scorer.eval()

    @classmethod
    def from_state(cls, schema: FeatureSchema, tasks: Sequence[Task], state: Mapping[str, Tensor]) -> "Classical":
        """state: of `state_dict`. Raises KeyError, RuntimeError where it is of another model."""
        scorer = cls(Columns(schema, smooth=bool(state["smooth"])), tasks, state[CONVERTED])
        scorer.load_state_dict(dict(state))
        return scorer.eval()

    def forward(self, numeric: Tensor, categorical: Tensor) -> Tensor:
        return self.outcomes(self.inputs.lift(numeric, categorical))[0]

    def outcomes(self, lifted: Tensor) -> tuple[Tensor, Tensor]:
        """Scores and margins of lifted columns, each [rows, T]: as the network's, log-odds and logarithms."""
        scores, margins = [], []
        for task, raw in enumerate(self.raw(lifted)):
            if self.kinds[task] == "probability":
                margins.append(raw * self.slope[task] + self.shift[task])
                scores.append(torch.sigmoid(margins[-1]))
            else:
                margins.append(torch.minimum(raw + self.shift[task], self.log_ceiling[task]))
                scores.append(torch.exp(margins[-1]))
        return torch.cat(scores, dim=1), torch.cat(margins, dim=1)

    def raw(self, lifted: Tensor) -> list[Tensor]:
        """What each task's model says before its link function and calibration: T tensors [rows, 1]."""
        columns = self.inputs.widen(lifted)
        if torch.onnx.is_in_onnx_export():
            shape = (columns.shape[0], len(self.kinds))
            name = f"{DOMAIN}::{OPERATOR}"
            given = (columns, self.converted)
            raws = torch.onnx.ops.symbolic(name, given, dtype=torch.float32, shape=shape, version=1)
        else:
            session = _session(self.converted.numpy().tobytes())
            raws = torch.from_numpy(session.run([OUTPUT], {INPUT: columns.numpy()})[0])
        return list(torch.split(raws, 1, dim=1))


@lru_cache(maxsize=4)
def _session(file: bytes) -> Any:
    options = onnxruntime.SessionOptions()
    # One, as torch's here: sums must not depend on the number of cores.
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
