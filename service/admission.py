"""Who gets in: a request brings its deadline and its rows; more rows than can be answered are refused at the door."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from service.errors import DeadlineExceeded, InvalidRequest, Overloaded
from service.metrics import Metrics


@dataclass(frozen=True)
class Deadline:
    """An instant of the monotonic clock; every wait of a request is bounded by what is left of it."""

    at: float

    @classmethod
    def after(cls, seconds: float) -> "Deadline":
        return cls(time.monotonic() + seconds)

    @classmethod
    def from_header(cls, header: str | None, default_ms: int, max_ms: int, started: float) -> "Deadline":
        """X-Deadline-Ms: whole milliseconds from 1 to `max_ms`, counted from `started`. Raises InvalidRequest."""
        if header is None:
            return cls(started + default_ms / 1_000)
        if not (header.isascii() and header.isdigit() and len(header) <= 9 and 1 <= int(header) <= max_ms):
            raise InvalidRequest(f"X-Deadline-Ms takes whole milliseconds from 1 to {max_ms}")
        return cls(started + int(header) / 1_000)

    def left_s(self) -> float:
        """Raises DeadlineExceeded where nothing is left, so that late work is not started."""
        left = self.at - time.monotonic()
        if left <= 0:
            raise DeadlineExceeded
        return left


class Admission:
    """Counts rows, not requests, in two lanes: explain has its own limit, so it can never crowd out predict."""

    def __init__(self, limits: dict[str, int], metrics: Metrics) -> None:
        self.limits = limits
        self.rows = dict.fromkeys(limits, 0)
        self.metrics = metrics

    @contextmanager
    def admit(self, lane: str, rows: int) -> Iterator[None]:
        """Raises Overloaded."""
        if self.rows[lane] + rows > self.limits[lane]:
            self.metrics.shed(lane, "inflight_rows")
            raise Overloaded
        self._add(lane, rows)
        try:
            yield
        finally:
            self._add(lane, -rows)

    def _add(self, lane: str, rows: int) -> None:
        self.rows[lane] += rows
        self.metrics.inflight(lane, self.rows[lane])
