"""Prometheus metrics that are cheap to observe: plain Python numbers, handed to the library's own when asked for.

The library's `labels().observe()` takes locks and walks the buckets, and with several workers it also packs bytes into
a file. Here an observation is a list index and an addition; `flush` adds what is new since the last one, exactly.
One thread observes; any thread may collect or flush.
"""

from bisect import bisect_left
from collections.abc import Callable, Iterable, Sequence
from functools import cache, cached_property
from threading import Lock
from typing import Any, Self

import numpy as np
import numpy.typing as npt
from prometheus_client import Counter, Gauge, Histogram
from prometheus_client.metrics import MetricWrapperBase
from prometheus_client.metrics_core import Metric

FEW_ROWS = 8
"""Up to here a loop over floats is faster than numpy's calls."""

_flushing = Lock()


class Tally(MetricWrapperBase):
    """What is counted only ever grows and is never reset: a flush in another thread reads it and loses nothing."""

    @cached_property
    def of(self) -> Callable[..., Self]:
        """As `labels`, remembered: finding a child costs the library more than counting does."""
        return cache(self.labels)

    def flush(self) -> None:
        # `_metrics`: the library's children, one a set of labels; a copy, because another may join meanwhile.
        children: list[Any] = list(self._metrics.values()) if self._labelnames else [self]
        with _flushing:
            for child in children:
                child._write()  # noqa: SLF001

    def collect(self) -> Iterable[Metric]:
        self.flush()
        return super().collect()

    def _write(self) -> None:
        raise NotImplementedError


class CounterTally(Tally, Counter):
    def _metric_init(self) -> None:
        super()._metric_init()
        self.count = self._written = 0.0

    def inc(self, amount: float = 1, exemplar: dict[str, str] | None = None) -> None:  # noqa: ARG002  (we have none)
        self.count += amount

    def _write(self) -> None:
        count = self.count
        if count != self._written:
            super().inc(count - self._written)
            self._written = count


class GaugeTally(Tally, Gauge):
    """Of several values set between two flushes the last is written.

    source: where it is set, a flush asks it first, for labels and their values.
    """

    source: Callable[[], Iterable[tuple[tuple[str, ...], float]]] | None = None

    def _metric_init(self) -> None:
        super()._metric_init()
        self.value = 0.0
        self.sets = self._written = 0

    def flush(self) -> None:
        for labels, value in self.source() if self.source is not None else ():
            self.of(*labels).set(value)
        super().flush()

    def set(self, value: float) -> None:
        self.value = value
        self.sets += 1

    def _write(self) -> None:
        sets = self.sets
        if sets != self._written:
            super().set(self.value)
            self._written = sets


class HistogramTally(Tally, Histogram):
    def _metric_init(self) -> None:
        super()._metric_init()
        self.bounds = tuple(self._upper_bounds)  # +Inf is the last
        self.edges = np.array(self.bounds)
        self.counts = [0] * len(self.bounds)
        self.total = 0.0
        self._written = self.counts.copy(), self.total

    def observe(self, amount: float, exemplar: dict[str, str] | None = None) -> None:  # noqa: ARG002  (we have none)
        self.counts[bisect_left(self.bounds, amount)] += 1
        self.total += amount

    def observe_all(self, amounts: Sequence[float]) -> None:
        if len(amounts) <= FEW_ROWS:
            for amount in amounts:
                self.observe(amount)
            return
        places = self.edges.searchsorted(np.array(amounts))  # as bisect_left does
        self.add(np.bincount(places, minlength=len(self.bounds)).tolist(), sum(amounts))

    def add(self, counts: Sequence[int], total: float) -> None:
        """Many observations: how many fell into each bucket alone, and their sum."""
        for bucket, count in enumerate(counts):
            if count:
                self.counts[bucket] += count
        self.total += total

    def _write(self) -> None:
        counts, total = self.counts.copy(), self.total
        written_counts, written_total = self._written
        if counts == written_counts:
            return
        for bucket, count in enumerate(counts):
            if more := count - written_counts[bucket]:
                self._buckets[bucket].inc(more)
        if total != written_total:
            self._sum.inc(total - written_total)
        self._written = counts, total


def observe_columns(columns: Sequence[HistogramTally], values: npt.NDArray[np.floating[Any]]) -> None:
    """Observes a matrix, one histogram a column, all of them with the same buckets.

    values: [rows, columns]; NaN is no observation.
    """
    if len(values) <= FEW_ROWS or not columns:
        for row in values.tolist():
            for column, value in zip(columns, row, strict=True):
                if value == value:  # noqa: PLR0124  (not NaN)
                    column.observe(value)
        return
    # As bisect_left does; NaN sorts behind +Inf, into a slot of its own that nobody reads.
    slots = len(columns[0].bounds) + 1
    places = columns[0].edges.searchsorted(values) + np.arange(0, slots * len(columns), slots)
    counts = np.bincount(places.ravel(), minlength=slots * len(columns)).reshape(-1, slots)[:, :-1]
    totals = np.add.reduce(values, axis=0, dtype=np.float64, where=~np.isnan(values))
    for column, counted, total in zip(columns, counts.tolist(), totals.tolist(), strict=True):
        column.add(counted, total)
