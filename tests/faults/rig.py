"""One gateway under continuous load, and scenarios that happen to it one after the other."""

import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from feature_client.routes import Route, read_routes
from service.local_triton import LocalTriton
from tests.faults.checks import Violation, judge
from tests.faults.gateway import WORKERS, GatewayProcess
from tests.faults.oracle import Oracle
from tests.faults.promise import Promise, Refusal, Window
from tests.faults.repository import MODEL, write_routes
from tests.faults.traffic import Outcome, TrafficDriver, until

AFTERMATH = 50
"""Requests that a scenario waits for at its end: what it broke shows in them."""

FAILURES = "rapport_reload_failures_total"


@dataclass
class Scenario:
    """What happened meanwhile; times in seconds. settled: from a route's writing until every worker had taken it.
    recovered: from a fault until the last refusal that it caused."""

    name: str
    warned: int = 0  # warnings in the gateway's log before it
    settled: list[float] = field(default_factory=list)
    recovered: list[float] = field(default_factory=list)
    outcomes: list[Outcome] = field(default_factory=list)
    violations: list[Violation] = field(default_factory=list)

    @property
    def refusals(self) -> Counter[str]:
        return Counter(f"{one.status} {one.code}" for one in self.outcomes if one.status != 200)

    @property
    def entities(self) -> int:
        return sum(len(one.ask.customers) for one in self.outcomes if one.status == 200)


@dataclass
class Rig:
    backend: str
    root: Path
    gateway: GatewayProcess
    driver: TrafficDriver
    promise: Promise
    oracle: Oracle
    done: list[Scenario]
    triton: LocalTriton | None = None

    @contextmanager
    def scenario(self, name: str, start: Route) -> Iterator[Scenario]:
        """Judges everything that was answered during the block; an AssertionError tells the first violations."""
        self.spread()
        if self.promise.periods[-1].route != start:
            self.route(start)
        first = len(self.driver.history)
        current = Scenario(f"{self.backend}: {name}", warned=len(self.gateway.events("WARNING")))
        yield current
        self.driver.wait_for(AFTERMATH)
        current.outcomes = self.driver.history[first:].copy()
        current.violations = judge(current.outcomes, self.promise, self.oracle)
        self.done.append(current)
        kinds = Counter(violation.kind for violation in current.violations)
        assert not kinds, "\n".join([str(dict(kinds)), *map(str, current.violations[:10])])

    def route(self, route: Route, current: Scenario | None = None) -> None:
        """Writes the route and waits until every worker has taken it."""
        since = time.monotonic()
        self.promise.expect(route)
        write_routes(self.root, route)
        self.settle(current, since)

    def command(self, current: Scenario, route: Route, *arguments: str) -> None:
        """`rapport release ...`, which writes `route`, and waits until every worker has taken it."""
        since = time.monotonic()
        self.promise.expect(route)
        command, *options = arguments
        subprocess.run(
            [sys.executable, "-m", "service.cli", "release", command, MODEL, "--models", str(self.root), *options],
            check=True, stdout=subprocess.DEVNULL,
        )  # fmt: skip
        assert read_routes(self.root)[MODEL] == route
        self.settle(current, since)

    @contextmanager
    def counted_failure(self) -> Iterator[None]:
        """What happens in the block is counted as a failure by every worker."""
        before = self.gateway.total(FAILURES)
        yield
        until(lambda: self.gateway.total(FAILURES) >= before + WORKERS, "failures that are counted")

    def settle(self, current: Scenario | None, since: float) -> None:
        """Until every connection's worker serves what is expected last."""
        route = self.promise.periods[-1].route
        self.spread()

        def taken() -> bool:
            return all(serves(status, body, route) for status, body in self.driver.everywhere("/v1/models"))

        until(taken, f"every worker on {route}")
        self.promise.settled()
        if current is not None:
            current.settled.append(time.monotonic() - since)

    @contextmanager
    def fault(self, current: Scenario, *allows: Refusal) -> Iterator[Window]:
        """Refusals are allowed from the block's start until, after it, every connection is answered again."""
        with self.promise.window(current.name, *allows) as window:
            first = len(self.driver.history)
            yield window
            self.recover()
        refused = [one.received for one in self.driver.history[first:] if one.status != 200]
        current.recovered.append(max(refused, default=window.since) - window.since)

    def recover(self) -> None:
        """Until every connection is answered again, by a Triton that is not about to die."""
        steady = False
        while not steady:
            until(self._is_steady, "a Triton that stays")
            since = time.monotonic()
            until(lambda: self.driver.sound_since(since), "recovery")  # noqa: B023  (called before it changes)
            steady = self._is_steady()

    def _is_steady(self) -> bool:
        """Triton 2.51 may crash where two clients load and unload one model at once, as whoever meddles with it and the
        workers that mend it do; and it answers for seconds more, until its stack trace is written."""
        if self.triton is None:
            return True
        _, signal, since = self.triton.log.read_text(errors="replace").rpartition("Signal (")
        return not signal or "Started GRPCInferenceService" in since

    def refused(self, what: str) -> None:
        """Until every worker has said that it could not load `what`."""

        def said() -> bool:
            return [event.get("what") for event in self.gateway.events("ERROR")].count(what) >= WORKERS

        until(said, f"a refusal of {what}")

    def noticed(self, current: Scenario, **what: str) -> None:
        """Until the gateway has warned, during this scenario, of exactly this."""

        def warned() -> bool:
            return any(what.items() <= event.items() for event in self.gateway.events("WARNING")[current.warned :])

        until(warned, f"a warning of {what}")

    def reaches(self, server: LocalTriton, *, up: bool) -> None:
        """Until the gateway's metrics say so of that Triton."""
        backend = f"backend:{server.address}"
        until(lambda: self.gateway.total("rapport_dependency_up", dependency=backend) == up, f"{backend} {up=}")

    def spread(self) -> None:
        """Every worker has some of the connections: otherwise its answers would not be seen."""

        def all_busy() -> bool:
            if all(map(self._has_clients, self.gateway.workers())):
                return True
            self.driver.reconnect()
            return False

        until(all_busy, "clients on every worker")

    def _has_clients(self, worker: psutil.Process) -> bool:
        own = [one for one in worker.net_connections("tcp4") if one.laddr.port == self.gateway.port]
        return [one.status for one in own].count(psutil.CONN_ESTABLISHED) >= 2


def serves(status: int, body: dict[str, object], route: Route) -> bool:
    models = body.get("models")
    if status != 200 or not isinstance(models, list) or len(models) != 1:
        return False
    [model] = models
    canary = route.canary and {"version": str(route.canary.version), "percent": route.canary.percent}
    return (
        model["champion"] == str(route.champion)
        and {str(version) for version in route.named} <= set(model["versions"])
        and model["canary"] == canary
    )


def table(scenarios: list[Scenario]) -> list[str]:
    """Markdown, for the log and for docs."""
    lines = [
        "| scenario | requests | customers | refused | wrong | mixed | route taken after | recovered after |",
        "|---|---:|---:|---|---:|---:|---|---|",
    ]
    for one in scenarios:
        kinds = Counter(violation.kind for violation in one.violations)
        wrong = sum(kinds.values()) - kinds["mixed"]
        refused = ", ".join(f"{count} x {code}" for code, count in sorted(one.refusals.items())) or "0"
        lines.append(
            f"| {one.name} | {len(one.outcomes):,} | {one.entities:,} | {refused} | {wrong} | {kinds['mixed']} "
            f"| {_seconds(one.settled)} | {_seconds(one.recovered)} |"
        )
    return lines


def _seconds(values: list[float]) -> str:
    return ", ".join(f"{value:.1f} s" for value in values) or "-"
