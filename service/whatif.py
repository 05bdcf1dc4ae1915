"""What-if: how a customer's scores change with one or two values, and which change of one value crosses a threshold.

One feature read, one `as_of` and one release: the explanation graph gives scores and reasons of the customer as it is,
and the score graph those of its variations, which are rows of the same snapshot with other values in place.
"""

import itertools
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import numpy as np

from feature_client.contract import EXPLAINERS
from feature_client.schema import Encoded, FloatArray, Override
from service.asker import Asker
from service.backends import check_outputs
from service.coalescer import Run
from service.errors import DeadlineExceeded, Overloaded
from service.oip_tensors import Inferred, TensorRows
from service.predictor import Predictor
from service.protocol import PredictRequest
from service.queues import Limits, Queues
from service.reasons import Asked
from service.releases import Loaded
from service.scoring import Scored
from service.whatif_answers import Pursuit, swept_of, unscored
from service.whatif_protocol import WhatIfRequest, WhatIfResponse
from service.whatif_question import Question, question_of

CHUNK_ROWS = 128
"""Variations in one inference, and one inference at a time: a prediction never waits for all of them."""

NOTE = (
    "Only the values named were changed; all others were held, also those that would change along with them. "
    "It is what the model would answer, and no promise of what happens."
)
NO_REASONS = " Reasons were left out: too much is being explained just now."


class WhatIf:
    def __init__(self, predictor: Predictor) -> None:
        self.predictor = predictor
        self.admission = predictor.admission
        self.queues: Queues[TensorRows, Inferred] = Queues(
            predictor.releases, Limits(CHUNK_ROWS, CHUNK_ROWS, batches_in_flight=1), self._inferring
        )

    async def answer(self, request: WhatIfRequest, asker: Asker) -> WhatIfResponse:
        """Raises the errors of service/errors.py."""
        served = self.predictor.releases.find(request.model)
        [(loaded, _)] = served.arms([request.entity], request.version)
        question = question_of(request, loaded)
        self.admission.enter("explain", question.admitted_rows)
        try:
            # Nothing is waited for before the routes are looked at again: they are still what they were.
            snapshot, explained = await self._snapshot(request, asker)
            answer = _as_it_is(question, snapshot, asker.request_id)
            if explained:
                await self.predictor.turns.take([partial(_explain, loaded, question, snapshot)], asker)
            else:
                answer.note += NO_REASONS
            if answer.prediction.scores is not None:
                await self._vary(loaded, question, snapshot, answer, asker)
        finally:
            self.admission.leave("explain", question.admitted_rows)
        return answer

    def close(self) -> None:
        self.queues.close()

    async def _snapshot(self, request: WhatIfRequest, asker: Asker) -> tuple[Scored, bool]:
        """The customer as it is, and whether with reasons: they are shed first."""
        prediction = PredictRequest(
            model=request.model, version=request.version, entities=[request.entity], features=request.features
        )
        explained = True
        try:
            _, [answered] = await self.predictor.outputs(prediction, EXPLAINERS[0], asker)
        except Overloaded:
            explained = False
            _, [answered] = await self.predictor.outputs(prediction, None, asker)
        [snapshot] = answered.parts
        return snapshot, explained

    async def _vary(
        self, loaded: Loaded, question: Question, snapshot: Scored, answer: WhatIfResponse, asker: Asker
    ) -> None:
        """Fills in the sweep and the changes. The first round of the search is scored along with the sweep."""
        base = snapshot.encoded.rows([snapshot.first])
        current = question.contract.schema.decode_row(base, 0)
        points, pursuit = question.points, _pursuit(question, answer, current)
        asked = [] if pursuit is None else pursuit.search.asks()
        scores = await self._scores(loaded, base, [*points, *asked], asker)
        if points:
            answer.sweep = swept_of(question, scores[: len(points)], current)
        if pursuit is None:
            return
        scores = scores[len(points) :]
        while asked:
            pursuit.search.learns(scores[:, pursuit.column])
            asked = pursuit.search.asks()
            scores = await self._scores(loaded, base, asked, asker)
        answer.goal, answer.changes, answer.unreachable = pursuit.goal, pursuit.changes, pursuit.unreachable

    async def _scores(
        self, loaded: Loaded, base: Encoded, variations: Sequence[Mapping[str, Override]], asker: Asker
    ) -> FloatArray:
        """[variations, tasks], NaN where a task is not defined. base: the one row that is varied."""
        contract = loaded.release.contract
        if not variations:
            return np.empty((0, len(contract.tasks)))
        varied = contract.schema.vary(base, variations)
        asked = time.monotonic()
        parts = await self.queues.of(loaded, None).submit(TensorRows(varied.tensors), asker)
        # What is worked out around the inferences goes with writing the answer: only the waiting is taken out of it.
        since, asker.since = asker.since, asked
        asker.note([{"infer": sum(part.seconds for part in parts)}])
        asker.since -= asked - since
        scores = np.concatenate([part.outputs["scores"] for part in parts]).astype(np.float64)
        return np.where(contract.eligible(varied), scores, np.nan)

    def _inferring(self, loaded: Loaded, _: str | None) -> Run[TensorRows, Inferred]:
        """Scores variations, of one or several customers. They are no predictions, and are not counted as such."""

        async def infer(
            batch: Sequence[TensorRows], seconds: float, has_read: Callable[[], None]
        ) -> list[Inferred | Exception]:
            has_read()
            return await self._infer(loaded, batch, seconds)

        return infer

    async def _infer(self, loaded: Loaded, batch: Sequence[TensorRows], seconds: float) -> list[Inferred | Exception]:
        started, name = time.monotonic(), loaded.release.name
        tensors = {key: np.concatenate([part.tensors[key] for part in batch]) for key in batch[0].tensors}
        ends = list(itertools.accumulate(map(len, batch)))
        self.predictor.metrics.batch("infer", ends[-1])
        try:
            outputs = await self.predictor.backend.infer(name, tensors, max(seconds, 0.0))
        except TimeoutError as exc:
            raise DeadlineExceeded from exc
        check_outputs(name, outputs, loaded.release.contract.outputs(ends[-1], None))
        spent = time.monotonic() - started
        scores = outputs["scores"]
        return [
            Inferred({"scores": scores[end - len(part) : end]}, spent) for part, end in zip(batch, ends, strict=True)
        ]


def _as_it_is(question: Question, snapshot: Scored, request_id: str) -> WhatIfResponse:
    """The answer with the customer as it is, without reasons; what is asked about variations of it is still null."""
    request = question.request
    [prediction] = snapshot.predictions
    prediction.explanations = None
    answer = WhatIfResponse(question.contract.model, request_id, snapshot.as_of, prediction, NOTE)
    if request.sweep is not None:
        answer.sweep = None
    if request.goal is not None:
        answer.goal = unscored(request.goal)
        answer.changes = answer.unreachable = None
    return answer


def _explain(loaded: Loaded, question: Question, snapshot: Scored) -> None:
    [prediction] = snapshot.predictions
    request = question.request
    if prediction.scores is not None:
        prediction.explanations = loaded.reasons.explanations(
            Asked(request.tasks, request.top, language=request.language),
            snapshot.encoded,
            snapshot.outputs,
            snapshot.first,
            snapshot.as_of,
            prediction.not_applicable,
        )


def _pursuit(question: Question, answer: WhatIfResponse, current: Mapping[str, Override]) -> Pursuit | None:
    """None without a goal, and where the goal's task is not defined for the customer."""
    goal = question.request.goal
    score = None if goal is None else (answer.prediction.scores or {})[goal.task]
    return None if goal is None or score is None else Pursuit(goal, score, question, current)
