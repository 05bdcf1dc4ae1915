"""What every reader of online features promises, and what can go wrong."""

from collections.abc import Mapping, Sequence
from typing import Protocol

from feature_client.online.plan import ReadPlan
from feature_client.schema import FeatureBatch

Entity = Mapping[str, str]
"""Join key -> value, as the request wrote it: {"customer_id": "17850"}."""


class FeatureStoreUnavailable(Exception):
    """The store did not answer in time, refused, or answered something that is not a reply to what was asked."""


class EntityError(ValueError):
    """An entity id that cannot be a key of this model. `row` is its position; the message never echoes the value."""

    def __init__(self, message: str, row: int) -> None:
        super().__init__(message)
        self.row = row


class FeatureReader(Protocol):
    async def fetch(self, plan: ReadPlan, entities: Sequence[Entity], timeout_s: float) -> FeatureBatch:
        """The stored values of `entities`, one row each, in their order; duplicates are allowed.

        Missing values, rows and entities are NaN or None, never an error.
        Raises FeatureStoreUnavailable (after at most `timeout_s`) and EntityError.
        """

    async def ping(self, timeout_s: float) -> None:
        """Raises FeatureStoreUnavailable."""

    async def close(self) -> None: ...
