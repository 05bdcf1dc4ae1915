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
from torch.nn.functional import pad, silu, softplus

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

    def fit_inputs(
        self,
        numeric: npt.NDArray[np.float32],
        labels: npt.NDArray[np.float32],
        evidenced: npt.NDArray[np.bool_] | None = None,
    ) -> None:
        """Fits the preprocessing and the range of the amounts on training rows; labels [rows, T]. evidenced: as in
        `Inputs.fit`."""
        self.inputs.fit(numeric, evidenced)
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
        return self._link(self.raw(lifted))

    def _link(self, raws: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        scores, margins = [], []
        for task, raw in enumerate(raws):
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

    def slopes(self, lifted: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Scores and margins [rows, T], and the derivatives of the margins by the columns of `Inputs.widen`
        [rows, T, width].

        Backpropagation written out, for graphs that cannot export autograd: of `raw`, without its dropout.
        """
        x0 = self.inputs.widen(lifted)
        crossed, factors = [x0], []
        for layer in self.crosses:
            factors.append(layer(crossed[-1]))
            crossed.append(x0 * factors[-1] + crossed[-1])
        deep, before = x0, []
        for layer in self.hidden:
            before.append(layer(deep))
            deep = silu(before[-1])
        raws = torch.split(self.heads(torch.cat([crossed[-1], deep], dim=1)), self.head_widths, dim=1)

        by_heads = self._link_slopes(raws) @ self.heads.weight  # [rows, T, width + WIDTH]
        by_crossed, by_deep = torch.split(by_heads, [x0.shape[1], deep.shape[1]], dim=2)
        for layer, preactivation in zip(reversed(self.hidden), reversed(before), strict=True):
            gate = torch.sigmoid(preactivation)
            by_deep = (by_deep * (gate * (1 + preactivation * (1 - gate)))[:, None]) @ layer.get_parameter("weight")
        by_x0 = by_deep
        for layer, factor in zip(reversed(self.crosses), reversed(factors), strict=True):
            by_x0 = by_x0 + by_crossed * factor[:, None]
            by_crossed = by_crossed + (by_crossed * x0[:, None]) @ layer.get_parameter("weight")
        return (*self._link(raws), by_x0 + by_crossed)

    def score_slopes(self, scores: Tensor) -> Tensor:
        """The derivatives of the scores by their margins: [rows, T]."""
        columns = zip(self.kinds, torch.split(scores, 1, dim=1), strict=True)
        return torch.cat([score * (1 - score) if kind == "probability" else score for kind, score in columns], dim=1)

    def _link_slopes(self, raws: Sequence[Tensor]) -> Tensor:
        """The derivatives of the margins by what the heads say: [rows, T, sum of head widths]."""
        rows, before, after = [], 0, sum(self.head_widths)
        for task, raw in enumerate(raws):
            after -= raw.shape[1]
            if self.kinds[task] == "probability":
                slope = self.slope[task].expand_as(raw)
            else:
                logit, mu, sigma = self.ziln(task, raw)
                below = (mu + sigma * sigma / 2 + self.shift[task] < self.log_ceiling[task]).to(raw.dtype)
                by_sigma = sigma * (sigma - SIGMA_MIN) * (SIGMA_MAX - sigma) / (SIGMA_MAX - SIGMA_MIN)
                slope = torch.cat([torch.sigmoid(-logit), below * self.log_spread[task], below * by_sigma], dim=1)
            rows.append(pad(slope, (before, after)))
            before += raw.shape[1]
        return torch.stack(rows, dim=1)

    def ziln(self, task: int, raw: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """raw [rows, 3] -> logit of a positive amount, mu and sigma of its logarithm, each [rows, 1]."""
        logit, mu, sigma = torch.split(raw, 1, dim=1)
        bounded = SIGMA_MIN + (SIGMA_MAX - SIGMA_MIN) * torch.sigmoid(sigma)
        return logit, self.log_mean[task] + self.log_spread[task] * mu, bounded
