"""Open-loop load: requests leave at random instants of a given rate, whether or not the earlier ones are answered.

Latency counts from the instant at which a request was due, so a server that stalls pays for everyone it keeps waiting
(no coordinated omission). Not asyncio: its timers, and uvloop's, are whole milliseconds, which is what is measured.

    python -m loadtests.bench.open_loop --url http://127.0.0.1:8080 --bodies bodies.jsonl --rate 500 --seconds 5
"""

import argparse
import json
import math
import os
import random
import select
import socket
import subprocess
import sys
import time
from collections import deque
from collections.abc import Sequence
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass
from pathlib import Path
from urllib.parse import urlsplit

from loadtests.bench.load import LoadError
from loadtests.bench.servers import pinned

CONNECTIONS = 256
DRAIN_S = 10.0
"""How long the last answers are waited for."""
LONGEST_WAIT_S = 0.1
KEY = "BENCH_KEY"


@dataclass(frozen=True)
class OpenLoad:
    """Rates in requests/s. errors: other statuses than 200. unanswered: had no answer DRAIN_S after the last request.

    late_p99_ms: how late requests were sent, for want of a free connection or because this process was busy; it is
    part of the latencies, so where it is not small they say little about the server.
    """

    offered: float
    achieved: float
    p50_ms: float
    p99_ms: float
    max_ms: float
    late_p99_ms: float
    errors: int
    unanswered: int


def open_loop(
    url: str, bodies: Path, rate: float, seconds: float, *, path: str, key: str | None, core: int | None
) -> OpenLoad:
    """Poisson arrivals at `rate` requests/s, from a process of its own. Raises LoadError."""
    command = [sys.executable, "-m", __spec__.name, "--url", url, "--path", path, "--bodies", str(bodies)]
    command += ["--rate", str(rate), "--seconds", str(seconds)]
    run = subprocess.run(  # noqa: S603  (our own command)
        pinned(command, core), env=os.environ | {KEY: key or ""}, capture_output=True, text=True, check=False
    )
    if run.returncode != 0:
        raise LoadError(f"the open loop measured nothing: {run.stderr.strip()}")
    return OpenLoad(**json.loads(run.stdout.splitlines()[-1]))


class Connection:
    """One request at a time over a keep-alive connection."""

    def __init__(self, address: tuple[str, int]) -> None:
        self.socket = socket.create_connection(address)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.due = 0.0
        self.received = b""

    def fileno(self) -> int:
        return self.socket.fileno()

    def close(self) -> None:
        self.socket.close()

    def send(self, request: bytes, due: float) -> None:
        self.due, self.received = due, b""
        self.socket.sendall(request)

    def receive(self) -> bool | None:
        """True: answered with 200. False: answered with something else. None: not yet complete."""
        data = self.socket.recv(1 << 16)
        if not data:
            raise LoadError("the server closed a connection")
        self.received += data
        head, found, body = self.received.partition(b"\r\n\r\n")
        if not found or len(body) < content_length(head):
            return None
        return head.startswith(b"HTTP/1.1 200 ")


def content_length(head: bytes) -> int:
    for line in head.split(b"\r\n"):
        name, _, value = line.partition(b":")
        if name.lower() == b"content-length":
            return int(value)
    raise LoadError("an answer without Content-Length")


def arrivals(rate: float, seconds: float, rng: random.Random) -> list[float]:
    """Instants of a Poisson process, in seconds from its start."""
    instants, at = [], rng.expovariate(rate)
    while at < seconds:
        instants.append(at)
        at += rng.expovariate(rate)
    return instants


def drive(
    address: tuple[str, int],
    requests: Sequence[bytes],
    due: Sequence[float],
    connections: int,
    drain_s: float = DRAIN_S,
) -> OpenLoad:
    """Sends a random one of `requests` at each of the instants `due`: seconds from now, ascending, above 0.

    Raises LoadError.
    """
    latencies: list[float] = []
    late: list[float] = []
    errors = following = 0
    now = 0.0
    with ExitStack() as stack:
        free = [stack.enter_context(closing(Connection(address))) for _ in range(connections)]
        busy: set[Connection] = set()
        waiting: deque[float] = deque()
        started = time.perf_counter()
        while following < len(due) or waiting or busy:
            now = time.perf_counter() - started
            if now > due[-1] + drain_s:
                break
            while following < len(due) and due[following] <= now:
                waiting.append(due[following])
                following += 1
            while waiting and free:
                connection = free.pop()
                late.append(time.perf_counter() - started - waiting[0])
                connection.send(random.choice(requests), waiting.popleft())
                busy.add(connection)
            pause = due[following] - now if following < len(due) else LONGEST_WAIT_S
            # select and not epoll: Python's epoll waits whole milliseconds.
            for connection in select.select(busy, (), (), min(max(pause, 0.0), LONGEST_WAIT_S))[0]:
                if (right := connection.receive()) is not None:
                    latencies.append(time.perf_counter() - started - connection.due)
                    errors += not right
                    busy.remove(connection)
                    free.append(connection)
    return OpenLoad(
        offered=len(due) / due[-1],
        achieved=len(latencies) / max(now, due[-1]),
        p50_ms=percentile_ms(latencies, 0.50),
        p99_ms=percentile_ms(latencies, 0.99),
        max_ms=percentile_ms(latencies, 1.0),
        late_p99_ms=percentile_ms(late, 0.99),
        errors=errors,
        unanswered=len(due) - len(latencies),
    )


def percentile_ms(seconds: Sequence[float], share: float) -> float:
    """Nearest rank: what some request really took. Raises LoadError where none was answered."""
    if not seconds:
        raise LoadError("no request was answered")
    return round(sorted(seconds)[max(0, math.ceil(share * len(seconds)) - 1)] * 1_000, 4)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", required=True)
    parser.add_argument("--path", default="/v1/predict")
    parser.add_argument("--bodies", type=Path, required=True, help="one JSON body a line")
    parser.add_argument("--rate", type=float, required=True, help="requests a second")
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--connections", type=int, default=CONNECTIONS)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    server = urlsplit(options.url)
    key = os.environ.get(KEY)
    head = f"POST {options.path} HTTP/1.1\r\nHost: {server.netloc}\r\nContent-Type: application/json\r\n"
    head += f"Authorization: Bearer {key}\r\n" if key else ""
    requests = [
        f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body
        for body in options.bodies.read_bytes().splitlines()
    ]
    due = arrivals(options.rate, options.seconds, random.Random(options.seed))
    try:
        load = drive((server.hostname or "127.0.0.1", server.port or 80), requests, due, options.connections)
    except (LoadError, OSError) as exc:
        sys.exit(str(exc))
    print(json.dumps(asdict(load)))  # noqa: T201


if __name__ == "__main__":
    main()
