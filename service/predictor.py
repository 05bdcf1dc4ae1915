"""The request path: admit, wait for a batch, answer."""

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from feature_client.clock import Clock
from feature_client.online.reader import FeatureReader
from feature_client.schema import Override
from service.admission import Admission
from service.answers import explanations_of
from service.asker import Asker
from service.backends import Backend
from service.coalescer import Coalescer
from service.errors import DeadlineExceeded, InvalidRequest, Overloaded
from service.metrics import Metrics
from service.protocol import MAX_EXPLAINED, ExplainRequest, PredictRequest, PredictResponse
from service.releases import Loaded, Releases, Served
from service.scoring import Scored, Scorer, Work

Done = Callable[[PredictResponse | Exception], None]

EXPLAINED_SLICE_ROWS = 8
"""Entities that one request adds to a batch of explanations: a quarter of the largest request."""


@dataclass(frozen=True)
class Limits:
    """See Settings for how to choose."""

    batch_rows: int
    slice_rows: int
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

    async def predict(self, request: PredictRequest, asker: Asker) -> PredictResponse:
        """Raises the errors of service/errors.py."""
        served, loaded = self._resolve(request, asker)
        if request.explain is None:
            return _response(loaded, await self._score(served, loaded, "predict", request, asker), asker)
        if len(request.entities) > MAX_EXPLAINED:
            raise InvalidRequest(f"explain: at most {MAX_EXPLAINED} entities, or leave explain out")
        try:
            parts = await self._score(served, loaded, "explain", request, asker)
        except Overloaded:
            # Reasons are shed first: the scores still come.
            response = _response(loaded, await self._score(served, loaded, "predict", request, asker), asker)
            for prediction in response.predictions:
                prediction.explanations = None
            return response
        _explain(loaded, parts, loaded.release.contract.task_names, request.explain)
        return _response(loaded, parts, asker)

    async def explain(self, request: ExplainRequest, asker: Asker) -> PredictResponse:
        """Raises the errors of service/errors.py."""
        served, loaded = self._resolve(request, asker)
        known = loaded.release.contract.task_names
        for position, task in enumerate(request.tasks or ()):
            if task not in known:
                raise InvalidRequest(f"tasks[{position}]: not a task of this model")
        parts = await self._score(served, loaded, "explain", request, asker)
        _explain(loaded, parts, request.tasks or known, request.top)
        return _response(loaded, parts, asker)

    def close(self) -> None:
        for queue in self.queues.values():
            queue.close()

    def _resolve(self, request: PredictRequest | ExplainRequest, asker: Asker) -> tuple[Served, Loaded]:
        served, loaded = self.releases.resolve(request.model, request.version)
        asker.model = loaded.release.contract.model
        asker.rows = len(request.entities)
        return served, loaded

    def start(self, request: PredictRequest, asker: Asker, done: Done) -> None:
        """`predict` without reasons, for who has no coroutine to wait in: `done` gets the answer, or the error.

        Raises whatever `predict` would raise before it waits.
        """
        served, loaded = self._resolve(request, asker)
        queue, work = self._admit(served, loaded, "predict", request, asker)

        def finish(answer: "asyncio.Future[Sequence[Scored]]") -> None:
            self.admission.leave("predict", len(work))
            try:
                parts = answer.result()
            except Exception as exc:  # noqa: BLE001  (whatever it is, it is the answer)
                done(exc)
            else:
                _note(parts, asker)
                done(_response(loaded, parts, asker))

        try:
            queue.enter(work, asker).answer.add_done_callback(finish)
        except DeadlineExceeded:
            self.admission.leave("predict", len(work))
            raise

    async def _score(
        self, served: Served, loaded: Loaded, lane: str, request: PredictRequest | ExplainRequest, asker: Asker
    ) -> Sequence[Scored]:
        queue, work = self._admit(served, loaded, lane, request, asker)
        try:
            parts = await queue.submit(work, asker)
        finally:
            self.admission.leave(lane, len(work))
        _note(parts, asker)
        return parts

    def _admit(
        self, served: Served, loaded: Loaded, lane: str, request: PredictRequest | ExplainRequest, asker: Asker
    ) -> tuple[Coalescer[Work, Scored], Work]:
        """Whoever is admitted leaves, whatever happens. Raises EntityError, OverrideError, Overloaded."""
        # Before anything is batched: one request's mistake must not become its neighbours' error.
        overrides = _overrides(request)
        keys = loaded.plan.keys(request.entities)
        if overrides is not None:
            loaded.release.contract.schema.check_overrides(overrides)
        self.admission.enter(lane, len(keys))
        admitted = time.monotonic()
        asker.stages["admit"] = admitted - asker.since
        asker.since = admitted
        return self._queue(loaded, lane), Work(request.entities, keys, overrides, served.route.unknown == "reject")

    def _queue(self, loaded: Loaded, lane: str) -> Coalescer[Work, Scored]:
        explains = lane == "explain"
        name = loaded.release.explain_name if explains else loaded.release.name
        queue = self.queues.get(name)
        if queue is None:
            live = self.releases.graphs()
            self.queues = {graph: queue for graph, queue in self.queues.items() if graph in live}
            queue = self.queues[name] = Coalescer(
                Scorer(loaded, name, self.reader, self.backend, self.clock, self.metrics).score,
                max_rows=MAX_EXPLAINED if explains else self.limits.batch_rows,
                slice_rows=EXPLAINED_SLICE_ROWS if explains else self.limits.slice_rows,
                in_flight=self.limits.batches_in_flight,
            )
        return queue


def _note(parts: Sequence[Scored], asker: Asker) -> None:
    """Where the time since it was admitted went; when no batch of the request was at work, it was waiting."""
    stages = asker.stages
    now = time.monotonic()
    seconds, asker.since = now - asker.since, now
    for part in parts:
        for stage, spent in part.stages.items():
            stages[stage] = stages.get(stage, 0.0) + spent
            seconds -= spent
    # The slices of a large request overlap: together they may take longer than it waited.
    stages["queue"] = stages.get("queue", 0.0) + max(seconds, 0.0)


def _explain(loaded: Loaded, parts: Sequence[Scored], tasks: Sequence[str], top: int | None) -> None:
    for part in parts:
        for row, prediction in enumerate(part.predictions, start=part.first):
            withheld = prediction.scores is None
            prediction.explanations = (
                None
                if withheld
                else explanations_of(loaded.release.contract, part.encoded, part.outputs, row, tasks, top)
            )


def _response(loaded: Loaded, parts: Sequence[Scored], asker: Asker) -> PredictResponse:
    """as_of: of the first slice; those of a large request are milliseconds apart."""
    predictions = parts[0].predictions
    if len(parts) > 1:
        predictions = [prediction for part in parts for prediction in part.predictions]
    return PredictResponse(loaded.release.contract.model, asker.request_id, parts[0].as_of, predictions)


def _overrides(request: PredictRequest | ExplainRequest) -> Sequence[Mapping[str, Override]] | None:
    """One mapping an entity; None where there are none at all."""
    features, rows = request.features, len(request.entities)
    if features is None:
        return None
    if isinstance(features, dict):
        return [features] * rows
    if len(features) != rows:
        raise InvalidRequest("features: one object for all entities, or a list with one for each")
    return features
