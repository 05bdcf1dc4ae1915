"""The request path: admit, fetch, infer, answer."""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np

from feature_client.clock import Clock, to_iso
from feature_client.online.reader import EntityKey, FeatureReader, FeatureStoreUnavailable
from feature_client.schema import Encoded, FeatureBatch, Override
from service.admission import Admission, Deadline
from service.answers import explanations_of, predictions_of
from service.backends import Backend, Tensors, check_outputs
from service.coalescer import Coalescer
from service.errors import DeadlineExceeded, InvalidRequest, Overloaded
from service.metrics import NO_MODEL, Metrics
from service.protocol import MAX_EXPLAINED, ExplainRequest, Prediction, PredictRequest, PredictResponse
from service.releases import Loaded, Releases, Served

NO_OVERRIDES: Mapping[str, Override] = {}


@dataclass(frozen=True)
class Work:
    """What one request adds to a batch, a key and a mapping an entity."""

    keys: Sequence[EntityKey]
    overrides: Sequence[Mapping[str, Override]]


@dataclass(frozen=True)
class Scored:
    """What a batch found for one request: one feature snapshot and one run of one graph."""

    as_of: float
    encoded: Encoded
    outputs: Tensors
    stages: Mapping[str, float]  # stage -> seconds


@dataclass
class Trace:
    """Where the time of one request went, and what it asked for; becomes Server-Timing, metrics and the log line."""

    model: str = NO_MODEL
    rows: int = 0
    stages: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        started = time.perf_counter()
        try:
            yield
        finally:
            self.stages[name] = self.stages.get(name, 0.0) + time.perf_counter() - started


@dataclass(frozen=True)
class Limits:
    """Seconds and rows; see Settings for how to choose."""

    batch_rows: int
    batches_in_flight: int


class Predictor:
    def __init__(
        self,
        releases: Releases,
        reader: FeatureReader,
        backend: Backend,
        admission: Admission,
        clock: Clock,
        metrics: Metrics,
        limits: Limits,
    ) -> None:
        self.releases = releases
        self.reader = reader
        self.backend = backend
        self.admission = admission
        self.clock = clock
        self.metrics = metrics
        self.limits = limits
        self.queues: dict[str, Coalescer[Work, Scored]] = {}

    async def predict(
        self, request: PredictRequest, deadline: Deadline, request_id: str, trace: Trace
    ) -> PredictResponse:
        """Raises the errors of service/errors.py."""
        served, loaded = self._resolve(request, trace)
        if request.explain is None:
            scored = await self._score(loaded, "predict", request, deadline, trace)
            return self._answer(request, served, loaded, scored, request_id, trace)
        if len(request.entities) > MAX_EXPLAINED:
            raise InvalidRequest(f"explain: at most {MAX_EXPLAINED} entities, or leave explain out")
        try:
            scored = await self._score(loaded, "explain", request, deadline, trace)
        except Overloaded:
            # Reasons are shed first: the scores still come.
            scored = await self._score(loaded, "predict", request, deadline, trace)
            response = self._answer(request, served, loaded, scored, request_id, trace)
            for prediction in response.predictions:
                prediction.explanations = None
            return response
        tasks = loaded.release.contract.task_names
        return self._answer(request, served, loaded, scored, request_id, trace, tasks, request.explain)

    async def explain(
        self, request: ExplainRequest, deadline: Deadline, request_id: str, trace: Trace
    ) -> PredictResponse:
        """Raises the errors of service/errors.py."""
        served, loaded = self._resolve(request, trace)
        known = loaded.release.contract.task_names
        for position, task in enumerate(request.tasks or ()):
            if task not in known:
                raise InvalidRequest(f"tasks[{position}]: not a task of this model")
        scored = await self._score(loaded, "explain", request, deadline, trace)
        return self._answer(request, served, loaded, scored, request_id, trace, request.tasks or known, request.top)

    def _resolve(self, request: PredictRequest | ExplainRequest, trace: Trace) -> tuple[Served, Loaded]:
        served, loaded = self.releases.resolve(request.model, request.version)
        trace.model = loaded.release.manifest.model
        trace.rows = len(request.entities)
        return served, loaded

    async def _score(
        self, loaded: Loaded, lane: str, request: PredictRequest | ExplainRequest, deadline: Deadline, trace: Trace
    ) -> Scored:
        with trace.stage("admit"):
            # Before anything is batched: one request's mistake must not become its neighbours' error.
            work = Work(loaded.plan.keys(request.entities), _overrides(request))
            loaded.release.contract.schema.check_overrides(work.overrides)
        rows = len(work.keys)
        with self.admission.admit(lane, rows):
            started = time.perf_counter()
            try:
                scored = await self._queue(loaded, lane).submit(work, rows, deadline)
            except TimeoutError as exc:
                raise DeadlineExceeded from exc
            waited = time.perf_counter() - started - sum(scored.stages.values())
            trace.stages |= {**scored.stages, "queue": max(waited, 0.0)}
        return scored

    def _queue(self, loaded: Loaded, lane: str) -> Coalescer[Work, Scored]:
        name = loaded.release.name if lane == "predict" else loaded.release.explain_name
        if name not in self.queues:
            live = self.releases.graphs()
            self.queues = {graph: queue for graph, queue in self.queues.items() if graph in live}

            async def run(batch: Sequence[Work], seconds: float) -> list[Scored | Exception]:
                return await self._run(loaded, name, batch, seconds)

            rows = self.limits.batch_rows if lane == "predict" else MAX_EXPLAINED
            self.queues[name] = Coalescer(run, max_rows=rows, in_flight=self.limits.batches_in_flight)
        return self.queues[name]

    async def _run(self, loaded: Loaded, name: str, batch: Sequence[Work], seconds: float) -> list[Scored | Exception]:
        """One feature read and one inference for the whole batch."""
        ends = time.monotonic() + seconds
        contract = loaded.release.contract
        keys = [key for work in batch for key in work.keys]
        self.metrics.batch("infer", len(keys))
        trace = Trace()
        as_of = self.clock()
        with trace.stage("features"):
            stored = await self._fetch(loaded, keys, seconds)
            overrides = [values for work in batch for values in work.overrides]
            encoded = contract.schema.encode(stored, as_of, overrides)
        self.metrics.features(contract, encoded, as_of - stored.event_times)
        with trace.stage("infer"):
            outputs = await self.backend.infer(name, encoded.tensors, max(ends - time.monotonic(), 0.0))
            check_outputs(name, outputs, contract.outputs(len(keys), explained=name == loaded.release.explain_name))
        answers: list[Scored | Exception] = []
        start = 0
        for work in batch:
            rows = slice(start, start + len(work.keys))
            start = rows.stop
            if reason := stored.refusal(rows):
                answers.append(FeatureStoreUnavailable(reason))
                continue
            own = {output: values[rows] for output, values in outputs.items()}
            answers.append(Scored(as_of, encoded.rows(rows), own, trace.stages))
        return answers

    async def _fetch(self, loaded: Loaded, keys: Sequence[EntityKey], seconds: float) -> FeatureBatch:
        started = time.monotonic()
        try:
            stored = await self.reader.fetch(loaded.plan, keys, seconds)
        except FeatureStoreUnavailable as exc:
            if time.monotonic() - started >= seconds:
                # It was the requests' own time that ran out: nothing is known of the store.
                raise DeadlineExceeded from exc
            self.metrics.dependency("feature_store", up=False)
            raise
        self.metrics.dependency("feature_store", up=True)
        return stored

    def _answer(
        self,
        request: PredictRequest | ExplainRequest,
        served: Served,
        loaded: Loaded,
        scored: Scored,
        request_id: str,
        trace: Trace,
        explained: Sequence[str] = (),
        top: int | None = None,
    ) -> PredictResponse:
        with trace.stage("encode"):
            contract, version = loaded.release.contract, loaded.release.version
            predictions = predictions_of(contract, version, request.entities, scored.encoded, scored.outputs)
            for row, prediction in enumerate(predictions):
                if explained:
                    prediction.explanations = explanations_of(
                        contract, scored.encoded, scored.outputs, row, explained, top
                    )
                if served.route.unknown == "reject" and prediction.status == "unknown_entity":
                    _reject(prediction)
            statuses = [prediction.status for prediction in predictions]
            rejected = np.array([prediction.scores is None for prediction in predictions])
            answered = contract.eligible(scored.encoded) & ~rejected[:, None]
            self.metrics.predictions(contract, version, statuses, scored.outputs["scores"], answered)
            return PredictResponse(contract.model, request_id, to_iso(scored.as_of), predictions)


def _overrides(request: PredictRequest | ExplainRequest) -> Sequence[Mapping[str, Override]]:
    """One mapping an entity."""
    rows = len(request.entities)
    features = request.features
    if features is None:
        return [NO_OVERRIDES] * rows
    if isinstance(features, dict):
        return [features] * rows
    if len(features) != rows:
        raise InvalidRequest("features: one object for all entities, or a list with one for each")
    return features


def _reject(prediction: Prediction) -> None:
    prediction.scores = prediction.segments = None
    prediction.not_applicable = []
    if prediction.explanations:
        prediction.explanations = None
