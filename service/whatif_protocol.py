"""The HTTP bodies of /v1/whatif; those of predict and explain are in protocol.py. Changing them changes the API."""

from typing import Annotated

import msgspec
from msgspec import Meta

from feature_client.schema import Override
from service.protocol import MAX_TASKS, Id, Overrides, Prediction

MAX_GRID = 441
"""Points of a sweep: 21 values of one feature by 21 of another."""


class Sweep(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    feature: str
    values: Annotated[
        Annotated[list[Override], Meta(min_length=1, max_length=MAX_GRID)] | None,
        Meta(description="In the feature's unit, null for missing; by default those of the reference distribution."),
    ] = None


class Goal(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    task: str
    at_least: float | None = None
    at_most: float | None = None
    segment: Annotated[str | None, Meta(description="Crossing into this segment, from whichever side.")] = None

    def __post_init__(self) -> None:
        if [self.at_least, self.at_most, self.segment].count(None) != 2:
            raise ValueError("a goal is exactly one of at_least, at_most and segment")


class WhatIfRequest(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    entity: Annotated[dict[str, Id], Meta(description="Whom to ask about: join keys and their values.")]
    model: Annotated[str | None, Meta(description="May be left out when one model is served.")] = None
    version: Annotated[str | None, Meta(description="This release instead of the route's.")] = None
    features: Annotated[
        Overrides | None, Meta(description="Values that hold for all of it, in place of the stored ones.")
    ] = None
    tasks: Annotated[
        Annotated[list[str], Meta(min_length=1, max_length=MAX_TASKS)] | None,
        Meta(description="Tasks of the sweep and of the reasons; all by default."),
    ] = None
    sweep: Annotated[
        Annotated[list[Sweep], Meta(min_length=1, max_length=2)] | None,
        Meta(description=f"One feature, or each value of one with each of another: at most {MAX_GRID} points."),
    ] = None
    goal: Goal | None = None
    top: Annotated[
        Annotated[int, Meta(ge=1)] | None,
        Meta(description="The k largest reasons; the rest is summed up in one reason `other`."),
    ] = None
    language: Annotated[str, Meta(description="Of labels and sentences, as in `de`: one that the release has.")] = "en"

    def __post_init__(self) -> None:
        if self.sweep is None and self.goal is None:
            raise ValueError("ask for a sweep, a goal, or both")


class Swept(msgspec.Struct):
    """scores: task -> a score for each value; for two features a row for each value of the first, with a score for
    each value of the second. null: the task is not defined there. current: the customer's own values, as the model
    reads them."""

    features: list[str]
    values: list[list[Override]]
    current: list[Override]
    scores: dict[str, list[float | list[float | None] | None]]


class GoalReport(msgspec.Struct, omit_defaults=True):
    """at_least, at_most: what has to be crossed, also for a segment. score: as it is. reached: it needs no change.

    Both are null where the customer has no such score.
    """

    task: str
    score: float | None
    reached: bool | None
    at_least: float | None = None
    at_most: float | None = None
    segment: str | None = None


class Change(msgspec.Struct, rename={"start": "from"}):
    """The smallest change of one value that crosses.

    resolution: how far at most a smaller one may cross already; null for categories. before, after: scores of the
    goal's task. distance: in percentile points of the reference distribution; null for categories. observed: `to` is
    within what was seen in training.
    """

    feature: str
    label: str
    unit: str
    start: Override
    to: Override
    resolution: float | None
    before: float
    after: float
    segment: str | None
    distance: float | None
    observed: bool


class Unreachable(msgspec.Struct):
    """why: `out_of_range` (no value that is usual in training crosses), `missing` (the customer has no value that could
    be changed), `unknown` (training knows no value). score: the best of them, with the value `to`, which may be the
    customer's own.
    """

    feature: str
    label: str
    why: str
    score: float
    to: Override


class WhatIfResponse(msgspec.Struct, omit_defaults=True):
    """sweep, changes, unreachable: there where they were asked for; null where the customer has no score to start
    from. prediction.explanations: null where reasons were shed."""

    model: str
    request_id: str
    as_of: str
    prediction: Prediction
    note: str
    sweep: Swept | msgspec.UnsetType | None = msgspec.UNSET
    goal: GoalReport | msgspec.UnsetType = msgspec.UNSET
    changes: list[Change] | msgspec.UnsetType | None = msgspec.UNSET
    unreachable: list[Unreachable] | msgspec.UnsetType | None = msgspec.UNSET
