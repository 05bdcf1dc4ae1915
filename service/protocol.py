"""The HTTP bodies of API v1; those of /v2 are in oip_protocol.py. Changing them changes the public API."""

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from feature_client.schema import Override
from feature_client.texts import ENGLISH

MAX_ENTITIES = 1_000
MAX_EXPLAINED = 32
MAX_TASKS = 100
"""Names in `tasks`: each is looked for among those of the model, on the event loop."""

Id = Annotated[str, Meta(description='A join key\'s value, always a string: "17850".')]
Overrides = dict[str, Override]


class EntitiesRequest(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """What every request about a list of entities may say."""

    model: Annotated[str | None, Meta(description="May be left out when one model is served.")] = None
    version: Annotated[str | None, Meta(description="This release instead of the route's.")] = None
    features: Annotated[
        list[Overrides] | Overrides | None,
        Meta(
            description="Request-time values, in place of the stored ones: one object for each entity, or one for all."
        ),
    ] = None


class PredictRequest(EntitiesRequest, forbid_unknown_fields=True, kw_only=True):
    entities: Annotated[
        list[dict[str, Id]],
        Meta(min_length=1, max_length=MAX_ENTITIES, description="Whom to score: join keys and their values."),
    ]
    explain: Annotated[
        Annotated[int, Meta(ge=1)] | None,
        Meta(description=f"Add the top k reasons of every task; up to {MAX_EXPLAINED} entities."),
    ] = None


class ExplainRequest(EntitiesRequest, forbid_unknown_fields=True, kw_only=True):
    entities: Annotated[
        list[dict[str, Id]],
        Meta(min_length=1, max_length=MAX_EXPLAINED, description="Whom to explain: join keys and their values."),
    ]
    tasks: Annotated[
        Annotated[list[str], Meta(min_length=1, max_length=MAX_TASKS)] | None,
        Meta(description="Which tasks to explain; all by default."),
    ] = None
    top: Annotated[
        Annotated[int, Meta(ge=1)] | None,
        Meta(description="The k largest contributions; the rest is summed up in one reason `other`."),
    ] = None

    detail: Annotated[
        Literal["groups", "features"],
        Meta(description="Contributions of groups of features, or of each feature within its group as well."),
    ] = "groups"
    space: Annotated[
        Literal["score", "margin"],
        Meta(
            description="In the score's own unit (probability, currency), or in margins: log-odds of probabilities, "
            "logarithms of amounts."
        ),
    ] = "score"
    language: Annotated[
        str,
        Meta(description="Of labels and sentences: English, or another in which the model's features have texts."),
    ] = ENGLISH
    tolerance: Annotated[
        Annotated[float, Meta(ge=0, le=1)] | None,
        Meta(
            description="The largest expected relative error of contributions: the cheapest explainer that keeps it "
            "answers."
        ),
    ] = None
    budget_ms: Annotated[
        Annotated[float, Meta(gt=0, le=60_000)] | None,
        Meta(
            description="The longest the explainer may be expected to run; alone, the most precise within it answers."
        ),
    ] = None


class FeatureReport(msgspec.Struct):
    """age_s: seconds since the oldest view read was computed; null where the store has no row."""

    age_s: float | None
    defaulted: list[str]
    stale: list[str]
    overridden: list[str]


class FeatureValue(msgspec.Struct):
    """What the model saw of a feature. text: the value as people write it.

    Among the customers of training: percentile, of a number, where it lies between the smallest (0) and the largest
    (100); share, of a category, which part of them has the same (0 to 1). Null where there is nothing to say.
    """

    feature: str
    label: str
    value: float | str | None
    unit: str
    text: str
    percentile: float | None
    share: float | None


class FeatureReason(FeatureValue):
    """A feature's own part of its group's contribution."""

    contribution: float
    direction: str  # raises, lowers, none
    sentence: str


class Reason(msgspec.Struct):
    """contribution: in the score's unit. value: of the feature that speaks for the group. features: the model's
    inputs in this group. details: on request, and the contribution is their sum; the reason `other` has none."""

    group: str
    label: str
    contribution: float
    direction: str  # raises, lowers, none
    sentence: str
    value: FeatureValue | None
    features: dict[str, float | str | None]
    details: list[FeatureReason] | msgspec.UnsetType = msgspec.UNSET


class TaskExplanation(msgspec.Struct):
    """base plus all contributions is score, in the unit given. gap: by how much it is not, from float32 sums.

    unit: `probability` or a currency; of margins, `log_odds` or that of a logarithm, as in `log_GBP`. expected_error:
    mean relative error of contributions, as measured when the release was made. tolerance_met, within_budget: of a
    request that has a tolerance or a budget.
    """

    score: float
    base: float
    unit: str
    explainer: str
    method: str
    language: str
    expected_error: float
    gap: float
    reasons: list[Reason]
    tolerance_met: bool | msgspec.UnsetType = msgspec.UNSET
    within_budget: bool | msgspec.UnsetType = msgspec.UNSET


class BeforeOverrides(msgspec.Struct):
    """The same customer with stored values alone, from the same feature snapshot."""

    scores: dict[str, float | None]
    explanations: dict[str, TaskExplanation | None]


class Prediction(msgspec.Struct, omit_defaults=True):
    """status: ok, degraded (defaulted or stale features), unknown_entity. scores: null where not applicable.

    before: of an explanation with request-time values, what it is without them.
    """

    entity: dict[str, str]
    version: str
    status: str
    scores: dict[str, float | None] | None
    segments: dict[str, str | None] | None
    features: FeatureReport
    not_applicable: list[str] = msgspec.field(default_factory=list)
    explanations: dict[str, TaskExplanation | None] | msgspec.UnsetType | None = msgspec.UNSET
    before: BeforeOverrides | msgspec.UnsetType = msgspec.UNSET


class PredictResponse(msgspec.Struct):
    model: str
    request_id: str
    as_of: str
    predictions: list[Prediction]


class CanarySummary(msgspec.Struct):
    version: str
    percent: float


class ModelSummary(msgspec.Struct):
    """versions: all that are loaded, and may be asked for."""

    model: str
    champion: str
    canary: CanarySummary | None
    shadow: list[str]
    versions: list[str]
    tasks: list[str]


class ModelList(msgspec.Struct):
    models: list[ModelSummary]


class PartImportance(msgspec.Struct):
    """name: of a group, or of a feature in `group`. share: of the sum of all; null where nothing contributes."""

    name: str
    label: str
    group: str
    mean_absolute_contribution: float
    share: float | None


class ImportanceRanking(msgspec.Struct):
    """The largest first. explainer, method, expected_error: of the explanations averaged, as in TaskExplanation."""

    explainer: str
    method: str
    expected_error: float
    parts: list[PartImportance]


class TaskImportance(msgspec.Struct):
    """unit: of the contributions and of base, the mean score of the customers they compare with. null: not known."""

    label: str
    unit: str
    base: float
    groups: ImportanceRanking | None
    features: ImportanceRanking | None


class ImportanceResponse(msgspec.Struct):
    """rows: how many customers were averaged over, less those for whom a task is not defined."""

    model: str
    version: str
    rows: int
    tasks: dict[str, TaskImportance]


class Problem(msgspec.Struct):
    """RFC 9457, application/problem+json. `code` is stable; `detail` says where in the request, never what was sent.

    error: `detail` again, under /v2 only, where the Open Inference Protocol has it.
    """

    type: str
    title: str
    status: int
    code: str
    detail: str
    request_id: str
    error: str | msgspec.UnsetType = msgspec.UNSET
