"""From tensors to the HTTP answer: scores, statuses and segments of one entity. Its reasons: reasons.py."""

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from feature_client.contract import Contract, Task
from feature_client.schema import BoolArray, Encoded
from service.protocol import FeatureReport, Prediction

NOTHING: list[str] = []
"""Shared by all answers that have nothing to list; nobody changes an answer's lists."""


class AnswerWriter:
    """Writes the predictions of one release: whatever does not depend on the customer is worked out once."""

    def __init__(self, contract: Contract, version: str) -> None:
        self.version = version
        self.tasks = contract.task_names
        self.features = [feature.name for feature in contract.schema.features]
        self.segments = [(task.name, *_scale(task)) for task in contract.tasks if task.segments]

    def predictions(
        self,
        entities: Sequence[dict[str, str]],
        encoded: Encoded,
        scores: npt.NDArray[np.float32],
        eligible: BoolArray,
    ) -> list[Prediction]:
        """One a row. scores, eligible: [rows, tasks]; a task that is not defined for a customer has no score."""
        undefined = self._undefined(eligible)
        predictions = []
        found = zip(entities, scores.tolist(), reports_of(encoded, self.features), strict=True)
        for row, (entity, values, (status, report)) in enumerate(found):
            answered = dict(zip(self.tasks, values, strict=True))
            for task in undefined.get(row, NOTHING):
                answered[task] = None
            predictions.append(
                Prediction(
                    entity,
                    self.version,
                    status,
                    answered,
                    {
                        task: names[bisect_right(at_least, score)]
                        for task, at_least, names in self.segments
                        if (score := answered[task]) is not None
                    },
                    report,
                    undefined.get(row, NOTHING),
                )
            )
        return predictions

    def _undefined(self, eligible: BoolArray) -> Mapping[int, list[str]]:
        return _columns(~eligible, self.tasks)


def reports_of(encoded: Encoded, features: Sequence[str]) -> list[tuple[str, FeatureReport]]:
    """Of each row its status, and what is to be said of its features, by their names in the order of the schema."""
    unknown, ages = encoded.unknown.tolist(), encoded.age_s.tolist()
    # For an entity without any row the status says it all; a list of every feature would say nothing more.
    defaulted = _columns(encoded.defaulted & ~encoded.unknown[:, None], features)
    stale, overridden = _columns(encoded.stale, features), _columns(encoded.overridden, features)
    reports = []
    for row, age in enumerate(ages):
        report = FeatureReport(
            None if unknown[row] else round(age, 3),
            defaulted.get(row, NOTHING),
            stale.get(row, NOTHING),
            overridden.get(row, NOTHING),
        )
        status = "degraded" if report.defaulted or report.stale else "ok"
        reports.append(("unknown_entity" if unknown[row] else status, report))
    return reports


def _columns(mask: BoolArray, names: Sequence[str]) -> Mapping[int, list[str]]:
    named: defaultdict[int, list[str]] = defaultdict(list)
    rows, columns = mask.nonzero()
    if len(rows):
        for row, column in zip(rows.tolist(), columns.tolist(), strict=True):
            named[row].append(names[column])
    return named


def _scale(task: Task) -> tuple[list[float], list[str | None]]:
    """Thresholds, lowest first, and what a score is called that has passed none, one, ... of them."""
    # Sorted downwards, then turned: of two segments with one threshold the first named wins, as in Task.segment.
    segments = sorted(task.segments, key=lambda segment: segment.at_least, reverse=True)[::-1]
    return [segment.at_least for segment in segments], [None, *(segment.name for segment in segments)]


def withhold(prediction: Prediction) -> None:
    """A route's policy for unknown entities: no score is better than one from defaults."""
    prediction.scores = prediction.segments = None
    prediction.not_applicable = NOTHING
