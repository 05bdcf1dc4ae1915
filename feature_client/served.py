"""Feature vectors as a model gets them in service, whoever reads them; `rapport skew check` recomputes them."""

import asyncio
import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Protocol

from feature_client.errors import RapportError
from feature_client.online.plan import EntityError, ReadPlan
from feature_client.online.reader import FeatureStoreUnavailable
from feature_client.online.redis_reader import RedisReader
from feature_client.schema import Encoded, FeatureBatch, FeatureSchema, Override

BATCH = 200
"""Entities of one read."""

TIMEOUT_S = 10.0


class SourceError(RapportError):
    """Entities that cannot be looked up; the message says why."""


@dataclass(frozen=True)
class ServedValue:
    """value: what the model gets. computed_at: of its row; None where there is no row, or where nothing is stored.

    is_stale: its row is too old (or from the future), whether its value is used or not.
    """

    value: Override
    computed_at: datetime | None = None
    is_stale: bool = False


@dataclass(frozen=True)
class Served:
    """One entity. schema, version: of the release that answers it. features: every feature of the schema."""

    entity: str
    schema: FeatureSchema
    version: str
    as_of: datetime
    features: dict[str, ServedValue]


class Source(Protocol):
    @property
    def name(self) -> str:
        """For people, without secrets."""

    def look_up(self, entities: Sequence[str]) -> list[Served]:
        """In their order. Raises SourceError."""


class StoreSource:
    """The online store itself, through the reader of the gateway. connection: as Feast names it.

    as_of: the instant to encode for.
    """

    def __init__(self, schema: FeatureSchema, version: str, connection: str, as_of: datetime) -> None:
        self.schema = schema
        self.version = version
        self.connection = connection
        self.as_of = as_of
        self.plan = ReadPlan(schema)

    @property
    def name(self) -> str:
        """Without the options behind the address, among which is the password."""
        return f"the online store at {self.connection.partition(',')[0]}"

    def look_up(self, entities: Sequence[str]) -> list[Served]:
        """Raises SourceError."""
        try:
            return asyncio.run(self._look_up(entities))
        except FeatureStoreUnavailable as exc:
            raise SourceError(f"{self.name} cannot be read: {exc}") from exc
        except EntityError as exc:
            raise SourceError(f"not an id of this model: {exc}") from exc

    async def _look_up(self, entities: Sequence[str]) -> list[Served]:
        if len(self.plan.join_keys) != 1:
            raise SourceError("a model with several join keys cannot be looked up by one id")
        [key] = self.plan.join_keys
        reader = RedisReader.from_connection_string(self.connection, TIMEOUT_S)
        found = []
        try:
            for start in range(0, len(entities), BATCH):
                part = entities[start : start + BATCH]
                keys = self.plan.keys([{key.name: entity} for entity in part])
                stored = await reader.fetch(self.plan, keys, TIMEOUT_S)
                if refusal := stored.refusal(slice(0, len(part))):
                    raise FeatureStoreUnavailable(refusal)
                encoded = self.schema.encode(stored, self.as_of.timestamp())
                found += [self._served(entity, stored, encoded, row) for row, entity in enumerate(part)]
        finally:
            await reader.close()
        return found

    def _served(self, entity: str, stored: FeatureBatch, encoded: Encoded, row: int) -> Served:
        schema = self.schema
        times = dict(zip(schema.views, stored.event_times[row].tolist(), strict=True))
        stale = encoded.stale[row].tolist()
        features = {}
        for (name, value), feature, is_stale in zip(
            schema.decode_row(encoded, row).items(), schema.features, stale, strict=True
        ):
            time = math.nan if feature.view is None else times[feature.view]
            computed_at = None if math.isnan(time) else datetime.fromtimestamp(time, UTC)
            features[name] = ServedValue(value, computed_at, is_stale)
        return Served(entity, schema, self.version, self.as_of, features)
