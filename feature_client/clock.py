"""The one clock: `as_of`, the instant at which features, ages and elapsed times are computed.

Production runs on wall time. A data set that ended in the past is served at its own instant, so that "days since the
last purchase" and freshness mean what they meant then. Deadlines never use this clock: they use `time.monotonic`.
"""

import time
from collections.abc import Callable
from datetime import UTC, datetime

Clock = Callable[[], float]
"""Seconds since the Unix epoch, UTC."""


def wall_clock() -> float:
    return time.time()


def replay_clock(as_of: datetime) -> Clock:
    """A clock that stands at `as_of`. Raises ValueError where it has no time zone: a naive instant is ambiguous."""
    if as_of.tzinfo is None:
        raise ValueError(f"as_of {as_of.isoformat()} has no time zone; write it as {as_of.isoformat()}Z")
    instant = as_of.timestamp()
    return lambda: instant


def to_iso(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat().replace("+00:00", "Z")
