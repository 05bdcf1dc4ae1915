"""What every reader of online features promises, and what can go wrong."""

from collections.abc import Sequence
from typing import Protocol

from feature_client.online.plan import Entity, EntityError, EntityKey, ReadPlan
from feature_client.schema import FeatureBatch

__all__ = ["Entity", "EntityError", "EntityKey", "FeatureReader", "FeatureStoreUnavailable"]


class FeatureStoreUnavailable(Exception):
    """The store did not answer in time, refused, or answered something that is not a reply to what was asked.

    Messages are for the log and never quote keys or values.
    """

    default = "the feature store is unavailable"

    def __init__(self, message: str | None = None) -> None:
        super().__init__(message or self.default)


class StoreTimeout(FeatureStoreUnavailable):
    """No answer in time: the store is slow, stalled, or out of reach."""

    default = "Redis did not answer in time"


class StoreDisconnected(FeatureStoreUnavailable):
    """Nothing listens, or the connection was closed under a read."""

    default = "Redis closed or refused the connection"


class StoreLoading(FeatureStoreUnavailable):
    """Redis is up but has no data to answer from yet (LOADING, MASTERDOWN)."""


class StoreReadOnly(FeatureStoreUnavailable):
    """A command that writes was sent to a replica (READONLY): the address is not the primary's."""


class StoreDenied(FeatureStoreUnavailable):
    """The password, the user or its permissions do not fit (NOAUTH, WRONGPASS, NOPERM): waiting does not help."""


class FeatureReader(Protocol):
    async def fetch(self, plan: ReadPlan, keys: Sequence[EntityKey], timeout_s: float) -> FeatureBatch:
        """The stored values of `keys` (`plan.keys(entities)`), one row each, in their order; duplicates are allowed.

        Missing values, rows and entities are NaN or None, never an error.
        Raises FeatureStoreUnavailable, after at most `timeout_s`.
        """

    async def ping(self, timeout_s: float) -> None:
        """Raises FeatureStoreUnavailable."""

    async def close(self) -> None: ...
