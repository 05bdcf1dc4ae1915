"""What every reader of online features promises, and what can go wrong."""

from collections.abc import Sequence
from typing import Protocol

from feature_client.online.plan import Entity, EntityError, ReadPlan
from feature_client.schema import FeatureBatch

__all__ = ["Entity", "EntityError", "FeatureReader", "FeatureStoreUnavailable"]


class FeatureStoreUnavailable(Exception):
    """The store did not answer in time, refused, or answered something that is not a reply to what was asked."""


class FeatureReader(Protocol):
    async def fetch(self, plan: ReadPlan, entities: Sequence[Entity], timeout_s: float) -> FeatureBatch:
        """The stored values of `entities`, one row each, in their order; duplicates are allowed.

        Missing values, rows and entities are NaN or None, never an error.
        Raises FeatureStoreUnavailable (after at most `timeout_s`) and EntityError.
        """

    async def ping(self, timeout_s: float) -> None:
        """Raises FeatureStoreUnavailable."""

    async def close(self) -> None: ...
