"""One request and its answer as an operator sees them: request id, route, stages, status, one log line."""

import logging
import re
import secrets
import time
from collections.abc import Iterable
from dataclasses import dataclass, field

import msgspec
from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.errors import problem_of
from service.metrics import Metrics
from service.predictor import Trace

log = logging.getLogger("rapport.access")

REQUEST_ID = re.compile(r"[A-Za-z0-9-]{1,64}")
TRACEPARENT = re.compile(r"00-([0-9a-f]{32})-[0-9a-f]{16}-[0-9a-f]{2}")
UNMATCHED = "unmatched"
"""The route label of every path that is not ours: labels come from a closed set."""


@dataclass
class Exchange:
    request_id: str
    trace_id: str | None
    started: float = field(default_factory=time.monotonic)
    route: str = UNMATCHED
    key: str | None = None
    status: int = 0
    code: str | None = None
    trace: Trace = field(default_factory=Trace)

    @classmethod
    def of(cls, request: Request) -> "Exchange":
        exchange: Exchange = request.scope["rapport.exchange"]
        return exchange


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
    """The outermost ASGI layer: gives every request its Exchange, and its answer headers, metrics and a log line."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self.app = app
        self.metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        exchange = scope["rapport.exchange"] = _exchange(Headers(scope=scope))

        async def observed(message: Message) -> None:
            if message["type"] == "http.response.start":
                exchange.status = message["status"]
                message["headers"] = [*message["headers"], *_headers(exchange)]
            await send(message)

        try:
            await self.app(scope, receive, observed)
        except Exception:
            # Starlette answers a defect and raises it again for the server's log; ours has it already.
            if exchange.status != 500:
                raise
        finally:
            self._record(exchange, scope["method"])

    def _record(self, exchange: Exchange, method: str) -> None:
        seconds = time.monotonic() - exchange.started
        self.metrics.request(exchange.route, exchange.trace.model, exchange.status, seconds)
        for stage, spent in exchange.trace.stages.items():
            self.metrics.stage(stage, spent)
        log.info(
            "request",
            extra={
                "request_id": exchange.request_id,
                "trace_id": exchange.trace_id,
                "method": method,
                "route": exchange.route,
                "status": exchange.status,
                "code": exchange.code,
                "key": exchange.key,
                "rows": exchange.trace.rows,
                "duration_ms": round(seconds * 1_000, 3),
            },
        )


def _exchange(headers: Headers) -> Exchange:
    request_id = headers.get("x-request-id", "")
    if not REQUEST_ID.fullmatch(request_id):
        request_id = secrets.token_hex(8)
    parent = TRACEPARENT.fullmatch(headers.get("traceparent", ""))
    return Exchange(request_id, parent[1] if parent else None)


def _headers(exchange: Exchange) -> Iterable[tuple[bytes, bytes]]:
    yield b"x-request-id", exchange.request_id.encode()
    if exchange.trace.stages:
        timing = ", ".join(f"{stage};dur={spent * 1_000:.3f}" for stage, spent in exchange.trace.stages.items())
        yield b"server-timing", timing.encode()
