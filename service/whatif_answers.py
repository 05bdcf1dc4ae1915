"""From scores of variations to the answer of /v1/whatif: sweeps, changes, and what cannot be reached."""

import math
from collections.abc import Mapping

import numpy as np

from feature_client.contract import Task
from feature_client.schema import Feature, FloatArray, Override
from service.whatif_protocol import Change, Goal, GoalReport, Swept, Unreachable
from service.whatif_question import Question
from service.whatif_search import WHOLE, Crossing, Search, Target, Trial, segment_target, trials_of

Current = Mapping[str, Override]
"""The customer's own values, as the model reads them: feature -> value, null for missing."""


def swept_of(question: Question, scores: FloatArray, current: Current) -> Swept:
    """scores: [points, tasks], NaN where a task is not defined."""
    sizes = [len(values) for values in question.swept.values()]
    given = scores.astype(object)
    given[np.isnan(scores)] = None
    by_name = question.contract.schema.by_name
    return Swept(
        features=list(question.swept),
        values=[[_counted(by_name[name], value) for value in values] for name, values in question.swept.items()],
        current=[_counted(by_name[name], current[name]) for name in question.swept],
        scores={
            task: given[:, position].reshape(sizes).tolist()
            for position, task in enumerate(question.contract.task_names)
            if task in question.tasks
        },
    )


def unscored(goal: Goal) -> GoalReport:
    return GoalReport(goal.task, None, None, goal.at_least, goal.at_most, goal.segment)


class Pursuit:
    """The search for single changes that reach a goal, from `score`, and what is said of it."""

    def __init__(self, goal: Goal, score: float, question: Question, current: Current) -> None:
        self.question = question
        self.current = current
        self.score = score
        self.column = question.contract.task_names.index(goal.task)
        self.task = question.contract.tasks[self.column]
        self.target = _target(goal, self.task, score)
        self.reached = self.target.is_reached(score)
        self.search = Search([] if self.reached else self._trials(), self.target)
        self.segment = goal.segment

    @property
    def goal(self) -> GoalReport:
        at_least, at_most = (self.target.at, None) if self.target.rising else (None, self.target.at)
        return GoalReport(self.task.name, self.score, self.reached, at_least, at_most, self.segment)

    @property
    def changes(self) -> list[Change]:
        """One for each feature that crosses by itself, the nearest first and categories last."""
        nearest: dict[str, Change] = {}
        for crossing in self.search.crossings:
            change = self._change(crossing)
            other = nearest.get(change.feature)
            if other is None or _distance(change) < _distance(other):
                nearest[change.feature] = change
        return sorted(nearest.values(), key=_distance)

    @property
    def unreachable(self) -> list[Unreachable]:
        """Candidates that do not cross, whatever value of the reference distribution they take."""
        crossing = {one.feature.name for one in self.search.crossings}
        names = [] if self.reached else [name for name in self.question.candidates if name not in crossing]
        return [self._unreachable(name) for name in names]

    def _trials(self) -> list[Trial]:
        trials: list[Trial] = []
        for name, values in self.question.candidates.items():
            feature = self._feature(name)
            start = self._start(feature)
            if feature.kind == "category" or start is not None:
                trials += trials_of(feature, start, values)
        return trials

    def _change(self, crossing: Crossing) -> Change:
        feature, value, before = crossing.feature, crossing.value, crossing.before
        change = Change(
            feature=feature.name,
            label=self.question.wording.labels[feature.name],
            unit=self.question.units[feature.name],
            start=_counted(feature, self.current[feature.name]),
            to=value,
            resolution=None,
            before=self.score,
            after=crossing.score,
            segment=self.task.segment(crossing.score),
            distance=None,
            observed=True,  # of a category: it is of the vocabulary
        )
        start = self._start(feature)
        if isinstance(start, int | float) and isinstance(value, int | float) and isinstance(before, int | float):
            reference = self.question.contract.reference[feature.name]
            here, there = reference.percentile(start), reference.percentile(value)
            change.resolution = abs(value - before)
            change.distance = None if here is None or there is None else round(abs(there - here), 1)
            change.observed = reference.quantiles[0] <= value <= reference.quantiles[-1]
        return change

    def _unreachable(self, name: str) -> Unreachable:
        feature = self._feature(name)
        why = "out_of_range"
        if not self.question.candidates[name]:
            why = "unknown"
        elif feature.kind != "category" and self._start(feature) is None:
            why = "missing"
        as_it_is = (_counted(feature, self.current[name]), self.score)
        to, score = self.target.better(as_it_is, self.search.best.get(name, as_it_is))
        return Unreachable(name, self.question.wording.labels[name], why, score, to)

    def _start(self, feature: Feature) -> Override:
        """What a change starts from: where a value is missing that should be there, the default that the graph takes.

        None: from nothing.
        """
        value = self.current[feature.name]
        return feature.default if value is None and not feature.nullable else value

    def _feature(self, name: str) -> Feature:
        return self.question.contract.schema.by_name[name]


def _target(goal: Goal, task: Task, score: float) -> Target:
    if goal.at_least is not None:
        return Target(goal.at_least, rising=True)
    if goal.at_most is not None:
        return Target(goal.at_most, rising=False)
    return segment_target(task, str(goal.segment), score)


def _distance(change: Change) -> float:
    return math.inf if change.distance is None else change.distance


def _counted(feature: Feature, value: Override) -> Override:
    """Counts as whole numbers: tensors hold floats."""
    return int(value) if feature.dtype in WHOLE and isinstance(value, float) and value.is_integer() else value
