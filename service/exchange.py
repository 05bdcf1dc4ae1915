"""One request and its answer as an operator sees them: request id, route, stages, status, one log line."""

import itertools
import logging
import re
import secrets
import time
from collections.abc import Mapping

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.errors import problem_of
from service.metrics import NO_MODEL, Metrics

log = logging.getLogger("rapport.access")

REQUEST_ID = re.compile(rb"[A-Za-z0-9-]{1,64}")
TRACEPARENT = re.compile(rb"00-([0-9a-f]{32})-[0-9a-f]{16}-[0-9a-f]{2}")
UNMATCHED = "unmatched"
"""The route label of every path that is not ours: labels come from a closed set."""

STAGES = ("decode", "admit", "features", "queue", "infer", "encode")
TIMING = ", ".join(f"{stage};dur=%.3f" for stage in STAGES).encode()
"""Server-Timing of a request that went through all of them, in milliseconds."""


class Trace(msgspec.Struct):
    """Where the time of one request went, and what it asked for; becomes Server-Timing, metrics and the log line.

    stages: stage -> seconds. since: monotonic instant at which the stage that runs began.
    """

    model: str = NO_MODEL
    rows: int = 0
    stages: dict[str, float] = msgspec.field(default_factory=dict)
    since: float = 0.0

    def start(self) -> None:
        self.since = time.monotonic()

    def finish(self, stage: str) -> None:
        """What has passed since `start` or the last `finish` was `stage`."""
        now = time.monotonic()
        self.add(stage, now - self.since)
        self.since = now

    def add(self, stage: str, seconds: float) -> None:
        self.stages[stage] = self.stages.get(stage, 0.0) + seconds


class Exchange(msgspec.Struct):
    """started: monotonic instant of the request's first byte."""

    request_id: str
    trace_id: str | None
    method: str
    started: float
    route: str = UNMATCHED
    key: str | None = None
    status: int = 0
    code: str | None = None
    trace: Trace = msgspec.field(default_factory=Trace)

    @classmethod
    def of(cls, request: Request) -> "Exchange":
        exchange: Exchange = request.scope["rapport.exchange"]
        return exchange

    def headers(self) -> list[tuple[bytes, bytes]]:
        """What every answer carries."""
        headers = [(b"x-request-id", self.request_id.encode())]
        stages = self.trace.stages
        if len(stages) == len(STAGES):
            headers.append((b"server-timing", TIMING % tuple([stages[stage] * 1_000 for stage in STAGES])))
        elif stages:
            timing = ", ".join(f"{stage};dur={spent * 1_000:.3f}" for stage, spent in stages.items())
            headers.append((b"server-timing", timing.encode()))
        return headers


class Exchanges:
    """Begins and ends them: a request id in front, metrics and a log line behind.

    Request ids are random for the process and counted in it: a random number a request would be a system call each.
    """

    def __init__(self, metrics: Metrics) -> None:
        self.metrics = metrics
        self._process = secrets.token_hex(6)
        self._numbers = itertools.count(1)

    def begin(self, method: str, headers: Mapping[bytes, bytes]) -> Exchange:
        given = headers.get(b"x-request-id")
        if given is not None and REQUEST_ID.fullmatch(given):
            request_id = given.decode()
        else:
            request_id = f"{self._process}{next(self._numbers):08x}"
        traceparent = headers.get(b"traceparent")
        parent = TRACEPARENT.fullmatch(traceparent) if traceparent is not None else None
        return Exchange(request_id, parent[1].decode() if parent else None, method, time.monotonic())

    def end(self, exchange: Exchange) -> None:
        seconds = time.monotonic() - exchange.started
        trace = exchange.trace
        self.metrics.request(exchange.route, trace.model, exchange.status, seconds)
        for stage, spent in trace.stages.items():
            self.metrics.stage(stage, spent)
        if log.isEnabledFor(logging.INFO):
            log.info(
                "request",
                extra={
                    "request_id": exchange.request_id,
                    "trace_id": exchange.trace_id,
                    "method": exchange.method,
                    "route": exchange.route,
                    "status": exchange.status,
                    "code": exchange.code,
                    "key": exchange.key,
                    "rows": trace.rows,
                    "duration_ms": round(seconds * 1_000, 3),
                },
            )


def problem_response(error: Exception, exchange: Exchange) -> Response:
    """The problem+json of `error`; a defect is logged with its trace, and its trace stays in the log."""
    entry, problem = problem_of(error, exchange.request_id)
    exchange.code = entry.code
    if entry.status >= 500:
        log.log(
            logging.ERROR if entry.status == 500 else logging.WARNING,
            "request failed",
            exc_info=error if entry.status == 500 else None,
            extra={"request_id": exchange.request_id, "code": entry.code, "reason": str(error)},
        )
    response = Response(msgspec.json.encode(problem), entry.status, media_type="application/problem+json")
    if entry.retry_after_s is not None:
        response.headers["Retry-After"] = str(entry.retry_after_s)
    if entry.status == 401:
        response.headers["WWW-Authenticate"] = "Bearer"
    if entry.status in (408, 413):
        # The rest of the body is not read: this connection has no next request.
        response.headers["Connection"] = "close"
    return response


class Observer:
    """Around FastAPI's router: gives every request its Exchange, and its answer headers, metrics and a log line."""

    def __init__(self, app: ASGIApp, exchanges: Exchanges) -> None:
        self.app = app
        self.exchanges = exchanges

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        exchange = scope["rapport.exchange"] = self.exchanges.begin(scope["method"], dict(scope["headers"]))

        async def observed(message: Message) -> None:
            if message["type"] == "http.response.start":
                exchange.status = message["status"]
                message["headers"] = [*message["headers"], *exchange.headers()]
            await send(message)

        try:
            await self.app(scope, receive, observed)
        except Exception:
            # Starlette answers a defect and raises it again for the server's log; ours has it already.
            if exchange.status != 500:
                raise
        finally:
            self.exchanges.end(exchange)
