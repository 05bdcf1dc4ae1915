"""What a batch goes through: one feature read, one inference, and an answer for every row of it."""

import itertools
import time
from collections.abc import Callable, Mapping, Sequence

import msgspec
import numpy as np

from feature_client.clock import Clock, to_iso
from feature_client.golden import Tensors
from feature_client.online.reader import FeatureReader, FeatureStoreUnavailable
from feature_client.schema import BoolArray, Encoded, FeatureBatch
from service.answers import AnswerWriter, withhold
from service.backends import Backend, check_outputs
from service.errors import DeadlineExceeded
from service.metrics import Metrics
from service.protocol import Prediction
from service.releases import Loaded
from service.shadow import Shadows
from service.snapshot import fetch
from service.work import Work, row_overrides


class Before(msgspec.Struct, frozen=True):
    """Rows of a batch without their overrides, from the same feature snapshot. places: row of the batch -> row here."""

    places: Mapping[int, int]
    encoded: Encoded
    outputs: Tensors


class Scored(msgspec.Struct, frozen=True):
    """What a batch found for one work: one feature snapshot and one run of one graph.

    encoded, outputs: of the whole batch, in which the work's rows begin at `first`. stages: stage -> seconds.
    """

    as_of: str
    predictions: list[Prediction]
    encoded: Encoded
    outputs: Tensors
    first: int
    stages: Mapping[str, float]
    before: Before | None = None


class Scorer:
    """Scores batches on one graph of a release: the score graph, or that of an explainer, which gives reasons as well.

    explainer: None for the score graph.
    """

    def __init__(
        self,
        loaded: Loaded,
        explainer: str | None,
        reader: FeatureReader,
        backend: Backend,
        clock: Clock,
        metrics: Metrics,
        shadows: Shadows | None = None,
    ) -> None:
        self.loaded = loaded
        self.contract = loaded.release.contract
        self.version = loaded.release.version
        self.explainer = explainer
        self.plan = loaded.plan
        self.name = loaded.release.graph_name(explainer)
        self.reader = reader
        self.backend = backend
        self.clock = clock
        self.metrics = metrics
        self.shadows = shadows
        self.writer = AnswerWriter(self.contract, self.version)

    async def score(
        self, batch: Sequence[Work], seconds: float, has_read: Callable[[], None]
    ) -> list[Scored | Exception]:
        """Raises what the reader, the backend and the check of outputs raise, and DeadlineExceeded."""
        started = time.monotonic()
        ends = started + seconds
        as_of = self.clock()
        keys = list(itertools.chain.from_iterable([work.keys for work in batch]))
        self.metrics.batch("infer", len(keys))
        shadowing = None if self.shadows is None or self.explainer else self.shadows.of(self.loaded)
        plan = self.plan if shadowing is None else shadowing.plan
        stored = await fetch(self.reader, self.metrics, plan, keys, seconds)
        has_read()
        if shadowing is not None:
            stored = shadowing.champions(stored, keys)
        overrides = row_overrides(batch)
        encoded = self.contract.schema.encode(stored, as_of, overrides)
        self.metrics.features(self.contract, encoded, as_of - stored.event_times)
        read = time.monotonic()
        outputs = await self._infer(encoded, ends)
        before = await self._before(batch, stored, as_of, ends)
        inferred = time.monotonic()
        stages = {"features": read - started, "infer": inferred - read}
        eligible = self.contract.eligible(encoded)
        answers = self._answers(batch, stored, encoded, outputs, eligible, to_iso(as_of), stages, before)
        stages["encode"] = time.monotonic() - inferred
        if shadowing is not None:
            rows = _shadowed(batch, answers)
            shadowing.offer(keys, overrides, as_of, encoded, outputs["scores"], eligible, rows)
        return answers

    async def _infer(self, encoded: Encoded, ends: float) -> Tensors:
        started, rows = time.monotonic(), len(encoded)
        try:
            outputs = await self.backend.infer(self.name, encoded.tensors, max(ends - started, 0.0))
        except TimeoutError as exc:
            raise DeadlineExceeded from exc
        check_outputs(self.name, outputs, self.contract.outputs(rows, self.explainer))
        if self.explainer is not None:
            self.loaded.paces[self.explainer].seen(rows, time.monotonic() - started)
        return outputs

    async def _before(self, batch: Sequence[Work], stored: FeatureBatch, as_of: float, ends: float) -> Before | None:
        """What was read for rows that are compared, once more without their overrides."""
        rows, first = [], 0
        for work in batch:
            if work.compares and work.overrides is not None:
                rows += [first + row for row, values in enumerate(work.overrides) if values]
            first += len(work)
        if not rows:
            return None
        encoded = self.contract.schema.encode(stored.take(rows), as_of)
        places = {row: place for place, row in enumerate(rows)}
        return Before(places, encoded, await self._infer(encoded, ends))

    def _answers(
        self,
        batch: Sequence[Work],
        stored: FeatureBatch,
        encoded: Encoded,
        outputs: Tensors,
        eligible: BoolArray,
        as_of: str,
        stages: Mapping[str, float],
        before: Before | None,
    ) -> list[Scored | Exception]:
        entities = [entity for work in batch for entity in work.entities]
        scores = outputs["scores"]
        predictions = self.writer.predictions(entities, encoded, scores, eligible)
        answers: list[Scored | Exception] = []
        answered: list[slice] = []
        first = 0
        for work in batch:
            rows = slice(first, first + len(work.keys))
            if stored.refused and (reason := stored.refusal(rows)):
                answers.append(FeatureStoreUnavailable(reason))
            else:
                if work.rejects_unknown:
                    for row in (first + encoded.unknown[rows].nonzero()[0]).tolist():
                        withhold(predictions[row])
                        eligible[row] = False
                answers.append(Scored(as_of, predictions[rows], encoded, outputs, first, stages, before))
                answered.append(rows)
            first = rows.stop
        if len(answered) < len(batch):
            kept = np.concatenate([np.arange(rows.start, rows.stop) for rows in answered] or [np.arange(0)])
            predictions = [predictions[row] for row in kept.tolist()]
            scores, eligible = scores[kept], eligible[kept]
        statuses = [prediction.status for prediction in predictions]
        self.metrics.predictions(self.contract, self.version, statuses, scores, eligible)
        return answers


def _shadowed(batch: Sequence[Work], answers: Sequence[Scored | Exception]) -> list[int]:
    """Rows of the batch that were scored, by the route's choice."""
    rows: list[int] = []
    for work, answer in zip(batch, answers, strict=True):
        if work.is_routed and isinstance(answer, Scored):
            given = enumerate(answer.predictions, start=answer.first)
            rows += [row for row, prediction in given if prediction.scores is not None]
    return rows
