"""Golden rows: inputs with the answers that every backend must give for them before it may answer anybody."""

import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from feature_client.contract import attribution_scale, discrepancy
from feature_client.errors import RapportError

INPUTS = ("numeric", "categorical")
OUTPUTS = ("scores", "attributions", "base")

Tensors = Mapping[str, npt.NDArray[Any]]


class GoldenError(RapportError):
    """Golden rows that cannot be read, or answers that differ from theirs."""


@dataclass(frozen=True, eq=False)
class Golden:
    """tensors: numeric [rows, N], categorical [rows, K]. answers: scores [rows, T], attributions [rows, T, G],
    base [rows, T]."""

    tensors: Tensors
    answers: Tensors

    def __len__(self) -> int:
        return len(self.answers["scores"])

    @classmethod
    def read(cls, path: Path) -> "Golden":
        """Raises GoldenError where the file does not hold as many rows of every input and output, and some."""
        try:
            with np.load(path, allow_pickle=False) as file:
                arrays = {name: file[name] for name in (*INPUTS, *OUTPUTS)}
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as exc:
            raise GoldenError(f"{path.name} cannot be read: {exc}") from exc
        rows = {len(array) for array in arrays.values() if array.ndim > 0}
        if len(rows) != 1 or rows == {0} or any(array.ndim == 0 for array in arrays.values()):
            raise GoldenError(f"{path.name} has no rows, or not as many of each")
        return cls({name: arrays[name] for name in INPUTS}, {name: arrays[name] for name in OUTPUTS})

    def check(self, outputs: Tensors) -> None:
        """outputs: what a backend gave for `tensors`, of the right shapes. Raises GoldenError (NaN never passes)."""
        scale = attribution_scale(self.answers["attributions"], self.answers["base"])
        for name, values in outputs.items():
            size = scale if name == "attributions" else 0.0
            if not (discrepancy(values, self.answers[name], size) <= 1).all():
                raise GoldenError(f"{name} differ from the golden answers")
