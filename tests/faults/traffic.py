"""Clients that never stop: a steady open load over keep-alive connections, and a history with one outcome a request.

A probe after a change misses what happened during it; a history does not. Scenarios happen under this load, note down
what they promise and for how long (`promise.py`), and the whole history is judged afterwards (`checks.py`).
"""

import http.client
import json
import random
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

LOST, HUNG = 0, -1
"""Statuses of what has none: the connection broke; no answer came long after its deadline."""

CONNECTIONS = 24
"""At most so many requests are under way; what is due beyond them leaves late, and is not dropped."""
RATE = 80.0
"""Requests a second, which two shared cores answer many times over."""
DEADLINE_MS = 2_000
SLACK_S = 8.0
"""On top of the deadline: beyond it a request counts as hung."""
PROBED_EVERY_S = 0.05

Kind = Literal["predict", "explain", "predict+reasons"]


@dataclass(frozen=True)
class Ask:
    """version: asked for by number; None: whatever the route says. top: how many reasons; None: all."""

    kind: Kind
    customers: tuple[str, ...]
    version: str | None = None
    top: int | None = None

    @property
    def path(self) -> str:
        return "/v1/explain" if self.kind == "explain" else "/v1/predict"

    def body(self) -> bytes:
        body: dict[str, Any] = {"entities": [{"customer_id": customer} for customer in self.customers]}
        if self.version is not None:
            body["version"] = self.version
        if self.top is not None:
            body["explain" if self.kind == "predict+reasons" else "top"] = self.top
        return json.dumps(body).encode()


@dataclass(frozen=True)
class Outcome:
    """sent, received: seconds of time.monotonic. body: the JSON of the answer; {} where there was none."""

    number: int
    connection: int
    ask: Ask
    sent: float
    received: float
    status: int
    request_id: str | None
    body: dict[str, Any]

    @property
    def code(self) -> str:
        names = {LOST: "lost", HUNG: "hung", 200: "ok"}
        return names.get(self.status) or str(self.body.get("code"))


class Asks:
    """What callers ask: mostly one customer, sometimes a list, sometimes reasons, sometimes a version by number."""

    def __init__(
        self, customers: Sequence[str], explained: Sequence[str], versions: Callable[[], Sequence[str]], seed: int
    ) -> None:
        self.customers = customers
        self.explained = explained
        self.versions = versions
        self.random = random.Random(seed)

    def next(self) -> Ask:
        pick = self.random.random()
        version = self.random.choice(self.versions()) if self.random.random() < 0.15 else None
        if pick < 0.62:
            return Ask("predict", (self.random.choice(self.customers),), version)
        if pick < 0.85:
            size = self.random.randint(5, 50)
            return Ask("predict", tuple(self.random.sample(self.customers, size)), version)
        few = tuple(self.random.sample(self.explained, self.random.randint(1, 2)))
        top = self.random.choice((None, 3))
        if pick < 0.95:
            return Ask("explain", few, version, top)
        return Ask("predict+reasons", few, version, 100 if top is None else top)


@dataclass
class Connection:
    """One keep-alive connection; a broken one is replaced for the next request."""

    number: int
    address: tuple[str, int]
    patience_s: float = DEADLINE_MS / 1e3 + SLACK_S
    client: http.client.HTTPConnection | None = None

    def exchange(
        self, method: str, path: str, body: bytes | None = None, **headers: str
    ) -> tuple[int, str | None, dict[str, Any]]:
        """Status, request id and JSON; LOST or HUNG without them."""
        if self.client is None:
            self.client = http.client.HTTPConnection(*self.address, timeout=self.patience_s)
        try:
            self.client.request(method, path, body, {"Content-Type": "application/json", **headers})
            answer = self.client.getresponse()
            content = answer.read()
        except TimeoutError:
            self.close()
            return HUNG, None, {}
        except (OSError, http.client.HTTPException):
            self.close()
            return LOST, None, {}
        if answer.will_close:
            self.close()
        try:
            decoded = json.loads(content)
        except ValueError:
            decoded = None
        return answer.status, answer.getheader("X-Request-Id"), decoded if isinstance(decoded, dict) else {}

    def close(self) -> None:
        if self.client is not None:
            self.client.close()
            self.client = None


@dataclass
class _Turn:
    """Whose request is next, and when it is due."""

    due: float
    number: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)


class TrafficDriver:
    """`with TrafficDriver(...) as driver:` asks until the block ends; `driver.history` is complete afterwards."""

    def __init__(
        self, address: tuple[str, int], asks: Asks, *, rate: float = RATE, connections: int = CONNECTIONS, seed: int = 0
    ) -> None:
        self.asks = asks
        self.rate = rate
        self.random = random.Random(seed)
        self.connections = [Connection(number, address) for number in range(connections)]
        self.history: list[Outcome] = []
        self.started: list[int] = []
        self.extra: deque[Ask] = deque()
        self._probes: list[list[Callable[[Connection], None]]] = [[] for _ in self.connections]
        self._turn = _Turn(time.monotonic())
        self._ended = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(one,), daemon=True) for one in self.connections]

    def __enter__(self) -> "TrafficDriver":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._ended.set()
        for thread in self._threads:
            thread.join(DEADLINE_MS / 1e3 + 2 * SLACK_S)
        for connection in self.connections:
            connection.close()

    def everywhere(self, path: str) -> list[tuple[int, dict[str, Any]]]:
        """What every connection's worker says to GET `path`: status and JSON."""
        answers: list[tuple[int, dict[str, Any]]] = []
        done = threading.Semaphore(0)

        def probe(connection: Connection) -> None:
            status, _, body = connection.exchange("GET", path)
            answers.append((status, body))
            done.release()

        for probes in self._probes:
            probes.append(probe)
        for _ in self.connections:
            if not done.acquire(timeout=DEADLINE_MS / 1e3 + 2 * SLACK_S):
                raise TimeoutError("a connection is stuck")
        return answers

    def reconnect(self) -> None:
        """Every connection is closed, between two of its requests, and opened again for the next."""
        for probes in self._probes:
            probes.append(Connection.close)

    def ask(self, *asks: Ask) -> None:
        """In place of the next requests."""
        self.extra.extend(asks)

    def wait_for(self, more: int) -> None:
        """Until so many more requests have had their outcome."""
        enough = len(self.history) + more
        until(lambda: len(self.history) >= enough, f"{more} more outcomes")

    def sound_since(self, instant: float) -> bool:
        """Whether the last three requests of every connection were sent after `instant` and answered with 200."""
        last: dict[int, list[Outcome]] = {connection.number: [] for connection in self.connections}
        for outcome in reversed(self.history.copy()):
            if outcome.sent < instant:
                break
            last[outcome.connection].append(outcome)
        return all(len(own) >= 3 and {one.status for one in own[:3]} == {200} for own in last.values())

    def _run(self, connection: Connection) -> None:
        while not self._ended.is_set():
            number, due = self._next()
            self._wait(connection, due)
            if self._ended.is_set():
                break
            with self._turn.lock:
                ask = self.extra.popleft() if self.extra else self.asks.next()
            headers = {"X-Request-Id": f"chaos-{number}", "X-Deadline-Ms": str(DEADLINE_MS)}
            self.started.append(number)
            sent = time.monotonic()
            status, request_id, body = connection.exchange("POST", ask.path, ask.body(), **headers)
            self.history.append(
                Outcome(number, connection.number, ask, sent, time.monotonic(), status, request_id, body)
            )

    def _next(self) -> tuple[int, float]:
        with self._turn.lock:
            self._turn.due += self.random.expovariate(self.rate)
            self._turn.number += 1
            return self._turn.number, self._turn.due

    def _wait(self, connection: Connection, due: float) -> None:
        probes = self._probes[connection.number]
        while True:
            while probes:
                probes.pop(0)(connection)
            pause = due - time.monotonic()
            if pause <= 0 or self._ended.wait(min(pause, PROBED_EVERY_S)):
                return


def until(condition: Callable[[], bool], what: str, seconds: float = 40.0) -> None:
    """Waits for what takes one or two seconds; a bound for what is broken, and no measure of speed."""
    ends = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > ends:
            raise AssertionError(f"not within {seconds:.0f} s: {what}")
        time.sleep(0.02)
