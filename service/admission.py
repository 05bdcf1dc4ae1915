"""Who gets in: a request brings its deadline and its rows; more rows than can be answered are refused at the door."""

import math
import time
from typing import NoReturn

from service.errors import InvalidRequest, Overloaded
from service.metrics import Metrics


def deadline_of(header: bytes | None, default_ms: int, max_ms: int, started: float) -> float:
    """The monotonic instant by which a request is answered or given up, counted from `started`.

    header: X-Deadline-Ms, whole milliseconds from 1 to `max_ms`. Raises InvalidRequest.
    """
    if header is None:
        return started + default_ms / 1_000
    if not (header.isdigit() and len(header) <= 9 and 1 <= int(header) <= max_ms):
        raise InvalidRequest(f"X-Deadline-Ms takes whole milliseconds from 1 to {max_ms}")
    return started + int(header) / 1_000


class Admission:
    """Counts rows, not requests, in two lanes: explain has its own limit, so it can never crowd out predict."""

    def __init__(self, limits: dict[str, int], metrics: Metrics) -> None:
        self.limits = limits
        self.rows = dict.fromkeys(limits, 0)
        self.metrics = metrics
        metrics.inflight(self.rows)

    def enter(self, lane: str, rows: int, row_s: float = 0.0, deadline: float = math.inf) -> None:
        """Whoever has entered leaves, whatever happens. row_s: what a row of this lane takes, as far as is known.
        deadline: monotonic; whoever is expected to be answered after it is told so at once.

        A lane with nobody in it takes anybody: what is expected may be wrong, and would not be seen to be.
        Raises Overloaded.
        """
        after = self.rows[lane] + rows
        if self.rows[lane]:
            if after > self.limits[lane]:
                self._refuse(lane, "inflight_rows")
            if row_s and time.monotonic() + row_s * after > deadline:
                self._refuse(lane, "predicted_wait")
        self.rows[lane] = after

    def _refuse(self, lane: str, reason: str) -> NoReturn:
        self.metrics.shed(lane, reason)
        raise Overloaded

    def leave(self, lane: str, rows: int) -> None:
        self.rows[lane] -= rows
