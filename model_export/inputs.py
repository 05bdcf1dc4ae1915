"""The part of the network that turns raw input tensors into standardised columns, all of it inside the graph.

Everything fitted here (fills, logs, means, scales) is a buffer, so training, batch scoring and serving agree.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from feature_client.schema import FeatureSchema

EMBEDDING = 8
"""Columns of a category's embedding."""

RAW_LIMIT = 1e12
"""Raw numbers are clipped here: every ratio of clipped numbers, and its logarithm, is finite in float32."""

CLIP = 6.0
"""Standardised columns are clipped here, so that no input, however absurd, leaves the range the trunk was fitted on."""

SKEWED = 1.0
"""Columns with a larger absolute skewness on the training rows pass through a signed log1p."""


@dataclass(frozen=True)
class Ratio:
    """numerator / (|denominator| + offset); the offset is in the unit of the denominator."""

    numerator: str
    denominator: str
    offset: float = 1.0


RATIOS = (
    Ratio("spend_365d", "orders_365d"),
    Ratio("spend_90d", "orders_90d"),
    Ratio("lifetime_spend", "lifetime_orders"),
    Ratio("orders_90d", "orders_prev_90d"),
    Ratio("spend_90d", "spend_prev_90d"),
    Ratio("orders_30d", "orders_90d"),
    Ratio("orders_next30_year_ago", "orders_365d"),
    Ratio("spend_next90_year_ago", "spend_365d"),
    Ratio("returns_365d", "orders_365d"),
    Ratio("return_value_365d", "spend_365d"),
    Ratio("sessions_7d", "sessions_30d"),
    Ratio("days_since_purchase", "mean_gap_days", 7.0),
    Ratio("days_since_purchase", "tenure_days", 7.0),
    Ratio("lifetime_orders", "tenure_days", 30.0),
)
"""Ratios and trends given to the network, each wherever the schema has both features."""


def signed_log(values: Tensor) -> Tensor:
    return torch.sign(values) * torch.log1p(torch.abs(values))


class Inputs(nn.Module):
    """Raw tensors to the columns of the trunk, in two steps.

    `lift` works on one feature at a time: every lifted column belongs to one feature (`owners`). `widen` mixes
    features (the ratios). The cut between them is where explanations swap features of two customers: exact,
    because all of `lift` is element-wise, and cheap, because `lift` then runs once a row instead of once a coalition.
    """

    fill: Tensor  # [N] in place of a missing number
    logged: Tensor  # bool [N]
    mean: Tensor  # [N]
    scale: Tensor  # [N] 1 / standard deviation; 0 for columns without evidence in training, which get no influence
    absent_mean: Tensor  # [nullable]
    absent_scale: Tensor  # [nullable]
    ratio_offset: Tensor  # [R]
    ratio_mean: Tensor  # [R]
    ratio_scale: Tensor  # [R]
    nullable_at: Tensor  # int64 [nullable]
    numerator_at: Tensor  # int64 [R]
    denominator_at: Tensor  # int64 [R]
    table_at: Tensor  # int64 [K]: the first row of each category in the shared embedding table

    def __init__(self, schema: FeatureSchema) -> None:
        super().__init__()
        names = [feature.name for feature in schema.numeric]
        ratios = [ratio for ratio in RATIOS if ratio.numerator in names and ratio.denominator in names]
        nullable = [position for position, feature in enumerate(schema.numeric) if feature.nullable]
        sizes = [len(feature.vocabulary) + 2 for feature in schema.categorical]

        self.calendar = [feature.kind == "calendar" for feature in schema.numeric]
        self.defaults = [feature.default for feature in schema.numeric]
        self.table_sizes = sizes
        numerators = [ratio.numerator for ratio in ratios]
        denominators = [ratio.denominator for ratio in ratios]
        categories = [feature.name for feature in schema.categorical for _ in range(EMBEDDING)]
        self.owners = [*names, *(names[i] for i in nullable), *numerators, *denominators, *categories]
        self.lifted_widths = [len(names), len(nullable), len(ratios), len(ratios), len(categories)]
        self.width = len(names) + len(nullable) + len(ratios) + len(categories)

        self.embedding = nn.Embedding(max(sum(sizes), 1), EMBEDDING)
        nn.init.normal_(self.embedding.weight, std=0.1)
        for name, length in (("", len(names)), ("absent_", len(nullable)), ("ratio_", len(ratios))):
            self.register_buffer(f"{name}mean", torch.zeros(length))
            self.register_buffer(f"{name}scale", torch.ones(length))
        self.register_buffer("fill", torch.zeros(len(names)))
        self.register_buffer("logged", torch.zeros(len(names), dtype=torch.bool))
        self.register_buffer("ratio_offset", torch.tensor([ratio.offset for ratio in ratios]))
        self.register_buffer("nullable_at", _positions(nullable))
        self.register_buffer("numerator_at", _positions([names.index(name) for name in numerators]))
        self.register_buffer("denominator_at", _positions([names.index(name) for name in denominators]))
        self.register_buffer("table_at", _positions(np.cumsum([0, *sizes])[:-1].tolist()))

    def fit(self, numeric: npt.NDArray[np.float32], evidenced: npt.NDArray[np.bool_] | None = None) -> None:
        """Fits every buffer on training rows [rows, N]; NaN is missing.

        evidenced: bool [N], features that may have influence, by default all; of those, columns that vary have it.
        """
        raw = numeric.astype(np.float64)
        self.fill.copy_(torch.tensor([_fill(raw[:, i], default) for i, default in enumerate(self.defaults)]))
        clean = self._clean(torch.from_numpy(numeric))
        skewed = np.abs(_skewness(clean.double().numpy())) > SKEWED
        self.logged.copy_(torch.from_numpy(skewed & ~np.array(self.calendar, dtype=bool)))
        _fit_scale(self._curve(clean), self.mean, self.scale)
        _fit_scale(self._absent(torch.from_numpy(numeric)), self.absent_mean, self.absent_scale)
        ratios = self._ratios(clean.index_select(1, self.numerator_at), clean.index_select(1, self.denominator_at))
        _fit_scale(ratios, self.ratio_mean, self.ratio_scale)
        if evidenced is not None:
            known = torch.from_numpy(evidenced)
            self.scale *= known
            self.absent_scale *= known[self.nullable_at]
            self.ratio_scale *= known[self.numerator_at] & known[self.denominator_at]

    def fit_unseen(self, categorical: npt.NDArray[np.int64]) -> None:
        """Gives embeddings that no training row touched (often missing or unseen) the mean of those that were."""
        with torch.no_grad():
            for column, (start, size) in enumerate(zip(self.table_at.tolist(), self.table_sizes, strict=True)):
                counts = torch.from_numpy(np.bincount(categorical[:, column], minlength=size)).float()
                rows = self.embedding.weight[start : start + size]
                rows[counts == 0] = (counts @ rows) / counts.sum()

    def lift(self, numeric: Tensor, categorical: Tensor) -> Tensor:
        """numeric [rows, N] float32, categorical [rows, K] int64 -> [rows, lifted columns]."""
        clean = self._clean(numeric)
        columns = [
            _standardise(self._curve(clean), self.mean, self.scale),
            _standardise(self._absent(numeric), self.absent_mean, self.absent_scale),
            clean.index_select(1, self.numerator_at),
            clean.index_select(1, self.denominator_at),
            self.embedding(categorical + self.table_at).flatten(1),
        ]
        return torch.cat(columns, dim=1)

    def widen(self, lifted: Tensor) -> Tensor:
        """[rows, lifted columns] -> [rows, width]: the columns of the trunk."""
        values, absent, numerators, denominators, categories = self._split(lifted)
        return torch.cat([values, absent, self._scaled_ratios(numerators, denominators), categories], dim=-1)

    def steps(self, mixed: Tensor, customer: Tensor, reference: Tensor) -> Tensor:
        """How far the column of `widen` that each lifted column goes into moves when that lifted column alone goes from
        the reference's value to the customer's. The other half of a ratio stays the mixed row's.

        customer and reference broadcast to mixed and the answer, [..., lifted]. Differences and no derivatives: clips
        and ratios are taken as they are, however far apart the two are.
        """
        values, absent, numerators, denominators, categories = self._split(customer)
        from_values, from_absent, from_numerators, from_denominators, from_categories = self._split(reference)
        _, _, over, under, _ = self._split(mixed)
        moved = [
            values - from_values,
            absent - from_absent,
            self._scaled_ratios(numerators, under) - self._scaled_ratios(from_numerators, under),
            self._scaled_ratios(over, denominators) - self._scaled_ratios(over, from_denominators),
            categories - from_categories,
        ]
        return torch.cat(moved, dim=-1)

    def fed(self, wide: Tensor) -> Tensor:
        """[..., width] -> [..., lifted]: for each lifted column, the column of `widen` that it goes into."""
        ratios = self.lifted_widths[2]
        straight = self.lifted_widths[0] + self.lifted_widths[1]
        plain, ratio, categories = torch.split(wide, [straight, ratios, self.width - straight - ratios], dim=-1)
        return torch.cat([plain, ratio, ratio, categories], dim=-1)

    def _split(self, lifted: Tensor) -> tuple[Tensor, ...]:
        return torch.split(lifted, self.lifted_widths, dim=-1)

    def _scaled_ratios(self, numerators: Tensor, denominators: Tensor) -> Tensor:
        return _standardise(self._ratios(numerators, denominators), self.ratio_mean, self.ratio_scale)

    def _clean(self, numeric: Tensor) -> Tensor:
        return torch.where(torch.isnan(numeric), self.fill, numeric).clamp(-RAW_LIMIT, RAW_LIMIT)

    def _curve(self, clean: Tensor) -> Tensor:
        return torch.where(self.logged, signed_log(clean), clean)

    def _absent(self, numeric: Tensor) -> Tensor:
        return torch.isnan(numeric.index_select(1, self.nullable_at)).to(torch.float32)

    def _ratios(self, numerators: Tensor, denominators: Tensor) -> Tensor:
        return signed_log(numerators / (torch.abs(denominators) + self.ratio_offset))


def _positions(values: Sequence[int]) -> Tensor:
    return torch.tensor(list(values), dtype=torch.int64)


def _fill(column: npt.NDArray[np.float64], default: float | None) -> float:
    if default is not None:
        return default
    known = column[~np.isnan(column)]
    return float(np.median(known)) if len(known) else 0.0


def _skewness(columns: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    centred = columns - columns.mean(axis=0)
    spread = np.sqrt((centred**2).mean(axis=0))
    return cast("npt.NDArray[np.float64]", (centred**3).mean(axis=0) / np.maximum(spread, 1e-9) ** 3)


def _fit_scale(columns: Tensor, mean: Tensor, scale: Tensor) -> None:
    spread, centre = torch.std_mean(columns.double(), dim=0, correction=0)
    mean.copy_(centre)
    scale.copy_(torch.where(spread > 1e-6, 1.0 / spread.clamp(min=1e-6), 0.0))


def _standardise(columns: Tensor, mean: Tensor, scale: Tensor) -> Tensor:
    return ((columns - mean) * scale).clamp(-CLIP, CLIP)
