"""What a request for /v1/whatif means to a release: which features take which values, and what is in the way of it."""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from feature_client.contract import EXPLAINERS, Contract
from feature_client.online.reader import EntityError
from feature_client.schema import Override, OverrideError
from service.errors import InvalidEntity, InvalidFeature, InvalidRequest
from service.protocol import MAX_EXPLAINED
from service.releases import Loaded
from service.whatif_protocol import MAX_GRID, Goal, WhatIfRequest
from service.whatif_search import most_rows, reference_values
from service.wording import Wording

Values = Mapping[str, Sequence[Override]]
"""Feature -> values of it that are tried."""


@dataclass(frozen=True)
class Question:
    """A request that a release can be asked.

    units: of features, by name. swept: the features of the sweep, with their values. candidates: what the goal may be
    reached by, with those values that are tried at first.
    """

    request: WhatIfRequest
    contract: Contract
    wording: Wording
    units: Mapping[str, str]
    tasks: Sequence[str]
    swept: Values
    candidates: Values

    @cached_property
    def points(self) -> list[dict[str, Override]]:
        """The variations of the sweep, in the order of rows."""
        if not self.swept:
            return []
        return [dict(zip(self.swept, point, strict=True)) for point in itertools.product(*self.swept.values())]

    @cached_property
    def admitted_rows(self) -> int:
        """What the variations count for in the lane of explanations, where an entity to explain counts for 1.

        As many of them count for 1 as explaining one entity costs the network rows; all of them for no more than the
        largest request for explanations.
        """
        schema = self.contract.schema
        features = [(schema.by_name[name], values) for name, values in self.candidates.items()]
        explained = max(self.contract.explanation.explainers[EXPLAINERS[0]].rows, 1)
        return min(math.ceil((len(self.points) + most_rows(features)) / explained), MAX_EXPLAINED)


def question_of(request: WhatIfRequest, loaded: Loaded) -> Question:
    """Raises InvalidRequest, InvalidEntity, InvalidFeature."""
    contract = loaded.release.contract
    _check_entity(request, loaded)
    for position, task in enumerate(request.tasks or ()):
        if task not in contract.task_names:
            raise InvalidRequest(f"tasks[{position}]: not a task of this model")
    wording = loaded.reasons.wording(request.language)
    swept = _swept(request, contract)
    candidates: Values = {}
    if request.goal is not None:
        _check_goal(request.goal, contract)
        candidates = _candidates(request, contract)
    return Question(
        request, contract, wording, loaded.reasons.units, request.tasks or contract.task_names, swept, candidates
    )


def _check_entity(request: WhatIfRequest, loaded: Loaded) -> None:
    """What predict would refuse, too, but by places in a list."""
    try:
        loaded.plan.keys([request.entity])
    except EntityError as exc:
        raise InvalidEntity(f"entity: {exc}") from exc
    try:
        loaded.release.contract.schema.check_overrides([request.features or {}])
    except OverrideError as exc:
        raise InvalidFeature(f"features: {exc}") from exc


def _swept(request: WhatIfRequest, contract: Contract) -> Values:
    swept: dict[str, Sequence[Override]] = {}
    for position, asked in enumerate(request.sweep or ()):
        where = f"sweep[{position}]"
        feature = contract.schema.by_name.get(asked.feature)
        if feature is None:
            raise InvalidFeature(f"{where}.feature: not a feature of this model")
        if feature.kind == "calendar":
            raise InvalidFeature(f"{where}.feature: {feature.name} follows from the date")
        if feature.name in (request.features or {}):
            raise InvalidFeature(f"{where}.feature: `features` holds {feature.name}")
        if feature.name in swept:
            raise InvalidFeature(f"{where}.feature: {feature.name} is swept already")
        values = asked.values or reference_values(contract, feature, missing=True)
        if not values:
            raise InvalidFeature(f"{where}: training knows no value of {feature.name}; name some")
        try:
            contract.schema.check_overrides([{feature.name: value} for value in values])
        except OverrideError as exc:
            raise InvalidFeature(f"{where}.values[{exc.row}]: {exc}") from exc
        swept[feature.name] = values
    if math.prod(len(values) for values in swept.values()) > MAX_GRID:
        raise InvalidRequest(f"sweep: at most {MAX_GRID} points")
    return swept


def _check_goal(goal: Goal, contract: Contract) -> None:
    if goal.task not in contract.task_names:
        raise InvalidRequest("goal.task: not a task of this model")
    task = contract.tasks[contract.task_names.index(goal.task)]
    if goal.segment is not None and goal.segment not in [segment.name for segment in task.segments]:
        raise InvalidRequest("goal.segment: not a segment of this task")


def _candidates(request: WhatIfRequest, contract: Contract) -> Values:
    """Whatever somebody can bring about and the request does not hold."""
    return {
        feature.name: reference_values(contract, feature, missing=False)
        for feature in contract.schema.features
        if feature.actionable and feature.kind != "calendar" and feature.name not in (request.features or {})
    }
