"""In front of FastAPI's router: predict and explain as bare ASGI, because most requests are one of them.

A router, a Request and a Response would cost more than features and model together. OpenAPI documents both routes all
the same (openapi.py), and every other path goes on to FastAPI.
"""

from collections.abc import Awaitable, Callable, Mapping
from functools import partial

import msgspec
from starlette.types import ASGIApp, Receive, Scope, Send

from service import bodies
from service.admission import deadline_of
from service.auth import Keyring
from service.errors import MethodNotAllowed
from service.exchange import Exchange, Exchanges, problem_response
from service.predictor import Asker, Predictor
from service.protocol import ExplainRequest, PredictRequest
from service.settings import Settings

Headers = Mapping[bytes, bytes]
Endpoint = Callable[[Exchange, Headers, Receive], Awaitable[bytes]]

PREDICT = msgspec.json.Decoder(PredictRequest)
EXPLAIN = msgspec.json.Decoder(ExplainRequest)
encode = msgspec.json.Encoder().encode


class Front:
    def __init__(
        self, app: ASGIApp, settings: Settings, keyring: Keyring, predictor: Predictor, exchanges: Exchanges
    ) -> None:
        self.app = app
        self.settings = settings
        self.keyring = keyring
        self.predictor = predictor
        self.exchanges = exchanges
        self.endpoints: Mapping[str, Endpoint] = {"/v1/predict": self.predict, "/v1/explain": self.explain}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        endpoint = self.endpoints.get(scope["path"]) if scope["type"] == "http" else None
        if endpoint is None:
            await self.app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        exchange = self.exchanges.begin(scope["method"], headers)
        exchange.route = scope["path"]
        try:
            body = await endpoint(exchange, headers, receive)
            exchange.status = 200
            await send(
                {
                    "type": "http.response.start",
                    "status": 200,
                    "headers": [
                        (b"content-type", b"application/json"),
                        (b"content-length", b"%d" % len(body)),
                        *exchange.headers(),
                    ],
                }
            )
            await send({"type": "http.response.body", "body": body})
        except Exception as error:  # noqa: BLE001  (every error has its answer: errors.py is the table)
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
        explains = request.explain is not None
        if explains:
            self.keyring.require(exchange.key, "explain")
        response = await self.predictor.predict(request, self._asker(exchange, headers, receive, explains=explains))
        body = encode(response)
        exchange.trace.finish("encode")
        return body

    async def explain(self, exchange: Exchange, headers: Headers, receive: Receive) -> bytes:
        """Scores and reasons for up to 32 entities: base plus all contributions is the score, in its own unit."""
        request = await self._request(exchange, headers, receive, EXPLAIN, "explain")
        response = await self.predictor.explain(request, self._asker(exchange, headers, receive, explains=True))
        body = encode(response)
        exchange.trace.finish("encode")
        return body

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
        authorization = headers.get(b"authorization")
        exchange.key = self.keyring.check(authorization.decode("latin-1") if authorization else None, scope)
        settings = self.settings
        body = await bodies.read(headers, receive, settings.max_body_bytes, settings.body_timeout_ms / 1_000)
        exchange.trace.start()
        request = bodies.decode(body, decoder)
        exchange.trace.finish("decode")
        return request

    def _asker(self, exchange: Exchange, headers: Headers, receive: Receive, *, explains: bool) -> Asker:
        settings = self.settings
        default_ms = settings.explain_deadline_ms if explains else settings.deadline_ms
        # Counted from the request's first byte: a body that took long has used up part of it.
        deadline = deadline_of(headers.get(b"x-deadline-ms"), default_ms, settings.max_deadline_ms, exchange.started)
        return Asker(exchange.request_id, deadline, partial(bodies.has_gone, receive), exchange.trace)
