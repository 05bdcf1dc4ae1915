"""What is promised at which time: routes that may answer, and refusals that faults excuse."""

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from feature_client.routes import Route
from tests.faults.traffic import LOST, Outcome

Refusal = tuple[int, str]

GONE: Refusal = (LOST, "lost")
"""A broken connection: only while a process of the gateway's is killed or restarted."""
NOT_READY: Refusal = (503, "not_ready")
MODEL_DOWN: Refusal = (503, "model_unavailable")
TOO_LATE: Refusal = (504, "deadline_exceeded")
BAD_OUTPUT: Refusal = (502, "bad_model_output")
STORE_DOWN: Refusal = (503, "feature_store_unavailable")
UNKNOWN: Refusal = (404, "unknown_model")
OVERLOADED: Refusal = (503, "overloaded")
NO_REASONS: Refusal = (200, "no reasons")
"""Scores that were to come with reasons and came without: said by `explanations: null`."""


@dataclass(eq=False)
class Period:
    """While `route` may decide; two periods overlap from when a route is written until every worker has taken it."""

    route: Route
    since: float
    until: float = math.inf

    @property
    def answering(self) -> set[str]:
        canary = () if self.route.canary is None else (self.route.canary.version,)
        return {str(version) for version in (self.route.champion, *canary)}

    @property
    def named(self) -> list[str]:
        return [str(version) for version in self.route.named]


@dataclass(eq=False)
class Window:
    """allows: refusals of requests that were under way at some time between the fault and the recovery."""

    name: str
    allows: frozenset[Refusal]
    since: float
    until: float = math.inf


@dataclass
class Promise:
    periods: list[Period] = field(default_factory=list)
    windows: list[Window] = field(default_factory=list)

    def expect(self, route: Route) -> Period:
        """From now on `route` may answer; the routes before it may as well, until `settled`."""
        self.periods.append(Period(route, time.monotonic()))
        return self.periods[-1]

    def settled(self) -> None:
        """Every worker has taken the last route: no other may answer any more."""
        now = time.monotonic()
        for period in self.periods[:-1]:
            period.until = min(period.until, now)

    @property
    def named(self) -> list[str]:
        """Versions that may be asked for by number now."""
        return self.periods[-1].named

    @contextmanager
    def window(self, name: str, *allows: Refusal) -> Iterator[Window]:
        opened = Window(name, frozenset(allows), time.monotonic())
        self.windows.append(opened)
        yield opened
        opened.until = time.monotonic()

    def at(self, outcome: Outcome) -> list[Period]:
        """Whose answer it may be: of everything that was in force between sending and receiving."""
        return [period for period in self.periods if period.since <= outcome.received and outcome.sent <= period.until]

    def excuses(self, outcome: Outcome) -> bool:
        refusal = (outcome.status, outcome.code)
        version = outcome.ask.version
        if refusal == UNKNOWN and version is not None:
            return any(version not in period.named for period in self.at(outcome))
        return self.allows(refusal, outcome)

    def allows(self, refusal: Refusal, outcome: Outcome) -> bool:
        """Of a request that was under way at the time of `outcome`."""
        return any(
            refusal in window.allows and window.since <= outcome.received and outcome.sent <= window.until
            for window in self.windows
        )
