"""HTTP in, HTTP out; nothing else."""

import asyncio
from collections.abc import Awaitable
from dataclasses import dataclass
from typing import Any, TypeVar

import msgspec
from fastapi import Request
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import PlainTextResponse, Response

from feature_client.online.reader import FeatureReader, FeatureStoreUnavailable
from service.admission import Deadline
from service.auth import Keyring
from service.errors import (
    BodyTooLarge,
    ClientGone,
    InvalidJson,
    InvalidRequest,
    MethodNotAllowed,
    NotFound,
    SlowBody,
    UnsupportedMediaType,
)
from service.exchange import Exchange, problem_response
from service.metrics import Metrics
from service.predictor import Predictor
from service.protocol import ExplainRequest, ModelList, ModelSummary, PredictRequest
from service.releases import Releases
from service.settings import Settings

Body = TypeVar("Body")
Answer = TypeVar("Answer")


@dataclass
class Endpoints:
    settings: Settings
    keyring: Keyring
    predictor: Predictor
    releases: Releases
    reader: FeatureReader
    metrics: Metrics
    store_answered: bool = False

    async def predict(self, request: Request) -> Response:
        """Scores for up to 1,000 entities, from their stored features; with `explain`, reasons for up to 32."""
        exchange = self._enter(request, "/v1/predict", "predict")
        body = await self._body(request, PredictRequest)
        if body.explain is not None:
            self.keyring.require(exchange.key, "explain")
        deadline = self._deadline(request, exchange, explains=body.explain is not None)
        work = self.predictor.predict(body, deadline, exchange.request_id, exchange.trace)
        return _json(await _unless_gone(request, work))

    async def explain(self, request: Request) -> Response:
        """Scores and reasons for up to 32 entities: base plus all contributions is the score, in its own unit."""
        exchange = self._enter(request, "/v1/explain", "explain")
        body = await self._body(request, ExplainRequest)
        deadline = self._deadline(request, exchange, explains=True)
        work = self.predictor.explain(body, deadline, exchange.request_id, exchange.trace)
        return _json(await _unless_gone(request, work))

    async def models(self, request: Request) -> Response:
        """What is served: models, their champion and loaded versions, their tasks."""
        self._enter(request, "/v1/models", "predict")
        return _json(
            ModelList(
                [
                    ModelSummary(
                        model=model,
                        champion=served.champion.release.version,
                        versions=sorted(served.versions, key=int),
                        tasks=list(served.champion.release.contract.task_names),
                    )
                    for model, served in self.releases.served.items()
                ]
            )
        )

    async def model(self, request: Request) -> Response:
        """The champion's contract and model card, and the route that names it."""
        self._enter(request, "/v1/models/{model}", "predict")
        served, loaded = self.releases.resolve(request.path_params["model"], None)
        card = await asyncio.to_thread(loaded.release.card.read_text, "utf-8")
        return _json({"route": served.route, "contract": loaded.release.contract, "card": card})

    async def livez(self, request: Request) -> Response:
        """200 while the process answers."""
        Exchange.of(request).route = "/livez"
        return _json({"live": True})

    async def readyz(self, request: Request) -> Response:
        """200 once a release gave its golden answers and the store answered once; a later outage is in the body."""
        Exchange.of(request).route = "/readyz"
        try:
            await self.reader.ping(self.settings.redis_timeout_ms / 1_000)
            store, self.store_answered = "ok", True
        except FeatureStoreUnavailable:
            store = "unavailable"
        self.metrics.dependency("feature_store", up=store == "ok")
        ready = self.store_answered and bool(self.releases.served)
        body = {
            "ready": ready,
            "release": "loaded" if self.releases.served else "not loaded",
            "last_reload": "failed" if self.releases.failure or self.releases.standby_failure else "ok",
            "feature_store": store,
        }
        return _json(body, 200 if ready else 503)

    async def exposition(self, request: Request) -> Response:
        """Prometheus metrics; with keys configured, for the scope admin."""
        self._enter(request, "/metrics", "admin")
        return PlainTextResponse(self.metrics.exposition(), media_type="text/plain; version=0.0.4")

    def _enter(self, request: Request, route: str, scope: str) -> Exchange:
        exchange = Exchange.of(request)
        exchange.route = route
        exchange.key = self.keyring.check(request.headers.get("authorization"), scope)
        return exchange

    def _deadline(self, request: Request, exchange: Exchange, *, explains: bool) -> Deadline:
        """Counted from the request's first byte: a body that took long has used up part of it."""
        default = self.settings.explain_deadline_ms if explains else self.settings.deadline_ms
        header = request.headers.get("x-deadline-ms")
        return Deadline.from_header(header, default, self.settings.max_deadline_ms, exchange.started)

    async def _body(self, request: Request, kind: type[Body]) -> Body:
        body = await _read(request, self.settings.max_body_bytes, self.settings.body_timeout_ms / 1_000)
        with Exchange.of(request).trace.stage("decode"):
            return decode(body, kind)


async def on_error(request: Request, error: Exception) -> Response:
    """Starlette's handler for every exception; the statuses are in errors.py."""
    exchange = Exchange.of(request)
    if not isinstance(error, HTTPException):
        return problem_response(error, exchange)
    response = problem_response(MethodNotAllowed() if error.status_code == 405 else NotFound(), exchange)
    response.headers.update(error.headers or {})
    return response


def decode(body: bytes, kind: type[Body]) -> Body:
    """JSON to a request. Raises InvalidJson, and InvalidRequest with where it is wrong but never with a value."""
    try:
        return msgspec.json.decode(body, type=kind)
    except msgspec.ValidationError as exc:
        # Decoding into a type stops at the first mismatch: what follows may still not be JSON.
        _check_json(body)
        raise InvalidRequest(_without_values(str(exc))) from exc
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
        raise InvalidJson(_json_fault(exc)) from exc


def _check_json(body: bytes) -> None:
    try:
        msgspec.json.decode(body)
    except msgspec.ValidationError:
        return  # JSON, with a number that no float can hold
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
        raise InvalidJson(_json_fault(exc)) from exc


def _json_fault(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return "nested too deeply"
    return "not UTF-8" if isinstance(error, UnicodeDecodeError) else str(error)


def _without_values(message: str) -> str:
    """msgspec names types, lengths and paths of ours; only the name of an unknown field is the client's."""
    if message.startswith("Object contains unknown field"):
        return "unknown field" + message[message.rindex("`") + 1 :] if " - at " in message else "unknown field"
    return message


async def _read(request: Request, max_bytes: int, timeout_s: float) -> bytes:
    """The body. Raises UnsupportedMediaType, BodyTooLarge, SlowBody, ClientGone."""
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type != "application/json":
        raise UnsupportedMediaType("send Content-Type: application/json")
    if request.headers.get("content-encoding", "identity").lower() != "identity":
        raise UnsupportedMediaType("send the body uncompressed")
    body = bytearray()
    try:
        async with asyncio.timeout(timeout_s):
            # Counted, not believed: Content-Length may lie, and chunks have none.
            async for chunk in request.stream():
                body += chunk
                if len(body) > max_bytes:
                    raise BodyTooLarge(f"at most {max_bytes} bytes")
    except TimeoutError as exc:
        raise SlowBody(f"the body must arrive within {timeout_s:g} s") from exc
    except ClientDisconnect as exc:
        raise ClientGone from exc
    return bytes(body)


async def _unless_gone(request: Request, work: Awaitable[Answer]) -> Answer:
    """The answer, unless the client goes first: then its work is dropped. Raises ClientGone."""
    answer = asyncio.ensure_future(work)
    # The body is read, so the next message can only be the disconnect.
    gone = asyncio.ensure_future(request.receive())
    try:
        await asyncio.wait({answer, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not answer.done():
            raise ClientGone
        return answer.result()
    finally:
        gone.cancel()
        answer.cancel()


def _json(body: Any, status: int = 200) -> Response:
    return Response(msgspec.json.encode(body), status, media_type="application/json")
