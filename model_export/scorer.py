"""What explanations, exports and releases need of a model, of whatever kind: the network, or one of `classical`."""

from collections.abc import Sequence
from typing import Any, Protocol

from torch import Tensor


class Lifted(Protocol):
    """Raw tensors to columns that each belong to one feature: there, explanations swap the features of two customers.

    owners [L]: the feature of each lifted column. table_sizes [K]: indices of each category.
    """

    owners: list[str]
    table_sizes: list[int]

    def lift(self, numeric: Tensor, categorical: Tensor) -> Tensor:
        """numeric [rows, N] float32, NaN is missing; categorical [rows, K] int64 -> [rows, L] float32, all finite."""


class Scorer(Protocol):
    """A torch module: numeric, categorical -> scores [rows, T]. kinds [T]: `probability` or `amount`."""

    @property
    def kinds(self) -> Sequence[str]: ...

    @property
    def inputs(self) -> Lifted: ...

    def outcomes(self, lifted: Tensor) -> tuple[Tensor, Tensor]:
        """[rows, L] -> scores and margins, each [rows, T]."""

    def __call__(self, numeric: Tensor, categorical: Tensor) -> Tensor: ...

    def state_dict(self) -> dict[str, Any]: ...

    def eval(self) -> Any: ...


class Calibrated(Scorer, Protocol):
    """What `train.calibrate` fits. slope, shift [T]: of logits; shift also of the logarithms of amounts."""

    slope: Tensor
    shift: Tensor

    def raw(self, lifted: Tensor) -> list[Tensor]:
        """What each task's head says before its link function and calibration: T tensors [rows, head width]."""
