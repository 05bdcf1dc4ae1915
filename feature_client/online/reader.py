"""What every reader of online features promises, and what can go wrong."""

from collections.abc import Sequence
from typing import Protocol

from feature_client.online.plan import Entity, EntityError, EntityKey, ReadPlan
from feature_client.schema import FeatureBatch

__all__ = ["Entity", "EntityError", "EntityKey", "FeatureReader", "FeatureStoreUnavailable"]


class FeatureStoreUnavailable(Exception):
    """The store did not answer in time, refused, or answered something that is not a reply to what was asked."""


class FeatureReader(Protocol):
    async def fetch(self, plan: ReadPlan, keys: Sequence[EntityKey], timeout_s: float) -> FeatureBatch:
        """The stored values of `keys` (`plan.keys(entities)`), one row each, in their order; duplicates are allowed.

        Missing values, rows and entities are NaN or None, never an error.
        Raises FeatureStoreUnavailable, after at most `timeout_s`.
        """

    async def ping(self, timeout_s: float) -> None:
        """Raises FeatureStoreUnavailable."""

    async def close(self) -> None: ...
