"""What FastAPI routes, HTTP in, HTTP out: models, health, metrics. Predict and explain are in front.py."""

import asyncio
from dataclasses import dataclass
from typing import Any

import msgspec
from fastapi import Request
from starlette.exceptions import HTTPException
from starlette.responses import PlainTextResponse, Response

from feature_client.online.reader import FeatureReader, FeatureStoreUnavailable
from service.auth import Keyring
from service.backends import Backend
from service.errors import MethodNotAllowed, NotFound
from service.exchange import Exchange, Exchanges, problem_response
from service.importance import importance_of
from service.metrics import Metrics
from service.protocol import CanarySummary, ModelList, ModelSummary
from service.releases import Releases, Served
from service.settings import Settings


@dataclass
class Endpoints:
    settings: Settings
    keyring: Keyring
    releases: Releases
    reader: FeatureReader
    backend: Backend
    metrics: Metrics
    exchanges: Exchanges
    store_answered: bool = False

    async def models(self, request: Request) -> Response:
        """What is served: models, their champion and loaded versions, their tasks."""
        self.enter(request, "/v1/models", "predict")
        return json_response(ModelList([_summary(model, served) for model, served in self.releases.served.items()]))

    async def model(self, request: Request) -> Response:
        """The contract and the model card of the champion, or of the loaded release that `version` names; the route."""
        self.enter(request, "/v1/models/{model}", "predict")
        served = self.releases.find(request.path_params["model"])
        release = served.loaded(request.query_params.get("version")).release
        card = await asyncio.to_thread(release.card.read_text, "utf-8")
        return json_response({"route": served.route, "contract": release.contract, "card": card})

    async def importance(self, request: Request) -> Response:
        """How much each group of features and each feature moves the scores, on average over a sample of customers.

        Of the champion, or of the loaded release that `version` names.
        """
        self.enter(request, "/v1/models/{model}/importance", "predict")
        served = self.releases.find(request.path_params["model"])
        release = served.loaded(request.query_params.get("version")).release
        return json_response(importance_of(release.contract, release.version))

    async def livez(self, request: Request) -> Response:
        """200 while the process answers."""
        Exchange.of(request).route = "/livez"
        return json_response({"live": True})

    async def readyz(self, request: Request) -> Response:
        """200 once a release gave its golden answers and the store answered once; later outages are in the body."""
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
            "last_reload": "failed" if self.releases.is_failing else "ok",
            "feature_store": store,
            "backend": "ok" if self.backend.available else "unavailable",
        }
        return json_response(body, 200 if ready else 503)

    async def exposition(self, request: Request) -> Response:
        """Prometheus metrics; with keys configured, for the scope admin."""
        self.enter(request, "/metrics", "admin")
        self.exchanges.settle()
        return PlainTextResponse(self.metrics.exposition(), media_type="text/plain; version=0.0.4")

    def enter(self, request: Request, route: str, scope: str) -> Exchange:
        """Lets the request in. Raises Unauthenticated, Forbidden, QuotaExceeded."""
        exchange = Exchange.of(request)
        exchange.route = route
        authorization = request.headers.get("authorization")
        exchange.key = self.keyring.check(authorization.encode("latin-1") if authorization else None, scope)
        return exchange


async def on_error(request: Request, error: Exception) -> Response:
    """Starlette's handler for every exception; the statuses are in errors.py."""
    exchange = Exchange.of(request)
    open_inference = f"{request.scope['path']}/".startswith("/v2/")
    if not isinstance(error, HTTPException):
        return problem_response(error, exchange, open_inference=open_inference)
    refusal = MethodNotAllowed() if error.status_code == 405 else NotFound()
    response = problem_response(refusal, exchange, open_inference=open_inference)
    response.headers.update(error.headers or {})
    return response


def _summary(model: str, served: Served) -> ModelSummary:
    canary = served.canary and served.route.canary
    return ModelSummary(
        model=model,
        champion=served.champion.release.version,
        canary=CanarySummary(str(canary.version), canary.percent) if canary else None,
        shadow=[loaded.release.version for loaded in served.shadows],
        versions=sorted(served.versions, key=int),
        tasks=list(served.champion.release.contract.task_names),
    )


def json_response(body: Any, status: int = 200) -> Response:
    return Response(msgspec.json.encode(body), status, media_type="application/json")
