"""The request path: admit, wait for a batch, answer."""

import asyncio
import contextlib
import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import NamedTuple, cast

import msgspec

from feature_client.clock import Clock
from feature_client.contract import EXPLAINERS
from feature_client.online.reader import FeatureReader
from service.admission import Admission
from service.asker import Asker
from service.backends import Backend
from service.coalescer import Coalescer, Run, every
from service.errors import DeadlineExceeded, InvalidRequest, Overloaded
from service.explainers import choose, weight_of
from service.metrics import Metrics
from service.protocol import (
    MAX_EXPLAINED,
    BeforeOverrides,
    ExplainRequest,
    Prediction,
    PredictRequest,
    PredictResponse,
    TaskExplanation,
)
from service.queues import Limits, Queues
from service.reasons import Asked
from service.releases import Arm, Loaded, Releases, Served
from service.scoring import Scored, Scorer
from service.shadow import Shadows
from service.turns import Turns
from service.work import AboutEntities, Work, overrides_of, work_of

encode = msgspec.json.Encoder().encode
Explanations = dict[str, TaskExplanation | None]

SPARE_S = 0.01
"""Of a prediction's deadline, kept back from its reasons: without them it is still an answer."""

LATELY_S = 0.005
"""After a prediction others are expected for so long: batches end together, and in the gap between two of them a long
piece of work would be begun just when the next ones arrive."""

Done = Callable[[PredictResponse | Exception], None]


class Answered(NamedTuple):
    """What the batches found for an arm of a request. asked: None where it has no reasons."""

    arm: Arm
    asked: Asked | None
    parts: Sequence[Scored]


class Place(NamedTuple):
    """Where an arm's part of a request waits. asked: with its explainer. weight: what it counts in its lane."""

    arm: Arm
    asked: Asked | None
    queue: Coalescer[Work, Scored]
    work: Work
    weight: int


Wanted = Asked | str | None
"""How a request is to be explained, or by which explainer alone; None: scores alone."""


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
        self.turns = Turns(self.is_predicting)
        self._predicted_at = 0.0  # monotonic: when a prediction was last admitted

    async def predict(self, request: PredictRequest, asker: Asker) -> PredictResponse:
        """Raises the errors of service/errors.py."""
        if request.explain is None:
            return _response(await self._scored(request, None, asker), asker)
        if len(request.entities) > MAX_EXPLAINED:
            raise InvalidRequest(f"explain: at most {MAX_EXPLAINED} entities, or leave explain out")
        try:
            return await self._explained(request, Asked(top=request.explain), asker, sheds=True)
        except Overloaded:
            # Reasons are shed first: the scores still come.
            response = _response(await self._scored(request, None, asker), asker)
            for prediction in response.predictions:
                prediction.explanations = None
            return response

    async def explain(self, request: ExplainRequest, asker: Asker) -> PredictResponse:
        """Raises the errors of service/errors.py."""
        asked = Asked(
            request.tasks,
            request.top,
            request.space,
            request.detail,
            request.language,
            request.tolerance,
            None if request.budget_ms is None else request.budget_ms / 1_000,
        )
        return await self._explained(request, asked, asker)

    async def outputs(
        self, request: PredictRequest, explainer: str | None, asker: Asker
    ) -> tuple[PredictResponse, list[Answered]]:
        """`predict`, with the tensors it is made of, from the graph of an explainer or the score graph (None).

        Raises the errors of service/errors.py.
        """
        answered = await self._scored(request, explainer, asker)
        return _response(answered, asker), answered

    def close(self) -> None:
        self.queues.close()

    def start(self, request: PredictRequest, asker: Asker, done: Done) -> None:
        """`predict` without reasons, for who has no coroutine to wait in: `done` gets the answer, or the error.

        Raises whatever `predict` would raise before it waits, and SeveralArms.
        """
        served, arms = self.arms(request, asker)
        if len(arms) > 1:
            raise SeveralArms
        [place] = self._admit(served, arms, None, request, asker)
        queue, work = place.queue, place.work

        def finish(answer: "asyncio.Future[Sequence[Scored]]") -> None:
            self.admission.leave("predict", len(work))
            try:
                parts = answer.result()
            except Exception as exc:  # noqa: BLE001  (whatever it is, it is the answer)
                done(exc)
            else:
                asker.note([part.stages for part in parts])
                done(_response([Answered(place.arm, None, parts)], asker))

        try:
            queue.enter(work, asker).answer.add_done_callback(finish)
        except DeadlineExceeded:
            self.admission.leave("predict", len(work))
            raise

    def arms(self, request: AboutEntities, asker: Asker) -> tuple[Served, list[Arm]]:
        """Who answers it, as the model is routed now; noted down for the asker. Raises NotReady, UnknownModel."""
        served = self.releases.find(request.model)
        arms = served.arms(request.entities, request.version)
        asker.model = served.champion.release.contract.model
        asker.rows = len(request.entities)
        return served, arms

    async def _scored(self, request: PredictRequest | ExplainRequest, wanted: Wanted, asker: Asker) -> list[Answered]:
        with self._admitted(request, wanted, asker) as places:
            return await self._answered(places, asker)

    async def _explained(
        self, request: PredictRequest | ExplainRequest, asked: Asked, asker: Asker, *, sheds: bool = False
    ) -> PredictResponse:
        """sheds: scores alone where there is no time for reasons."""
        with self._admitted(request, asked, asker) as places:
            answered = await self._answered(places, asker)
            writing = time.monotonic()
            try:
                # Of what scores and reasons are made, they are the longest piece of work on the event loop.
                pieces = itertools.chain.from_iterable(map(_reasons, answered))
                await self.turns.take(pieces, asker, SPARE_S if sheds else 0.0)
            except DeadlineExceeded:
                if not sheds:
                    raise
                for part in itertools.chain.from_iterable(one.parts for one in answered):
                    for prediction in part.predictions:
                        prediction.explanations = None
            asker.stages["encode"] = asker.stages.get("encode", 0.0) + time.monotonic() - writing
            asker.since = time.monotonic()
            return _response(answered, asker)

    @contextlib.contextmanager
    def _admitted(
        self, request: PredictRequest | ExplainRequest, wanted: Wanted, asker: Asker
    ) -> Iterator[list[Place]]:
        served, arms = self.arms(request, asker)
        places = self._admit(served, arms, wanted, request, asker)
        try:
            yield places
        finally:
            self.admission.leave("predict" if wanted is None else "explain", sum(place.weight for place in places))

    async def _answered(self, places: Sequence[Place], asker: Asker) -> list[Answered]:
        if len(places) == 1:
            parts = [await places[0].queue.submit(places[0].work, asker)]
        else:
            parts = await every([place.queue.submit(place.work, asker) for place in places])
        asker.note([part.stages for of_arm in parts for part in of_arm])
        return [Answered(place.arm, place.asked, found) for place, found in zip(places, parts, strict=True)]

    def _admit(
        self,
        served: Served,
        arms: Sequence[Arm],
        wanted: Wanted,
        request: PredictRequest | ExplainRequest,
        asker: Asker,
    ) -> list[Place]:
        """A queue and the work in it for each arm. Whoever is admitted leaves, whatever happens.

        Raises EntityError, OverrideError, InvalidRequest, Overloaded.
        """
        # Before anything is batched: one request's mistake must not become its neighbours' error.
        overrides = overrides_of(request)
        rejects_unknown = served.route.unknown == "reject"
        places = []
        for arm in arms:
            work = work_of(arm, request, overrides, rejects_unknown)
            runs = 2 if work.compares else 1
            asked = _chosen(arm.loaded, wanted, runs * len(work)) if isinstance(wanted, Asked) else None
            explainer = wanted if isinstance(wanted, str) else None if asked is None else asked.explainer
            weight = len(work)
            if explainer is not None:
                if explainer not in arm.loaded.release.contract.explanation.explainers:
                    raise InvalidRequest(
                        "a version that answers these customers has no such explainer; ask for one version"
                    )
                weight *= weight_of(arm.loaded.release.contract, explainer) * runs
            places.append(Place(arm, asked, self.queues.of(arm.loaded, explainer), work, weight))
        weight = sum(place.weight for place in places)
        if wanted is None:
            self.admission.enter("predict", weight)
        else:
            self.admission.enter("explain", weight, arms[0].loaded.paces[EXPLAINERS[0]].row_s, asker.deadline)
        admitted = time.monotonic()
        if wanted is None:
            self._predicted_at = admitted
        asker.stages["admit"] = admitted - asker.since
        asker.since = admitted
        return places

    def is_predicting(self) -> bool:
        """Whether predictions are under way, or to be expected at once."""
        return self.admission.rows["predict"] > 0 or time.monotonic() - self._predicted_at < LATELY_S

    def _scoring(self, loaded: Loaded, explainer: str | None) -> Run[Work, Scored]:
        scorer = Scorer(loaded, explainer, self.reader, self.backend, self.clock, self.metrics, self.shadows)
        if explainer is None:
            return scorer.score

        async def score(
            batch: Sequence[Work], seconds: float, has_read: Callable[[], None]
        ) -> list[Scored | Exception]:
            ends = time.monotonic() + seconds
            return await self.turns.run(lambda: scorer.score(batch, ends - time.monotonic(), has_read))

        return score


class SeveralArms(Exception):
    """A request whose entities several releases answer."""


def _chosen(loaded: Loaded, asked: Asked, rows: int) -> Asked:
    """rows: that its graph will run on, twice the entities where they are compared. Raises InvalidRequest."""
    contract = loaded.release.contract
    for position, task in enumerate(asked.tasks or ()):
        if task not in contract.task_names:
            raise InvalidRequest(f"tasks[{position}]: not a task of this model")
    loaded.reasons.wording(asked.language)
    return choose(loaded.release.name, contract, asked, lambda explainer: loaded.paces[explainer].expected_s(rows))


def _reasons(answered: Answered) -> Iterator[Callable[[], None]]:
    """What adds its reasons to a prediction, for each one of an arm."""
    (loaded, _), asked, parts = answered
    if asked is not None:
        for part in parts:
            for row, prediction in enumerate(part.predictions, start=part.first):
                yield partial(_explain, loaded, asked, part, prediction, row)


def _explain(loaded: Loaded, asked: Asked, part: Scored, prediction: Prediction, row: int) -> None:
    """row: of the batch."""
    if prediction.scores is None:
        prediction.explanations = None
        return
    write = loaded.reasons.explanations
    explanations = write(asked, part.encoded, part.outputs, row, part.as_of, prediction.not_applicable)
    prediction.explanations = _written(explanations)
    before = part.before
    if before is not None and (place := before.places.get(row)) is not None:
        contract = loaded.release.contract
        eligible = contract.eligible(before.encoded.rows([place]))[0].tolist()
        undefined = [task for task, defined in zip(contract.task_names, eligible, strict=True) if not defined]
        scores = dict(zip(contract.task_names, before.outputs["scores"][place].tolist(), strict=True))
        prediction.before = BeforeOverrides(
            {task: None if task in undefined else score for task, score in scores.items()},
            _written(write(asked, before.encoded, before.outputs, place, part.as_of, undefined)),
        )


def _written(explanations: Explanations) -> Explanations:
    """As JSON already, which msgspec passes on as it stands: encoding 32 customers at once would be a long piece of
    work on the event loop."""
    return cast("Explanations", msgspec.Raw(encode(explanations)))


def _response(answered: Sequence[Answered], asker: Asker) -> PredictResponse:
    """as_of: of the first slice; those of a large request are milliseconds apart."""
    (loaded, rows), _, parts = answered[0]
    predictions = parts[0].predictions
    if len(parts) > 1:
        predictions = [prediction for part in parts for prediction in part.predictions]
    if rows is not None:
        placed: dict[int, Prediction] = {}
        for arm, _, parts_of_arm in answered:
            found = (prediction for part in parts_of_arm for prediction in part.predictions)
            placed |= zip(arm.rows or (), found, strict=True)
        predictions = [placed[row] for row in range(len(placed))]
    return PredictResponse(loaded.release.contract.model, asker.request_id, parts[0].as_of, predictions)
