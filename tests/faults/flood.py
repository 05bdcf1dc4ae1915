"""Callers who ask for reasons, 32 customers a request, as fast as they are answered; and what they do to others."""

import itertools
import random
import statistics
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from tests.faults.checks import judge
from tests.faults.conftest import HOME
from tests.faults.promise import NO_REASONS, OVERLOADED, TOO_LATE
from tests.faults.rig import Rig
from tests.faults.traffic import Ask, Connection, Outcome, until

CALLERS = 6
EXPLAINED_AT_ONCE = 32
MEASURED = 160
"""Requests of the steady traffic in each phase: two seconds of it."""
PAIRS = 3


@dataclass
class Flood:
    """What its callers were told. quiet_s, flooded_s: seconds of predictions for one customer, a list for each pair."""

    outcomes: list[Outcome] = field(default_factory=list)
    quiet_s: list[list[float]] = field(default_factory=list)
    flooded_s: list[list[float]] = field(default_factory=list)

    def explained(self) -> int:
        return sum(len(one.ask.customers) for one in self.outcomes if one.status == 200)

    def line(self, backend: str) -> str:
        """Medians over the pairs, and of all predictions of each kind."""
        ratio = statistics.median(p99(on) / p99(off) for off, on in zip(self.quiet_s, self.flooded_s, strict=True))
        seconds = max(one.received for one in self.outcomes) - min(one.sent for one in self.outcomes)
        off, on = (list(itertools.chain(*phases)) for phases in (self.quiet_s, self.flooded_s))
        shed = sum(one.status == 503 for one in self.outcomes)
        return (
            f"{backend}: predict p50 {1e3 * statistics.median(off):.1f} -> {1e3 * statistics.median(on):.1f} ms, "
            f"p99 {1e3 * p99(off):.1f} -> {1e3 * p99(on):.1f} ms, p99 ratio {ratio:.2f} (median of {PAIRS} pairs); the "
            f"flood was given {self.explained() / seconds:,.0f} explained customers/s, {shed} of its "
            f"{len(self.outcomes)} requests were shed"
        )


def check_flood(rig: Rig) -> None:
    """Answered right, it fails no prediction. What it does to their time is printed: a busy machine is no defect."""
    with rig.scenario("explain flood", HOME) as current, rig.fault(current, OVERLOADED, TOO_LATE, NO_REASONS):
        found = flood(rig)
    print(f"\nexplain flood, {found.line(rig.backend)}")  # noqa: T201

    assert not [one for one in current.outcomes if one.ask.kind == "predict" and one.status != 200]
    assert found.explained() > 0
    assert {one.code for one in found.outcomes} <= {"ok", "overloaded", "deadline_exceeded"}
    answered = [one for one in found.outcomes if one.status == 200]
    assert judge(answered, rig.promise, rig.oracle) == []


def flood(rig: Rig) -> Flood:
    """Quiet and flooded phases in turn, under the rig's steady traffic."""
    found = Flood()
    for _ in range(PAIRS):
        found.quiet_s.append(_measured(rig))
        with _callers(rig, found.outcomes):
            before = len(found.outcomes)
            until(lambda: len(found.outcomes) > before, "a first answer of the flood")  # noqa: B023  (called at once)
            found.flooded_s.append(_measured(rig))
    return found


def p99(seconds: Sequence[float]) -> float:
    return statistics.quantiles(seconds, n=100)[98]


def _measured(rig: Rig) -> list[float]:
    first = len(rig.driver.history)
    rig.driver.wait_for(MEASURED)
    return [
        one.received - one.sent
        for one in rig.driver.history[first:]
        if one.status == 200 and one.ask.kind == "predict" and len(one.ask.customers) == 1
    ]


@contextmanager
def _callers(rig: Rig, outcomes: list[Outcome]) -> Iterator[None]:
    ended = threading.Event()
    numbers = itertools.count(10**9 + len(outcomes))  # apart from those of the steady traffic

    def call(seed: int) -> None:
        connection = Connection(seed, rig.driver.connections[0].address)
        pick = random.Random(seed)
        while not ended.is_set():
            ask = Ask("explain", tuple(pick.choices(rig.driver.asks.explained, k=EXPLAINED_AT_ONCE)))
            number, sent = next(numbers), time.monotonic()
            status, request_id, body = connection.exchange(
                "POST", ask.path, ask.body(), **{"X-Request-Id": f"chaos-{number}"}
            )
            outcomes.append(Outcome(number, seed, ask, sent, time.monotonic(), status, request_id, body))
        connection.close()

    threads = [threading.Thread(target=call, args=(seed,)) for seed in range(CALLERS)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        ended.set()
        for thread in threads:
            thread.join()
