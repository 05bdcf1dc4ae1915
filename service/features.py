"""What the online store holds for some entities, as the model gets it: read and encoded as for a prediction.

Look-ups have a lane of their own: they can never crowd out predictions, and their answers, which are long, are written
a few entities at a time, with predictions first.
"""

import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import cast

import msgspec

from feature_client.online.reader import FeatureStoreUnavailable
from service.asker import Asker
from service.coalescer import Run, every
from service.feature_answers import FeatureWriter, Looked
from service.features_protocol import EntityFeatures, FeaturesRequest, FeaturesResponse
from service.predictor import Predictor
from service.queues import Limits, Queues
from service.releases import Loaded
from service.snapshot import fetch
from service.turns import Turns
from service.work import Work, overrides_of, row_overrides, work_of

LANE = "features"

WRITTEN_AT_ONCE = 8
"""Entities of one piece of writing, which takes about half a millisecond."""

SHARE = 0.1
"""Of the event loop's time, for writing look-ups beside predictions."""

encode = msgspec.json.Encoder().encode

Placed = dict[int, EntityFeatures]
"""Position in the request -> answer."""


class Features:
    """slice_rows: see Settings."""

    def __init__(self, predictor: Predictor, slice_rows: int) -> None:
        self.predictor = predictor
        self.admission = predictor.admission
        self.turns = Turns(predictor.is_predicting, SHARE)
        self.queues: Queues[Work, Looked] = Queues(
            predictor.releases, Limits(slice_rows, slice_rows, batches_in_flight=1), self._reading
        )

    async def answer(self, request: FeaturesRequest, asker: Asker) -> FeaturesResponse:
        """Raises the errors of service/errors.py."""
        served, arms = self.predictor.arms(request, asker)
        overrides = overrides_of(request)
        works = [work_of(arm, request, overrides, rejects_unknown=False) for arm in arms]
        self.admission.enter(LANE, len(request.entities))
        try:
            admitted = time.monotonic()
            asker.stages["admit"] = admitted - asker.since
            asker.since = admitted
            queues = [self.queues.of(arm.loaded, None) for arm in arms]
            found = await every([queue.submit(work, asker) for queue, work in zip(queues, works, strict=True)])
            asker.note([looked.stages for parts in found for looked in parts])
            placed: Placed = {}
            for arm, parts in zip(arms, found, strict=True):
                release = arm.loaded.release
                places = iter(range(len(request.entities)) if arm.rows is None else arm.rows)
                writer = FeatureWriter(release.contract, release.version)
                await self.turns.take(_pieces(writer, parts, places, placed), asker)
            asker.stages["encode"] = time.monotonic() - asker.since
            asker.since = time.monotonic()
            entities = [placed[row] for row in range(len(placed))]
        finally:
            self.admission.leave(LANE, len(request.entities))
        return FeaturesResponse(served.champion.release.contract.model, asker.request_id, entities)

    def close(self) -> None:
        self.queues.close()

    def _reading(self, loaded: Loaded, _: str | None) -> Run[Work, Looked]:
        """They are no predictions, and neither they nor the state of their features are counted as such."""

        async def read(batch: Sequence[Work], seconds: float, has_read: Callable[[], None]) -> list[Looked | Exception]:
            started, as_of = time.monotonic(), self.predictor.clock()
            keys = list(itertools.chain.from_iterable(work.keys for work in batch))
            metrics = self.predictor.metrics
            metrics.batch("features", len(keys))
            stored = await fetch(self.predictor.reader, metrics, loaded.plan, keys, seconds)
            has_read()
            encoded = loaded.release.contract.schema.encode(stored, as_of, row_overrides(batch))
            stages = {"features": time.monotonic() - started}
            answers: list[Looked | Exception] = []
            first = 0
            for work in batch:
                rows = slice(first, first + len(work))
                if reason := stored.refusal(rows):
                    answers.append(FeatureStoreUnavailable(reason))
                else:
                    answers.append(Looked(as_of, work.entities, stored, encoded, first, stages))
                first = rows.stop
            return answers

        return read


def _pieces(
    writer: FeatureWriter, parts: Sequence[Looked], places: Iterator[int], placed: Placed
) -> Iterator[Callable[[], None]]:
    """What puts the answers of an arm at their places, a few at a time."""
    for looked in parts:
        for start in range(0, len(looked.entities), WRITTEN_AT_ONCE):
            yield partial(_put, writer, looked, slice(start, start + WRITTEN_AT_ONCE), places, placed)


def _put(writer: FeatureWriter, looked: Looked, rows: slice, places: Iterator[int], placed: Placed) -> None:
    for entity, place in zip(writer.write(looked, rows), places, strict=False):
        # As JSON already, which msgspec passes on as it stands: all at once would be a long piece of work.
        placed[place] = cast("EntityFeatures", msgspec.Raw(encode(entity)))
