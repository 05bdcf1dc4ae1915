"""The request path: admit, wait for a batch, answer."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence

from feature_client.clock import Clock
from feature_client.online.reader import EntityError, FeatureReader
from feature_client.schema import Override, OverrideError
from service.admission import Admission
from service.answers import explanations_of
from service.asker import Asker
from service.backends import Backend
from service.coalescer import Coalescer, Run
from service.errors import DeadlineExceeded, InvalidRequest, Overloaded
from service.metrics import Metrics
from service.protocol import MAX_EXPLAINED, ExplainRequest, Prediction, PredictRequest, PredictResponse
from service.queues import Limits, Queues
from service.releases import Arm, Loaded, Releases, Served
from service.scoring import Scored, Scorer, Work
from service.shadow import Shadows

Done = Callable[[PredictResponse | Exception], None]
Answered = tuple[Arm, Sequence[Scored]]
"""An arm of a request, and what its batches found for it."""


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
        shadows: Shadows | None = None,
    ) -> None:
        self.releases = releases
        self.reader = reader
        self.backend = backend
        self.admission = admission
        self.clock = clock
        self.metrics = metrics
        self.shadows = shadows
        self.queues = Queues(releases, limits, self._scoring)

    async def predict(self, request: PredictRequest, asker: Asker) -> PredictResponse:
        """Raises the errors of service/errors.py."""
        served, arms = self._arms(request, asker)
        if request.explain is None:
            return _response(await self._score(served, arms, "predict", request, asker), asker)
        if len(request.entities) > MAX_EXPLAINED:
            raise InvalidRequest(f"explain: at most {MAX_EXPLAINED} entities, or leave explain out")
        try:
            answered = await self._score(served, arms, "explain", request, asker)
        except Overloaded:
            # Reasons are shed first: the scores still come.
            response = _response(await self._score(served, arms, "predict", request, asker), asker)
            for prediction in response.predictions:
                prediction.explanations = None
            return response
        for (loaded, _), parts in answered:
            _explain(loaded, parts, loaded.release.contract.task_names, request.explain)
        return _response(answered, asker)

    async def explain(self, request: ExplainRequest, asker: Asker) -> PredictResponse:
        """Raises the errors of service/errors.py."""
        served, arms = self._arms(request, asker)
        for loaded, _ in arms:
            known = loaded.release.contract.task_names
            for position, task in enumerate(request.tasks or ()):
                if task not in known:
                    raise InvalidRequest(f"tasks[{position}]: not a task of this model")
        answered = await self._score(served, arms, "explain", request, asker)
        for (loaded, _), parts in answered:
            _explain(loaded, parts, request.tasks or loaded.release.contract.task_names, request.top)
        return _response(answered, asker)

    def close(self) -> None:
        self.queues.close()

    def start(self, request: PredictRequest, asker: Asker, done: Done) -> None:
        """`predict` without reasons, for who has no coroutine to wait in: `done` gets the answer, or the error.

        Raises whatever `predict` would raise before it waits, and SeveralArms.
        """
        served, arms = self._arms(request, asker)
        if len(arms) > 1:
            raise SeveralArms
        [(queue, work)] = self._admit(served, arms, "predict", request, asker)

        def finish(answer: "asyncio.Future[Sequence[Scored]]") -> None:
            self.admission.leave("predict", len(work))
            try:
                parts = answer.result()
            except Exception as exc:  # noqa: BLE001  (whatever it is, it is the answer)
                done(exc)
            else:
                _note(parts, asker)
                done(_response([(arms[0], parts)], asker))

        try:
            queue.enter(work, asker).answer.add_done_callback(finish)
        except DeadlineExceeded:
            self.admission.leave("predict", len(work))
            raise

    def _arms(self, request: PredictRequest | ExplainRequest, asker: Asker) -> tuple[Served, list[Arm]]:
        served = self.releases.find(request.model)
        arms = served.arms(request.entities, request.version)
        asker.model = served.champion.release.contract.model
        asker.rows = len(request.entities)
        return served, arms

    async def _score(
        self,
        served: Served,
        arms: Sequence[Arm],
        lane: str,
        request: PredictRequest | ExplainRequest,
        asker: Asker,
    ) -> list[Answered]:
        places = self._admit(served, arms, lane, request, asker)
        try:
            if len(places) == 1:
                [(queue, work)] = places
                parts = [await queue.submit(work, asker)]
            else:
                parts = await _all([queue.submit(work, asker) for queue, work in places])
        finally:
            self.admission.leave(lane, asker.rows)
        _note([part for of_arm in parts for part in of_arm], asker)
        return list(zip(arms, parts, strict=True))

    def _admit(
        self,
        served: Served,
        arms: Sequence[Arm],
        lane: str,
        request: PredictRequest | ExplainRequest,
        asker: Asker,
    ) -> list[tuple[Coalescer[Work, Scored], Work]]:
        """A queue and the work in it for each arm. Whoever is admitted leaves, whatever happens.

        Raises EntityError, OverrideError, Overloaded.
        """
        # Before anything is batched: one request's mistake must not become its neighbours' error.
        overrides = _overrides(request)
        rejects_unknown = served.route.unknown == "reject"
        work = [(loaded, _work(loaded, rows, request, overrides, rejects_unknown)) for loaded, rows in arms]
        self.admission.enter(lane, asker.rows)
        admitted = time.monotonic()
        asker.stages["admit"] = admitted - asker.since
        asker.since = admitted
        return [(self.queues.of(loaded, explains=lane == "explain"), part) for loaded, part in work]

    def _scoring(self, loaded: Loaded, name: str) -> Run[Work, Scored]:
        return Scorer(loaded, name, self.reader, self.backend, self.clock, self.metrics, self.shadows).score


async def _all(answers: Iterable[Awaitable[Sequence[Scored]]]) -> list[Sequence[Scored]]:
    """Raises the first error, once all have an answer: nothing of a request goes on behind its back."""
    found = await asyncio.gather(*answers, return_exceptions=True)
    if errors := [one for one in found if isinstance(one, BaseException)]:
        raise errors[0]
    return [one for one in found if not isinstance(one, BaseException)]


class SeveralArms(Exception):
    """A request whose entities several releases answer."""


def _work(
    loaded: Loaded,
    rows: Sequence[int] | None,
    request: PredictRequest | ExplainRequest,
    overrides: Sequence[Mapping[str, Override]] | None,
    rejects_unknown: bool,  # noqa: FBT001  (a policy, handed on)
) -> Work:
    """What `loaded` answers of a request: these rows of it, or all. Raises EntityError and OverrideError, of the
    request's row."""
    entities: Sequence[dict[str, str]] = request.entities
    if rows is not None:
        entities = [entities[row] for row in rows]
        overrides = None if overrides is None else [overrides[row] for row in rows]
    try:
        keys = loaded.plan.keys(entities)
        if overrides is not None:
            loaded.release.contract.schema.check_overrides(overrides)
    except (EntityError, OverrideError) as exc:
        if rows is not None:
            exc.row = rows[exc.row]
        raise
    return Work(entities, keys, overrides, rejects_unknown, is_routed=request.version is None)


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


def _response(answered: Sequence[Answered], asker: Asker) -> PredictResponse:
    """as_of: of the first slice; those of a large request are milliseconds apart."""
    (loaded, rows), parts = answered[0]
    predictions = parts[0].predictions
    if len(parts) > 1:
        predictions = [prediction for part in parts for prediction in part.predictions]
    if rows is not None:
        placed: dict[int, Prediction] = {}
        for arm, parts_of_arm in answered:
            found = (prediction for part in parts_of_arm for prediction in part.predictions)
            placed |= zip(arm.rows or (), found, strict=True)
        predictions = [placed[row] for row in range(len(placed))]
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
