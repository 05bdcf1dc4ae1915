"""What Feast's SDK answers for a feature service, with what its dictionary does not say: stored types and times."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from feast import FeatureService, FeatureStore
from feast.type_map import VALUE_TYPE_TO_PROTO_VALUE_MAP
from feast.value_type import ValueType
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]


@dataclass(frozen=True)
class Answer:
    """columns: as `to_dict()` with event times; features are named view__feature.

    members: feature -> for every row the member of Value that is stored, None where none is.
    times: feature -> epoch seconds of its view's row; 0 where there is none.
    """

    columns: Mapping[str, Sequence[Any]]
    members: Mapping[str, Sequence[str | None]]
    times: Mapping[str, Sequence[float]]


def ask(store: FeatureStore, service: FeatureService, rows: Sequence[Mapping[str, Any]]) -> Answer | None:
    """None where Feast fails, as it does for a whole batch when one value in it cannot be read."""
    try:
        response = store.get_online_features(service, [dict(row) for row in rows], full_feature_names=True)
        columns = response.to_dict(include_event_timestamps=True)
    # Feast lets through whatever protobuf, uuid, decimal, json and datetime raise.
    except (DecodeError, ValueError, TypeError, ArithmeticError, OSError, RecursionError):
        return None
    vectors = dict(zip(response.proto.metadata.feature_names.val, response.proto.results, strict=True))
    return Answer(
        columns=columns,
        members={name: [value.WhichOneof("val") for value in vector.values] for name, vector in vectors.items()},
        times={name: [at.ToNanoseconds() / 1e9 for at in vector.event_timestamps] for name, vector in vectors.items()},
    )


MEMBERS = {**VALUE_TYPE_TO_PROTO_VALUE_MAP, ValueType.ZONED_TIMESTAMP: "zoned_timestamp_val"}
"""Feast's own table, which forgets one; whatever else is not in it is bytes of some kind."""


def declared_members(service: FeatureService) -> dict[str, str]:
    """Feature, as view__feature -> the member of Value that its declared type is stored in."""
    members = {}
    for projection in service.feature_view_projections:
        view = projection.name_to_use()  # type: ignore[no-untyped-call]
        for field in projection.features:
            members[f"{view}__{field.name}"] = MEMBERS.get(field.dtype.to_value_type(), "bytes_val")
    return members
