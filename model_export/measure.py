"""Forecasts of the test rows to figures: of one model, of its difference to another, whole and by slice."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from feature_client.contract import Task
from feature_client.schema import FloatArray
from model_export.baselines import Forecast
from model_export.evaluate import amount_cap, amount_quality, probability_quality
from model_export.resampling import Interval, draws
from model_export.rows import Rows

PROBABILITY, AMOUNT = ("auc", "ap", "ece"), ("rmse_log", "spearman", "rmse_capped", "sum_ratio")
"""The figures of a task, by its kind, in the order in which they are stated."""


@dataclass(frozen=True)
class Measured:
    """model -> [figures] in the order of `keys`, and each model's, and its difference to the first model's, over the
    same draws of customers [draws, figures]."""

    figures: Mapping[str, FloatArray]
    drawn: Mapping[str, FloatArray]

    def interval(self, model: str, figure: int) -> Interval:
        return Interval.of(self.drawn[model][:, figure])

    def difference(self, model: str, other: str, figure: int) -> Interval:
        return Interval.of(self.drawn[model][:, figure] - self.drawn[other][:, figure])


def keys(tasks: Sequence[Task]) -> list[tuple[str, str]]:
    """(task, figure), in the order of all arrays of figures."""
    return [(task.name, name) for task in tasks for name in (AMOUNT if task.kind == "amount" else PROBABILITY)]


class Measure:
    """Figures of forecasts of `rows`. A model that was fitted with several seeds has the median of their figures."""

    def __init__(self, rows: Rows, tasks: Sequence[Task]) -> None:
        self._rows, self._tasks = rows, tasks
        self._labels = rows.labels.astype(np.float64)
        # Fixed, so that all draws are measured alike.
        self._caps = [amount_cap(self._labels[:, place]) for place in range(len(tasks))]

    @property
    def caps(self) -> Mapping[str, float]:
        """task -> where its amounts are cut off."""
        return {task.name: cap for task, cap in zip(self._tasks, self._caps, strict=True) if task.kind == "amount"}

    def one(self, forecast: Forecast, rows: npt.NDArray[np.int64]) -> FloatArray:
        """[figures] over these rows."""
        found: list[float] = []
        for place, task in enumerate(self._tasks):
            kept = rows[self._rows.eligible[rows, place]]
            score, label = forecast.scores[kept, place], self._labels[kept, place]
            if task.kind == "amount":
                quality = amount_quality(score, forecast.logs[kept, place], label, self._caps[place])
            else:
                quality = probability_quality(score, label)
            found += quality.values()
        return np.array(found)

    def median(self, forecasts: Sequence[Forecast], rows: npt.NDArray[np.int64]) -> FloatArray:
        return np.median([self.one(forecast, rows) for forecast in forecasts], axis=0)

    def all(
        self, models: Mapping[str, Sequence[Forecast]], count: int, within: npt.NDArray[np.int64] | None = None
    ) -> Measured:
        """within: a slice, by default all rows. count: of draws; every model is measured on the same ones."""
        within = np.arange(len(self._rows)) if within is None else within
        drawn: dict[str, list[FloatArray]] = {name: [] for name in models}
        for rows in tqdm(self._draws(within, count), total=count, desc="bootstrap", unit=" draws", leave=False):
            for name, forecasts in models.items():
                drawn[name].append(self.median(forecasts, rows))
        figures = {name: self.median(forecasts, within) for name, forecasts in models.items()}
        return Measured(figures, {name: np.stack(values) for name, values in drawn.items()})

    def _draws(self, within: npt.NDArray[np.int64], count: int) -> Iterator[npt.NDArray[np.int64]]:
        for rows in draws(self._rows.customers[within], count, seed=0):
            yield within[rows]
