"""The smallest change of one value that takes a score across a threshold: which values to try, and what they show.

Values of the reference distribution are tried first, from the customer's own outwards in both directions. Between the
first that crosses and the one before it, ever finer steps follow.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from feature_client.contract import ATOL, RTOL, Contract, Distribution, Task
from feature_client.schema import BoolArray, Feature, FloatArray, Override

GRID = 21
"""Values of a feature that are tried at first: so many quantiles has the contract, and of categories the commonest."""

ROUNDS = 2
"""How often the interval in which a score crosses is divided."""

STEPS = 20
"""Into so many steps at most, and 8 at least: a step is 1, 2 or 5 times a power of ten."""

WHOLE = ("int64", "int32", "bool")
"""How features that are counted are stored."""


Scored = tuple[Override, float]
"""A value, and the score with it."""


@dataclass(frozen=True)
class Target:
    """Scores of at least `at`, or of at most `at` where it is not `rising`."""

    at: float
    rising: bool

    def is_reached(self, score: float) -> bool:
        return score >= self.at if self.rising else score <= self.at

    def crosses(self, scores: FloatArray) -> BoolArray:
        """By more than equal answers may differ, so that it does on every backend and in every batch. NaN does not."""
        slack = ATOL + RTOL * abs(self.at)
        return scores > self.at + slack if self.rising else scores < self.at - slack

    def better(self, one: Scored, other: Scored) -> Scored:
        return one if (one[1] >= other[1]) is self.rising else other


def segment_target(task: Task, segment: str, score: float) -> Target:
    """What takes `score` into the segment: its own threshold from below, the next higher segment's from above.

    From below a higher segment is reached as well, from above a lower one.
    """
    names = [one.name for one in task.segments]
    position = names.index(segment)
    higher = task.segments[position - 1].at_least if position else math.inf
    if score < higher:
        return Target(task.segments[position].at_least, rising=True)
    return Target(math.nextafter(higher, -math.inf), rising=False)


@dataclass(frozen=True)
class Crossing:
    """A value that crosses, with its score, and the nearest one before it that is known not to."""

    feature: Feature
    value: Override
    score: float
    before: Override


@dataclass(frozen=True)
class Trial:
    """values: to be tried, in this order, between `near`, which does not cross, and `far`, which does."""

    feature: Feature
    near: Override
    values: Sequence[Override]
    far: Crossing | None = None

    def crossing(self, scores: FloatArray, target: Target) -> Crossing | None:
        """The first value that crosses. scores: of `values`."""
        near = self.near
        for value, score, crosses in zip(self.values, scores.tolist(), target.crosses(scores).tolist(), strict=True):
            if crosses:
                return Crossing(self.feature, value, score, near)
            near = value
        return None if self.far is None else replace(self.far, before=near)


def trials_of(feature: Feature, start: Override, values: Sequence[Override]) -> list[Trial]:
    """Away from `start`: upwards and downwards; categories one after the other, the commonest first."""
    if feature.kind == "category":
        found = [Trial(feature, start, [word for word in values if word not in (start, None)])]
    else:
        at = _number(start)
        numbers = sorted(map(_number, values))
        upwards = [value for value in numbers if value > at]
        downwards = [value for value in reversed(numbers) if value < at]
        found = [Trial(feature, start, upwards), Trial(feature, start, downwards)]
    return [trial for trial in found if trial.values]


class Search:
    """Asks for the scores of its trials, round by round, and comes ever closer to where they cross.

    crossings: one for each trial that crosses. best: of the values of each feature that were tried at first, the best
    one and its score.
    """

    def __init__(self, trials: Sequence[Trial], target: Target) -> None:
        self.target = target
        self.trials = list(trials)
        self.rounds = 0
        self.crossings: list[Crossing] = []
        self.best: dict[str, Scored] = {}

    def asks(self) -> list[dict[str, Override]]:
        """One value to be changed a row; nothing once all is known."""
        if self.rounds > ROUNDS:
            return []
        return [{trial.feature.name: value} for trial in self.trials for value in trial.values]

    def learns(self, scores: FloatArray) -> None:
        """scores: of the goal's task, one for each row that was asked for; NaN where the task is not defined."""
        parts = np.split(scores, np.cumsum([len(trial.values) for trial in self.trials])[:-1])
        if self.rounds == 0:
            for trial, part in zip(self.trials, parts, strict=True):
                self._note_best(trial, part)
        found = [trial.crossing(part, self.target) for trial, part in zip(self.trials, parts, strict=True)]
        self.crossings = [crossing for crossing in found if crossing is not None]
        self.trials = [
            Trial(one.feature, one.before, steps_between(one.feature, one.before, one.value), one)
            for one in self.crossings
        ]
        self.rounds += 1

    def _note_best(self, trial: Trial, scores: FloatArray) -> None:
        for scored in zip(trial.values, scores.tolist(), strict=True):
            if not math.isnan(scored[1]):
                self.best[trial.feature.name] = self.target.better(scored, self.best.get(trial.feature.name, scored))


def most_rows(features: Sequence[tuple[Feature, Sequence[Override]]]) -> int:
    """How many rows a search asks for at most. features: with the values that are tried at first."""
    numbers = sum(feature.kind != "category" for feature, _ in features)
    return sum(len(values) for _, values in features) + ROUNDS * 2 * STEPS * numbers


def reference_values(contract: Contract, feature: Feature, *, missing: bool) -> list[Override]:
    """A grid of the reference distribution, GRID values at most: distinct quantiles; categories, the commonest first.

    missing: where a category may be null, that is one of the values. Nothing where nothing is known.
    """
    reference = contract.reference.get(feature.name, Distribution(1.0))
    if feature.kind != "category":
        numbers = map(round, reference.quantiles) if feature.dtype in WHOLE else reference.quantiles
        return [*sorted(set(numbers))]
    shares = reference.shares or {}
    words: list[Override] = [*sorted(feature.vocabulary, key=lambda word: -shares.get(word, 0.0))]
    return [*words[: GRID - 1], None] if missing and feature.nullable else words[:GRID]


def steps_between(feature: Feature, near: Override, far: Override) -> list[Override]:
    """Round numbers between two, from `near` on; for counts whole ones. Categories have nothing in between."""
    if feature.kind == "category":
        return []
    low, high = sorted((_number(near), _number(far)))
    exponent, step = _round_step((high - low) / STEPS)
    if feature.dtype in WHOLE and step < 1:
        exponent, step = 0, 1.0
    multiples = range(math.floor(low / step) + 1, math.ceil(high / step))
    steps = [round(multiple * step, max(-exponent, 0)) for multiple in multiples]
    values: list[Override] = [int(value) if feature.dtype in WHOLE else value for value in steps if low < value < high]
    return values if _number(near) == low else values[::-1]


def _round_step(least: float) -> tuple[int, float]:
    """The smallest of 1, 2 and 5 times a power of ten that is at least so large, and the exponent of that power."""
    exponent = math.floor(math.log10(least))
    for factor in (1, 2, 5):
        if factor * 10.0**exponent >= least:
            return exponent, factor * 10.0**exponent
    return exponent + 1, 10.0 ** (exponent + 1)


def _number(value: Override) -> float:
    if value is None or isinstance(value, str):
        raise TypeError("not a number")
    return value
