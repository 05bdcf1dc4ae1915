"""In front of FastAPI's router: predict and what else asks about entities, as bare ASGI: most requests are one of them.

A router, a Request and a Response would cost more than features and model together. OpenAPI documents these routes all
the same (openapi.py), and every other path goes on to FastAPI.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from functools import partial

import msgspec
from starlette.types import ASGIApp, Receive, Scope, Send

from service import bodies
from service.admission import deadline_of
from service.auth import Keyring
from service.errors import DeadlineExceeded, MethodNotAllowed
from service.exchange import Exchange, Exchanges, problem_response
from service.features import Features
from service.features_protocol import FeaturesRequest, FeaturesResponse
from service.predictor import Done, Predictor
from service.protocol import ExplainRequest, PredictRequest, PredictResponse
from service.settings import Settings
from service.whatif import WhatIf
from service.whatif_protocol import WhatIfRequest, WhatIfResponse

Headers = Mapping[bytes, bytes]
Endpoint = Callable[[Exchange, Headers, Receive], Awaitable[bytes]]

PREDICT = msgspec.json.Decoder(PredictRequest)
EXPLAIN = msgspec.json.Decoder(ExplainRequest)
FEATURES = msgspec.json.Decoder(FeaturesRequest)
WHATIF = msgspec.json.Decoder(WhatIfRequest)
encode = msgspec.json.Encoder().encode


class Front:
    def __init__(
        self,
        app: ASGIApp,
        settings: Settings,
        keyring: Keyring,
        predictor: Predictor,
        features: Features,
        what_if: WhatIf,
        exchanges: Exchanges,
    ) -> None:
        self.app = app
        self.settings = settings
        self.keyring = keyring
        self.predictor = predictor
        self.stored = features
        self.what_if = what_if
        self.exchanges = exchanges
        self.endpoints: Mapping[str, Endpoint] = {
            "/v1/predict": self.predict,
            "/v1/explain": self.explain,
            "/v1/features": self.features,
            "/v1/whatif": self.whatif,
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        endpoint = self.endpoints.get(scope["path"]) if scope["type"] == "http" else None
        if endpoint is None:
            await self.app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        # direct.py has begun it already where it looked at the request first.
        exchange: Exchange = scope.get("rapport.exchange") or self.exchanges.begin(scope["method"], headers, None)
        exchange.has_left = partial(bodies.has_gone, receive)
        exchange.route = scope["path"]
        try:
            body = await endpoint(exchange, headers, receive)
            exchange.status = 200
            content = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
            start = {"type": "http.response.start", "status": 200, "headers": content + exchange.headers()}
            await send(start)
            await send({"type": "http.response.body", "body": body})
        except (Exception, asyncio.CancelledError) as exc:  # noqa: BLE001  (every error has its answer: errors.py is the table)
            # Cancelled by uvicorn: the time to drain is over.
            error = exc if isinstance(exc, Exception) else DeadlineExceeded()
            response = problem_response(error, exchange)
            exchange.status = response.status_code
            if response.status_code == 405:
                response.headers["Allow"] = "POST"
            response.raw_headers += exchange.headers()
            await response(scope, receive, send)
        finally:
            self.exchanges.end(exchange)

    async def predict(self, exchange: Exchange, headers: Headers, receive: Receive) -> bytes:
        """Scores for up to 1,000 entities, from their stored features; with `explain`, reasons for up to 32."""
        request = await self._request(exchange, headers, receive, PREDICT, "predict")
        if request.explain is None:
            self._set_deadline(exchange, headers, self.settings.deadline_ms)
        else:
            self.keyring.require(exchange.key, "explain")
            self._set_deadline(exchange, headers, self.settings.explain_deadline_ms)
        return encoded(await self.predictor.predict(request, exchange), exchange)

    async def explain(self, exchange: Exchange, headers: Headers, receive: Receive) -> bytes:
        """Scores and reasons for up to 32 entities: base plus all contributions is the score, in its own unit."""
        request = await self._request(exchange, headers, receive, EXPLAIN, "explain")
        self._set_deadline(exchange, headers, self.settings.explain_deadline_ms)
        return encoded(await self.predictor.explain(request, exchange), exchange)

    async def features(self, exchange: Exchange, headers: Headers, receive: Receive) -> bytes:
        """What the online store holds for up to 1,000 entities, value by value, as the model gets it."""
        # Whoever may be scored from these values may see them: what-if and reasons show them, too.
        request = await self._request(exchange, headers, receive, FEATURES, "predict")
        self._set_deadline(exchange, headers, self.settings.deadline_ms)
        return encoded(await self.stored.answer(request, exchange), exchange)

    async def whatif(self, exchange: Exchange, headers: Headers, receive: Receive) -> bytes:
        """How one customer's scores change with one or two values, and which changes of one cross a threshold."""
        request = await self._request(exchange, headers, receive, WHATIF, "explain")
        self._set_deadline(exchange, headers, self.settings.explain_deadline_ms)
        return encoded(await self.what_if.answer(request, exchange), exchange)

    def take(self, exchange: Exchange, headers: Headers, body: bytes, done: Done) -> None:
        """`predict` for direct.py, which has no coroutine to wait in: `done` gets the answer, or the error.

        Raises whatever `predict` would raise before it waits, NotDirect and SeveralArms.
        """
        exchange.route = "/v1/predict"
        exchange.key = self.keyring.check(headers.get(b"authorization"), "predict")
        bodies.check_type(headers)
        bodies.check_size(body, self.settings.max_body_bytes)
        request = _decoded(exchange, body, PREDICT)
        if request.explain is not None:
            raise NotDirect
        self._set_deadline(exchange, headers, self.settings.deadline_ms)
        self.predictor.start(request, exchange, done)

    async def _request(
        self,
        exchange: Exchange,
        headers: Headers,
        receive: Receive,
        decoder: msgspec.json.Decoder[bodies.Body],
        scope: str,
    ) -> bodies.Body:
        if exchange.method != "POST":
            raise MethodNotAllowed
        if exchange.key is None:
            exchange.key = self.keyring.check(headers.get(b"authorization"), scope)
        settings = self.settings
        body = await bodies.read(headers, receive, settings.max_body_bytes, settings.body_timeout_ms / 1_000)
        return _decoded(exchange, body, decoder)

    def _set_deadline(self, exchange: Exchange, headers: Headers, default_ms: int) -> None:
        # Counted from the request's first byte: a body that took long has used up part of it.
        header = headers.get(b"x-deadline-ms")
        exchange.deadline = deadline_of(header, default_ms, self.settings.max_deadline_ms, exchange.started)


class NotDirect(Exception):
    """A request whose answer needs a coroutine."""


def _decoded(exchange: Exchange, body: bytes, decoder: msgspec.json.Decoder[bodies.Body]) -> bodies.Body:
    arrived = time.monotonic()
    request = bodies.decode(body, decoder)
    exchange.since = time.monotonic()
    exchange.stages["decode"] = exchange.since - arrived
    return request


def encoded(response: PredictResponse | FeaturesResponse | WhatIfResponse, exchange: Exchange) -> bytes:
    body = encode(response)
    stages = exchange.stages
    stages["encode"] = stages.get("encode", 0.0) + time.monotonic() - exchange.since
    return body
