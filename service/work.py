"""What a request adds to a batch: whom it asks about, under which keys, and with which values of its own."""

import itertools
from collections.abc import Mapping, Sequence

import msgspec

from feature_client.online.reader import EntityError, EntityKey
from feature_client.schema import Override, OverrideError
from service.errors import InvalidRequest
from service.features_protocol import FeaturesRequest
from service.protocol import ExplainRequest, PredictRequest
from service.releases import Arm

NO_OVERRIDES: Mapping[str, Override] = {}

AboutEntities = PredictRequest | ExplainRequest | FeaturesRequest


class Work(msgspec.Struct, frozen=True):
    """Entities, a key each and, where there are any, a mapping of overrides each.

    rejects_unknown: the route's policy; such an entity gets no score. is_routed: the route chose the version, and not
    the request: such rows are shown to shadows. compares: rows with overrides are also explained without them.
    """

    entities: Sequence[dict[str, str]]
    keys: Sequence[EntityKey]
    overrides: Sequence[Mapping[str, Override]] | None
    rejects_unknown: bool
    is_routed: bool = True
    compares: bool = False

    def __len__(self) -> int:
        return len(self.keys)

    def part(self, rows: slice) -> "Work":
        overrides = None if self.overrides is None else self.overrides[rows]
        entities, keys = self.entities[rows], self.keys[rows]
        return Work(entities, keys, overrides, self.rejects_unknown, self.is_routed, self.compares)


def work_of(
    arm: Arm,
    request: AboutEntities,
    overrides: Sequence[Mapping[str, Override]] | None,
    rejects_unknown: bool,  # noqa: FBT001  (a policy, handed on)
) -> Work:
    """What an arm answers of a request. Raises EntityError and OverrideError, of the request's row."""
    entities: Sequence[dict[str, str]] = request.entities
    loaded, rows = arm
    if rows is not None:
        entities = [entities[row] for row in rows]
        overrides = None if overrides is None else [overrides[row] for row in rows]
    try:
        keys = loaded.plan.keys(entities)
        if overrides is not None:
            loaded.release.contract.schema.check_overrides(overrides)
    except (EntityError, OverrideError) as exc:
        if rows is not None:
            exc.row = rows[exc.row]
        raise
    compares = overrides is not None and isinstance(request, ExplainRequest)
    return Work(entities, keys, overrides, rejects_unknown, request.version is None, compares)


def overrides_of(request: AboutEntities) -> Sequence[Mapping[str, Override]] | None:
    """One mapping an entity; None where there are none at all. Raises InvalidRequest."""
    features, rows = request.features, len(request.entities)
    if features is None:
        return None
    if isinstance(features, dict):
        return [features] * rows
    if len(features) != rows:
        raise InvalidRequest("features: one object for all entities, or a list with one for each")
    return features


def row_overrides(batch: Sequence[Work]) -> Sequence[Mapping[str, Override]] | None:
    """One mapping a row of the batch; None where no row has any, as most have not."""
    if all(work.overrides is None for work in batch):
        return None
    return [values for work in batch for values in (work.overrides or itertools.repeat(NO_OVERRIDES, len(work)))]
