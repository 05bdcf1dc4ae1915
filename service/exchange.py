"""One request and its answer as an operator sees them: request id, route, stages, status, one log line."""

import asyncio
import itertools
import logging
import re
import secrets
import time
from collections import defaultdict
from collections.abc import Callable, Mapping

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.asker import STAGES, Asker
from service.errors import problem_of
from service.logs import AccessLog
from service.metrics import Metrics

log = logging.getLogger("rapport.access")

REQUEST_ID = re.compile(rb"[A-Za-z0-9-]{1,64}")
TRACEPARENT = re.compile(rb"00-([0-9a-f]{32})-[0-9a-f]{16}-[0-9a-f]{2}")
UNMATCHED = "unmatched"
"""The route label of every path that is not ours: labels come from a closed set."""

TOGETHER = 64
SETTLE_S = 0.05
"""Requests that have ended are counted once there are so many, or after so long: no scrape sees it."""

TIMING = ", ".join(f"{stage};dur=%.4f" for stage in STAGES).encode()
"""Server-Timing of a request that went through all of them, in milliseconds."""


class Exchange(Asker):
    """started: monotonic instant of the request's first byte. ended: seconds since the epoch."""

    method: str = ""
    trace_id: str | None = None
    started: float = 0.0
    route: str = UNMATCHED
    key: str | None = None
    status: int = 0
    code: str | None = None
    seconds: float = 0.0
    ended: float = 0.0

    @classmethod
    def of(cls, request: Request) -> "Exchange":
        exchange: Exchange = request.scope["rapport.exchange"]
        return exchange

    def headers(self) -> list[tuple[bytes, bytes]]:
        """What every answer carries."""
        headers = [(b"x-request-id", self.request_id.encode())]
        stages = self.stages
        if len(stages) == len(STAGES):
            decode, admit, features, queue, infer, encode = map(stages.__getitem__, STAGES)
            timing = TIMING % (decode * 1e3, admit * 1e3, features * 1e3, queue * 1e3, infer * 1e3, encode * 1e3)
            headers.append((b"server-timing", timing))
        elif stages:
            headers.append((b"server-timing", ", ".join(f"{s};dur={t * 1e3:.4f}" for s, t in stages.items()).encode()))
        return headers


class Exchanges:
    """Begins and ends them: a request id in front, metrics and a log line behind.

    Request ids are random for the process and counted in it: a random number a request would be a system call each.
    What has ended is counted and logged together, a few at a time: it costs a tenth of what each would by itself.
    """

    def __init__(self, metrics: Metrics, access_log: AccessLog) -> None:
        self.metrics = metrics
        self.access_log = access_log
        self.ended: list[Exchange] = []
        self._process = secrets.token_hex(6)
        self._numbers = itertools.count(1)
        self._timer: asyncio.TimerHandle | None = None

    def begin(
        self,
        method: str,
        headers: Mapping[bytes, bytes],
        has_left: Callable[[], bool] | None,
        started: float | None = None,
    ) -> Exchange:
        """started: monotonic instant of the first byte, where it was not just now."""
        given = headers.get(b"x-request-id")
        if given is not None and REQUEST_ID.fullmatch(given):
            request_id = given.decode()
        else:
            request_id = f"{self._process}{next(self._numbers):08x}"
        trace_id = None
        if (traceparent := headers.get(b"traceparent")) and (parent := TRACEPARENT.fullmatch(traceparent)):
            trace_id = parent[1].decode()
        return Exchange(request_id, has_left, method=method, trace_id=trace_id, started=started or time.monotonic())

    def end(self, exchange: Exchange) -> None:
        exchange.seconds = time.monotonic() - exchange.started
        exchange.ended = time.time()
        # Its client and its body are done with: they must not be kept until it is counted.
        exchange.has_left = None
        self.ended.append(exchange)
        if len(self.ended) >= TOGETHER:
            self.settle()
        elif self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(SETTLE_S, self._settle_late)

    def settle(self) -> None:
        """Counts and logs what has ended so far."""
        ended, self.ended = self.ended, []
        durations: defaultdict[tuple[str, str, int], list[float]] = defaultdict(list)
        for one in ended:
            durations[one.route, one.model, one.status].append(one.seconds)
        for (route, model, status), seconds in durations.items():
            self.metrics.requests(route, model, status, seconds)
        for stage in STAGES:
            self.metrics.stages(stage, [one.stages[stage] for one in ended if stage in one.stages])
        if self.access_log.enabled:
            for one in ended:
                self.access_log.write(
                    one.ended, one.request_id, one.trace_id, one.method, one.route, one.status, one.code, one.key,
                    one.rows, one.seconds,
                )  # fmt: skip

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self.settle()
        self.access_log.close()

    def _settle_late(self) -> None:
        self._timer = None
        self.settle()


def problem_response(error: Exception, exchange: Exchange, *, open_inference: bool = False) -> Response:
    """The problem+json of `error`; a defect is logged with its trace, and its trace stays in the log.

    open_inference: for clients of /v2, which look for the member `error`, and some for it in application/json only.
    """
    entry, problem = problem_of(error, exchange.request_id)
    exchange.code = entry.code
    if entry.status >= 500:
        log.log(
            logging.ERROR if entry.status == 500 else logging.WARNING,
            "request failed",
            exc_info=error if entry.status == 500 else None,
            extra={"request_id": exchange.request_id, "code": entry.code, "reason": str(error)},
        )
    media_type = "application/problem+json"
    if open_inference:
        media_type, problem.error = "application/json", problem.detail
    response = Response(msgspec.json.encode(problem), entry.status, media_type=media_type)
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
        exchange = scope["rapport.exchange"] = self.exchanges.begin(scope["method"], dict(scope["headers"]), None)

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
