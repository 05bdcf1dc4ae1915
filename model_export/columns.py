"""Raw input tensors to the columns of classical models, inside the graph.

A tree's answer jumps where a column crosses a threshold, so two runtimes must agree on every bit of every column that
trees see. Those are raw numbers, and ratios by one addition and one division, which IEEE 754 rounds alike everywhere;
logarithms, whose last bit differs from library to library, are for linear models alone (`smooth`).
"""

from typing import cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from feature_client.schema import FeatureSchema
from model_export.boosted import ratio_columns
from model_export.inputs import signed_log

LOG_LIMIT = 100.0
"""Beyond the logarithm of any float32."""


class Columns(nn.Module):
    """`lift` works on one feature at a time, `widen` forms the ratios (as in `Inputs`, which is the network's).

    Lifted: numbers [N], 0 in place of a missing one without a default; whether those are missing [N], 0 or 1; the
    indices of categories [K]. No lifted column is NaN: rows of explanations are compared and averaged.

    Widened, for trees: the columns of `boosted.matrix`, bit for bit. `smooth`: signed logarithms of all numbers but
    the calendar's, whether they are missing, signed logarithms of ratios, indices of categories; never NaN, and all
    numbers within what `fit` saw, so that no input, however absurd, takes a linear model where it was not fitted.
    """

    defaults: Tensor  # [N]; 0 for a feature that has none
    optional: Tensor  # bool [N]: has none
    logged: Tensor  # bool [N], where `smooth`
    offsets: Tensor  # [R]
    numerator_at: Tensor  # int64 [R]
    denominator_at: Tensor  # int64 [R]
    low: Tensor  # [numbers], where `smooth`
    high: Tensor  # [numbers], where `smooth`

    def __init__(self, schema: FeatureSchema, *, smooth: bool) -> None:
        super().__init__()
        names = [feature.name for feature in schema.numeric]
        categories = [feature.name for feature in schema.categorical]
        ratios = ratio_columns(schema)
        self.smooth = smooth
        self.owners = [*names, *names, *categories]
        self.table_sizes = [len(feature.vocabulary) + 2 for feature in schema.categorical]
        self.lifted_widths = [len(names), len(names), len(categories)]
        self.numbers = len(names) * (2 if smooth else 1) + len(ratios)
        """Of the widened columns; the categories come after them."""
        self.width = self.numbers + len(categories)
        for name, values in (
            ("defaults", [feature.default or 0.0 for feature in schema.numeric]),
            ("offsets", [ratio.offset for ratio in ratios]),
        ):
            self.register_buffer(name, torch.tensor(values, dtype=torch.float32))
        for name, flags in (
            ("optional", [feature.default is None for feature in schema.numeric]),
            ("logged", [feature.kind != "calendar" for feature in schema.numeric]),
        ):
            self.register_buffer(name, torch.tensor(flags, dtype=torch.bool))
        for name, sources in (
            ("numerator_at", [ratio.numerator for ratio in ratios]),
            ("denominator_at", [ratio.denominator for ratio in ratios]),
        ):
            self.register_buffer(name, torch.tensor([names.index(source) for source in sources], dtype=torch.int64))
        if smooth:
            self.register_buffer("low", torch.full((self.numbers,), -LOG_LIMIT))
            self.register_buffer("high", torch.full((self.numbers,), LOG_LIMIT))

    def fit(self, numeric: npt.NDArray[np.float32], categorical: npt.NDArray[np.int64]) -> None:
        """The range of each widened number, where `smooth`. Fitted rows: numeric [rows, N], categorical [rows, K]."""
        if self.smooth:
            seen = self.of(numeric, categorical)[:, : self.numbers]
            self.low.copy_(torch.from_numpy(seen.min(axis=0)))
            self.high.copy_(torch.from_numpy(seen.max(axis=0)))

    def lift(self, numeric: Tensor, categorical: Tensor) -> Tensor:
        """numeric [rows, N] float32, categorical [rows, K] int64 -> [rows, L]."""
        missing = torch.isnan(numeric)
        numbers = torch.where(missing, self.defaults, numeric)
        return torch.cat([numbers, (missing & self.optional).to(numeric.dtype), categorical.to(numeric.dtype)], dim=1)

    def widen(self, lifted: Tensor) -> Tensor:
        """[rows, L] -> [rows, width]."""
        numbers, missing, categories = torch.split(lifted, self.lifted_widths, dim=-1)
        if not self.smooth:
            # The root of -1 is NaN, of -0 it is -0, which adds nothing; gateways take no graph with a NaN in it.
            numbers = numbers + torch.sqrt(-(missing > 0.5).to(numbers.dtype))
            return torch.cat([numbers, self._ratios(numbers), categories], dim=-1)
        curved = torch.where(self.logged, signed_log(numbers), numbers)
        known = torch.cat([curved, missing, signed_log(self._ratios(numbers))], dim=-1)
        return torch.cat([torch.minimum(torch.maximum(known, self.low), self.high), categories], dim=-1)

    def of(self, numeric: npt.NDArray[np.float32], categorical: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        """Rows of raw inputs -> [rows, width]: what a model is fitted to."""
        with torch.no_grad():
            lifted = self.lift(torch.from_numpy(numeric), torch.from_numpy(categorical))
            return cast("npt.NDArray[np.float32]", self.widen(lifted).numpy())

    def _ratios(self, numbers: Tensor) -> Tensor:
        denominators = torch.abs(numbers.index_select(-1, self.denominator_at)) + self.offsets
        return numbers.index_select(-1, self.numerator_at) / denominators
