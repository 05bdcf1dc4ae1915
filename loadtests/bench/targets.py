"""The two servers that are compared, the load that a row puts on one of them, and proof that its answers are right."""

import contextlib
import http.client
import json
import random
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from loadtests.answers import JOIN_KEY, WrongAnswer, check_answer
from loadtests.bench.home import Home
from loadtests.bench.load import Load, closed_loop
from loadtests.bench.open_loop import OpenLoad, open_loop
from loadtests.bench.servers import Server, free_port, server

SAMPLE = 100
"""Customers whose answers are checked, alone and in one batch, while others ask."""
TIMEOUT_S = 30.0
DEADLINE_MS = 20_000
"""Of what is checked, not of what is measured: a busy machine makes no answer wrong."""
WARM_UP_S = 1.0
PREDICT = "/v1/predict"
EXPLAIN = "/v1/explain"
NOTHING: Mapping[str, object] = {}


@dataclass(frozen=True)
class Cores:
    """Redis is bound to neither. None: nor are these."""

    server: int | None
    client: int | None


@dataclass(frozen=True)
class Cost:
    """cpu_us: of the server's processes, a request."""

    load: Load
    cpu_us: float


@dataclass(frozen=True)
class Target:
    name: str
    url: str
    server: Server
    key: str | None
    core: int | None  # of the load

    def drive(self, bodies: Path, clients: int, seconds: float, path: str = PREDICT) -> Cost:
        """Closed loop. Raises WrongAnswer for any error: figures of a server that refuses are of something else."""
        before = self.server.cpu_s()
        load = closed_loop(self.url, bodies, clients, seconds, path=path, key=self.key, core=self.core)
        if load.errors or not load.requests:
            what = f"{load.errors} errors in {load.requests} requests from {clients} clients"
            raise WrongAnswer(f"{self.name}: {what}{refusals(self.server.said())}")
        return Cost(load, (self.server.cpu_s() - before) / load.requests * 1e6)

    def drive_open(self, bodies: Path, rate: float, seconds: float) -> OpenLoad:
        """Open loop. Raises WrongAnswer."""
        load = open_loop(self.url, bodies, rate, seconds, path=PREDICT, key=self.key, core=self.core)
        if load.errors or load.unanswered:
            what = f"{load.errors} errors and {load.unanswered} without an answer"
            raise WrongAnswer(f"{self.name}: {what}{refusals(self.server.said())}")
        return load


@contextmanager
def gateway(
    home: Home,
    cores: Cores,
    *,
    customers: Sequence[str] | None = None,
    models: Path | None = None,
    redis: str | None = None,
    name: str = "rapport",
    model: str | None = None,
) -> Iterator[Target]:
    """`rapport serve`, warm and checked. customers: those of its store. Raises ServerError, WrongAnswer."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "service.cli", "serve"]
    with server(command, home.gateway_env(port, models=models, redis=redis), f"{url}/readyz", cores.server) as process:
        target = Target(name, url, process, home.key, cores.client)
        check(target, home, customers or home.customers, model)
        yield target


@contextmanager
def empty(home: Home, cores: Cores, name: str = "empty") -> Iterator[Target]:
    """The yardstick (or `bare`, the floor) on uvicorn with the gateway's options, warm."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    options = ["--port", str(port), "--no-access-log", "--no-server-header", "--log-level", "warning"]
    options += ["--timeout-keep-alive", "30", "--backlog", "2048"]
    command = [sys.executable, "-m", "uvicorn", f"loadtests.bench.{name}:app", *options]
    with server(command, {}, f"{url}/readyz", cores.server) as process:
        target = Target(name, url, process, None, cores.client)
        target.drive(bodies_of(home, home.customers), 16, WARM_UP_S)
        yield target


def bodies_of(home: Home, customers: Sequence[str], size: int = 1, fields: Mapping[str, object] = NOTHING) -> Path:
    """A file of requests that ask for `size` customers each, `fields` added: all of them once, in random order.

    Some of them twice where there are fewer than `size`.
    """
    rng = random.Random(0)
    drawn = rng.sample(customers, len(customers)) if size <= len(customers) else rng.choices(customers, k=size)
    batches = [drawn[start : start + size] for start in range(0, len(drawn) - size + 1, size)]
    name = "-".join(["bodies", str(size), str(len(customers)), *map(str, fields.values())])
    path = home.scratch / f"{name}.jsonl"
    path.write_text("".join(f"{body(batch, fields)}\n" for batch in batches))
    return path


def body(customers: Sequence[str], fields: Mapping[str, object]) -> str:
    return json.dumps({**fields, "entities": [{JOIN_KEY: customer} for customer in customers]})


def check(target: Target, home: Home, customers: Sequence[str], model: str | None = None) -> None:
    """Under load, customers alone get the scores they get in a batch, from real features. Raises WrongAnswer."""
    fields = {} if model is None else {"model": model}
    sample = random.Random(1).sample(customers, min(SAMPLE, len(customers)))
    with ThreadPoolExecutor(1) as beside:
        load = beside.submit(target.drive, bodies_of(home, customers, fields=fields), 16, WARM_UP_S)
        answer = ask(target, sample, fields)
        check_answer(answer, sample, statuses=("ok",))
        expected = {row["entity"][JOIN_KEY]: row["scores"] for row in json.loads(answer)["predictions"]}
        for customer in sample:
            check_answer(ask(target, [customer], fields), [customer], statuses=("ok",), expected=expected)
        load.result()
    if len({json.dumps(scores) for scores in expected.values()}) < len(sample) // 2:
        raise WrongAnswer("most customers have the same scores")


def refusals(log: str) -> str:
    """Why a gateway refused requests, as its log says: how often, the code and the reason."""
    found: Counter[str] = Counter()
    for line in log.splitlines():
        # Of lines of JSON those of refusals alone have a reason; other servers write what they like.
        if '"reason"' in line:
            with contextlib.suppress(ValueError, KeyError, TypeError):
                entry = json.loads(line)
                found[f"{entry['code']} ({entry['reason']})"] += 1
    return "".join(f"; {number} x {why}" for why, number in found.most_common(5))


def ask(target: Target, customers: Sequence[str], fields: Mapping[str, object], path: str = PREDICT) -> bytes:
    """The body of an answer. Raises WrongAnswer for a status that is not 200, or none."""
    headers = {"Content-Type": "application/json", "X-Deadline-Ms": str(DEADLINE_MS)}
    return _exchange(target, "POST", path, body(customers, fields), headers)


def get(target: Target, path: str) -> bytes:
    """Raises WrongAnswer, as `ask`."""
    return _exchange(target, "GET", path, None, {})


def _exchange(target: Target, method: str, path: str, content: str | None, headers: dict[str, str]) -> bytes:
    if target.key:
        headers["Authorization"] = f"Bearer {target.key}"
    connection = http.client.HTTPConnection(urlsplit(target.url).netloc, timeout=TIMEOUT_S)
    try:
        connection.request(method, path, content, headers)
        response = connection.getresponse()
        answer = response.read()
    except (OSError, http.client.HTTPException) as exc:
        raise WrongAnswer(f"{target.name}: no answer: {exc!r}") from exc
    finally:
        connection.close()
    if response.status != 200:
        raise WrongAnswer(f"{target.name}: status {response.status}: {answer[:200]!r}")
    return answer
