"""The multi-task network: one shared trunk, one head a task, scores in each task's own unit.

Trunk: DCN-v2 cross layers beside an MLP (Wang et al. 2021, "DCN V2", arXiv 2008.13535, the parallel form).
Amounts: a zero-inflated log-normal head (Wang et al. 2019, "A Deep Probabilistic Model for Customer Lifetime Value
Prediction", arXiv 1912.07753). SiLU throughout: a smooth network has smooth attributions.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn.functional import silu, softplus

from feature_client.contract import Task
from feature_client.schema import FeatureSchema
from model_export.inputs import Inputs

WIDTH = 64
"""Units of the MLP. Small on purpose: an exact explanation runs the trunk 2^groups x background rows times."""

CROSS_LAYERS = 2
DROPOUT = 0.1

SIGMA_MIN, SIGMA_MAX = 0.1, 2.0
"""Bounds of the log-normal's sigma: its mean is at most exp(sigma^2 / 2) = 7.4 times its median."""

HEAD_WIDTHS = {"probability": 1, "amount": 3}


class Network(nn.Module):
    """numeric [B, N] float32 (NaN is missing), categorical [B, K] int64 -> scores [B, T] float32."""

    slope: Tensor  # [T] calibration: of the logit of a probability
    shift: Tensor  # [T] calibration: of the logit of a probability, of the log of an amount
    log_mean: Tensor  # [T] of the positive amounts in training
    log_spread: Tensor  # [T]
    log_ceiling: Tensor  # [T] no amount is predicted above exp(ceiling)

    def __init__(self, schema: FeatureSchema, tasks: Sequence[Task]) -> None:
        super().__init__()
        self.kinds = [task.kind for task in tasks]
        self.head_widths = [HEAD_WIDTHS[kind] for kind in self.kinds]
        self.inputs = Inputs(schema)
        width = self.inputs.width
        self.crosses = nn.ModuleList(nn.Linear(width, width) for _ in range(CROSS_LAYERS))
        self.hidden = nn.ModuleList([nn.Linear(width, WIDTH), nn.Linear(WIDTH, WIDTH)])
        self.dropout = nn.Dropout(DROPOUT)
        self.heads = nn.Linear(width + WIDTH, sum(self.head_widths))
        for name, value in (("slope", 1.0), ("shift", 0.0), ("log_mean", 0.0), ("log_spread", 1.0)):
            self.register_buffer(name, torch.full((len(tasks),), value))
        self.register_buffer("log_ceiling", torch.full((len(tasks),), 20.0))

    def fit_inputs(self, numeric: npt.NDArray[np.float32], labels: npt.NDArray[np.float32]) -> None:
        """Fits the preprocessing and the range of the amounts on training rows; labels [rows, T]."""
        self.inputs.fit(numeric)
        for task, kind in enumerate(self.kinds):
            positive = labels[labels[:, task] > 0, task].astype(np.float64)
            if kind == "amount" and len(positive):
                logs = np.log(positive)
                self.log_mean[task] = float(logs.mean())
                self.log_spread[task] = max(float(logs.std()), 0.1)
                self.log_ceiling[task] = float(logs.max()) + 1.0

    def forward(self, numeric: Tensor, categorical: Tensor) -> Tensor:
        return self.score(self.inputs.lift(numeric, categorical))

    def score(self, lifted: Tensor) -> Tensor:
        """The rest of forward, from lifted columns (see Inputs): [rows, lifted] -> [rows, T]."""
        return self.outcomes(lifted)[0]

    def outcomes(self, lifted: Tensor) -> tuple[Tensor, Tensor]:
        """Scores and margins of lifted columns, each [rows, T].

        The margin is where a score is made by adding: the log-odds of a probability, after calibration, and the
        logarithm of an amount.
        """
        scores, margins = [], []
        for task, raw in enumerate(self.raw(lifted)):
            if self.kinds[task] == "probability":
                margin = raw * self.slope[task] + self.shift[task]
                scores.append(torch.sigmoid(margin))
            else:
                logit, mu, sigma = self.ziln(task, raw)
                log_amount = mu + sigma * sigma / 2 + self.shift[task]
                # log(sigmoid) and not sigmoid: ONNX Runtime's has an absolute error of 1e-8, too much for rare amounts.
                log_chance = -softplus(-logit)
                margin = log_chance + torch.minimum(log_amount, self.log_ceiling[task])
                scores.append(torch.exp(margin))
            margins.append(margin)
        return torch.cat(scores, dim=1), torch.cat(margins, dim=1)

    def raw(self, lifted: Tensor) -> list[Tensor]:
        """What each head says before its link function and calibration: T tensors [rows, head width]."""
        x0 = self.inputs.widen(lifted)
        crossed = x0
        for layer in self.crosses:
            crossed = x0 * layer(crossed) + crossed
        deep = x0
        for layer in self.hidden:
            deep = self.dropout(silu(layer(deep)))
        heads = self.heads(torch.cat([crossed, deep], dim=1))
        return list(torch.split(heads, self.head_widths, dim=1))

    def ziln(self, task: int, raw: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """raw [rows, 3] -> logit of a positive amount, mu and sigma of its logarithm, each [rows, 1]."""
        logit, mu, sigma = torch.split(raw, 1, dim=1)
        bounded = SIGMA_MIN + (SIGMA_MAX - SIGMA_MIN) * torch.sigmoid(sigma)
        return logit, self.log_mean[task] + self.log_spread[task] * mu, bounded
