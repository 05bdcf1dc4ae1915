"""The composition root: settings in, ASGI app out. The only file that knows every part."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from importlib.metadata import version
from pathlib import Path

from fastapi import FastAPI
from prometheus_client import start_http_server
from starlette.exceptions import HTTPException

from feature_client.clock import replay_clock, wall_clock
from feature_client.errors import RapportError
from feature_client.mirror import Mirror
from feature_client.online.reader import FeatureReader
from feature_client.online.redis_reader import RedisReader
from service.admission import Admission
from service.auth import Keyring
from service.backends import Backend, infer_aside
from service.endpoints import Endpoints, on_error
from service.errors import TABLE
from service.exchange import Exchanges, Observer
from service.features import LANE, Features
from service.front import Front
from service.logs import AccessLog
from service.metrics import Metrics
from service.oip import OpenInference, add_routes
from service.oip_tensors import TensorScorer
from service.openapi import KEY, ONE_RELEASE, Gateway, answers_of
from service.predictor import Predictor
from service.protocol import ImportanceResponse, ModelList
from service.queues import Limits
from service.releases import Releases
from service.settings import Settings
from service.shadow import Shadows
from service.whatif import WhatIf


def create_app(
    settings: Settings,
    *,
    reader: FeatureReader | None = None,
    backend: Backend | None = None,
    metrics: Metrics | None = None,
) -> Front:
    """Production passes settings, a worker its metrics, tests other parts. Raises KeysError and RapportError."""
    metrics = metrics or Metrics()
    # A shadow that reads for itself has a connection of its own: what goes wrong on it is nobody else's.
    shadow_reader = reader or RedisReader.from_connection_string(settings.redis, settings.redis_timeout_ms / 1_000)
    reader = reader or RedisReader.from_connection_string(settings.redis, settings.redis_timeout_ms / 1_000)
    backend = backend or (_triton(settings, metrics) if settings.backend == "triton" else _embedded(settings))
    releases = _releases(settings, backend, metrics)
    lanes = {
        "predict": settings.max_inflight_rows,
        "explain": settings.max_inflight_explain_rows,
        LANE: settings.max_inflight_lookup_rows,
    }
    admission = Admission(lanes, metrics)
    limits = Limits(settings.max_batch_rows, settings.slice_rows, settings.batches_in_flight)
    shadows = Shadows(
        releases,
        shadow_reader,
        infer_aside(backend),
        metrics,
        settings.shadow_dir,
        is_busy=lambda: admission.rows["predict"] > 0,
    )
    predictor = Predictor(
        releases,
        reader,
        backend,
        admission,
        replay_clock(settings.as_of) if settings.as_of else wall_clock,
        metrics,
        limits,
        shadows,
    )
    features = Features(predictor, settings.slice_rows)
    what_if = WhatIf(predictor)
    tensors = TensorScorer(releases, backend, admission, metrics, limits)
    keyring = Keyring.from_file(settings.keys_file) if settings.keys_file else Keyring(None)
    exchanges = Exchanges(metrics, AccessLog(enabled=settings.log_level in ("debug", "info")))
    endpoints = Endpoints(settings, keyring, releases, reader, backend, metrics, exchanges)

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        exposition = None
        if settings.metrics_port is not None and settings.workers == 1:  # the port of several is not a worker's
            exposition, _thread = start_http_server(settings.metrics_port, settings.host, metrics.registry)
        if settings.workers > 1:
            # One that takes a dead worker's place is not asked before it has what the others have.
            await releases.look()
        watcher = asyncio.create_task(releases.watch(settings.release_poll_s))
        try:
            yield
        finally:
            if exposition is not None:
                await asyncio.to_thread(exposition.shutdown)
                exposition.server_close()
            watcher.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await watcher
            predictor.close()
            features.close()
            what_if.close()
            tensors.close()
            await shadows.close()
            await backend.close()
            await reader.close()
            await shadow_reader.close()
            exchanges.close()

    routes = _routes(endpoints, lifespan, own_metrics_port=settings.metrics_port is not None)
    add_routes(routes, OpenInference(endpoints, predictor, tensors))
    return Front(Observer(routes, exchanges), settings, keyring, predictor, features, what_if, exchanges)


def _routes(endpoints: Endpoints, lifespan: object, *, own_metrics_port: bool) -> FastAPI:
    app = Gateway(
        title="Rapport",
        version=version("rapport"),
        summary="From a customer id to an explained, multi-task engagement prediction, under one deadline.",
        lifespan=lifespan,  # type: ignore[arg-type]
        redoc_url=None,
        redirect_slashes=False,
        exception_handlers=dict.fromkeys((*TABLE, HTTPException, Exception), on_error),
    )
    app.get("/v1/models", response_model=None, responses=answers_of(ModelList), openapi_extra=KEY)(endpoints.models)
    app.get("/v1/models/{model}", response_model=None, openapi_extra=ONE_RELEASE)(endpoints.model)
    importance = app.get(
        "/v1/models/{model}/importance",
        response_model=None,
        responses=answers_of(ImportanceResponse),
        openapi_extra=ONE_RELEASE,
    )
    importance(endpoints.importance)
    app.get("/livez", response_model=None)(endpoints.livez)
    app.get("/readyz", response_model=None)(endpoints.readyz)
    if not own_metrics_port:
        app.get("/metrics", response_model=None, openapi_extra=KEY)(endpoints.exposition)
    return app


def _triton(settings: Settings, metrics: Metrics) -> Backend:
    try:
        from service.backends.triton import TritonBackend, TritonLimits  # noqa: PLC0415  (an extra, named when missing)
    except ImportError as exc:
        raise RapportError("Triton's client is not installed: pip install 'rapport[triton]'") from exc

    def told(address: str, up: bool) -> None:  # noqa: FBT001
        metrics.dependency(f"backend:{address}", up=up)

    limits = TritonLimits(
        settings.triton_batches_in_flight, settings.triton_timeout_ms / 1_000, settings.triton_instances
    )
    return TritonBackend(settings.triton_endpoints, limits, told)


def _releases(settings: Settings, backend: Backend, metrics: Metrics) -> Releases:
    trust = mirror = None
    if settings.release_key is not None:
        from feature_client.signature import TrustedKeys  # noqa: PLC0415  (an extra)

        trust = TrustedKeys.read(settings.release_key)
    if settings.models_cache is not None and settings.in_object_storage:
        mirror = Mirror(str(settings.models), settings.models_cache, trust)
    root = mirror.root if mirror else Path(settings.models)
    return Releases(root, backend, metrics, settings.max_deadline_ms / 1_000, trust, mirror)


def _embedded(settings: Settings) -> Backend:
    try:
        from service.backends.embedded import EmbeddedBackend  # noqa: PLC0415  (an extra, named when it is missing)
    except ImportError as exc:
        raise RapportError("ONNX Runtime is not installed: pip install 'rapport[cpu]' (or rapport[gpu])") from exc
    return EmbeddedBackend(settings.model_threads)
