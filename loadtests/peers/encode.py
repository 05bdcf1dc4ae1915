"""Feast's answer to the model's input tensors, from the release's contract.json alone.

What a careful team would write beside its model: ours is not imported, so that a peer runs none of our code. Values of
the request, freshness and statuses are left out, which costs a peer nothing.
"""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Columns = Mapping[str, Sequence[Any]]
"""Stored field -> one value a row, as Feast's `to_dict()` has them: None where missing, timestamps as datetime."""

DAY_S = 86_400.0
YEAR_S = 365.2425 * DAY_S
CLOCKS_DIFFER_S = 60.0
CATEGORY_MISSING, CATEGORY_UNSEEN, CATEGORIES_FROM = 0, 1, 2

CALENDAR: Mapping[str, Callable[[float], float]] = {
    "season_sin": lambda seconds: math.sin(2 * math.pi * seconds / YEAR_S),
    "season_cos": lambda seconds: math.cos(2 * math.pi * seconds / YEAR_S),
}


class Encoder:
    def __init__(self, contract: Mapping[str, Any]) -> None:
        """contract: what contract.json holds. Raises ValueError where it asks for what is left out here."""
        features = contract["schema"]["features"]
        if dropped := [feature["name"] for feature in features if feature["on_stale"] != "use"]:
            raise ValueError(f"stale values of {', '.join(dropped)} would have to be dropped: this encoder keeps them")
        numeric = [feature for feature in features if feature["kind"] != "category"]
        self.tasks: list[str] = [task["name"] for task in contract["tasks"]]
        self._width = len(numeric)
        # (column of the tensor, stored field)
        self._numbers = [(i, feature["field"]) for i, feature in enumerate(numeric) if feature["kind"] == "numeric"]
        self._elapsed = [(i, feature["field"]) for i, feature in enumerate(numeric) if feature["kind"] == "elapsed"]
        self._calendar = [
            (i, CALENDAR[feature["name"]]) for i, feature in enumerate(numeric) if feature["kind"] == "calendar"
        ]
        self._categories = [
            (feature["field"], {word: i + CATEGORIES_FROM for i, word in enumerate(feature["vocabulary"])})
            for feature in features
            if feature["kind"] == "category"
        ]

    @property
    def timestamps(self) -> list[str]:
        """The stored fields that hold moments."""
        return [field for _, field in self._elapsed]

    @classmethod
    def of_release(cls, release: Path) -> "Encoder":
        return cls(json.loads((release / "contract.json").read_bytes()))

    def encode(self, columns: Columns, as_of: float) -> dict[str, npt.NDArray[Any]]:
        """as_of: epoch seconds. numeric float32 [rows, numbers], NaN where missing; categorical int64 [rows, words]."""
        categorical = np.array([_indices(columns[field], index) for field, index in self._categories], np.int64).T
        rows = len(categorical)
        numeric = np.empty((rows, self._width), np.float64)
        numeric[:, [i for i, _ in self._numbers]] = _floats([columns[field] for _, field in self._numbers])
        if self._elapsed:
            since = as_of - _floats([_seconds(columns[field]) for _, field in self._elapsed])
            since[since < -CLOCKS_DIFFER_S] = np.nan
            numeric[:, [i for i, _ in self._elapsed]] = np.maximum(since, 0.0) / DAY_S
        for i, of in self._calendar:
            numeric[:, i] = of(as_of)
        with np.errstate(over="ignore"):
            narrow = numeric.astype(np.float32)
        narrow[~np.isfinite(narrow)] = np.nan
        return {"numeric": narrow, "categorical": np.ascontiguousarray(categorical)}


def _floats(columns: Sequence[Sequence[Any]]) -> npt.NDArray[np.float64]:
    """[rows, columns], None as NaN."""
    return np.array(columns, np.float64).T


def _seconds(moments: Sequence[datetime | None]) -> list[float | None]:
    return [None if moment is None else moment.timestamp() for moment in moments]


def _indices(words: Sequence[str | None], index: Mapping[str, int]) -> list[int]:
    return [CATEGORY_MISSING if word is None else index.get(word, CATEGORY_UNSEEN) for word in words]
