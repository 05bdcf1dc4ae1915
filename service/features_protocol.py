"""The HTTP bodies of /v1/features; those of predict and explain are in protocol.py. Changing them changes the API."""

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from feature_client.schema import Override
from service.protocol import MAX_ENTITIES, EntitiesRequest, Id

ValueStatus = Literal["ok", "null", "missing", "stale", "defaulted", "overridden"]


class FeaturesRequest(EntitiesRequest, forbid_unknown_fields=True, kw_only=True):
    entities: Annotated[
        list[dict[str, Id]],
        Meta(min_length=1, max_length=MAX_ENTITIES, description="Whom to look up: join keys and their values."),
    ]


class FeatureState(msgspec.Struct):
    """value: what the model gets, as of `as_of`: a number in float32, a category as text ("(unseen)" for one that its
    vocabulary does not have), null for a missing one, whose default is part of the model's graph.

    status: ok; null (stored as null, which means something for this feature); missing (no row of its view); stale (the
    row is older than the feature's max_age, or from the future); defaulted (a row without a usable value, of a feature
    that may not be null); overridden (the request's own value). stored: what the online store holds, an instant in
    ISO 8601 for features that count the days since it; absent for calendar features. computed_at, age_s: when its
    row was computed, and how long before `as_of` that was; null without a row.
    """

    value: Override
    status: ValueStatus
    stored: Override | msgspec.UnsetType = msgspec.UNSET
    computed_at: str | None = None
    age_s: float | None = None


class EntityFeatures(msgspec.Struct):
    """status, age_s, defaulted, stale, overridden: as predict answers them. as_of: of the read; those of a large
    request are milliseconds apart. features: every feature that the release reads, in its order."""

    entity: dict[str, str]
    version: str
    status: str
    as_of: str
    age_s: float | None
    defaulted: list[str]
    stale: list[str]
    overridden: list[str]
    features: dict[str, FeatureState]


class FeaturesResponse(msgspec.Struct):
    """entities: in the order asked."""

    model: str
    request_id: str
    entities: list[EntityFeatures]
