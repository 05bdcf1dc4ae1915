"""The shipped fake: features from a dictionary, for tests of everything behind a reader."""

import asyncio
from collections.abc import Mapping, Sequence

from feature_client.online.decoding import empty_batch
from feature_client.online.plan import Column, EntityKey, ReadPlan
from feature_client.online.reader import FeatureStoreUnavailable
from feature_client.schema import FeatureBatch

Value = float | str | None
ViewRow = tuple[float, Mapping[str, Value]]
"""Event time in epoch seconds, and stored field -> value."""


class MemoryReader:
    """Keeps the FeatureReader protocol (reader.py) without a store.

    rows: entity -> view -> ViewRow; an entity is the value of its join key, or a tuple of them, sorted by name.
    A value of another type than its feature's is corrupt, as it is in a store.
    failure: when set, every call fails with it. delay_s: how long a store would take.
    """

    def __init__(
        self,
        rows: Mapping[str | int | tuple[str | int, ...], Mapping[str, ViewRow]],
        *,
        failure: str | None = None,
        delay_s: float = 0.0,
    ) -> None:
        self.rows = rows
        self.failure = failure
        self.delay_s = delay_s

    async def fetch(self, plan: ReadPlan, keys: Sequence[EntityKey], timeout_s: float) -> FeatureBatch:
        """See FeatureReader."""
        await self.ping(timeout_s)
        batch = empty_batch(plan, len(keys))
        corrupt = set()
        for row, key in enumerate(keys):
            stored = self.rows.get(key.values if len(key.values) > 1 else key.values[0], {})
            for view in plan.views:
                if view.name not in stored:
                    continue
                batch.event_times[row, view.index], values = stored[view.name]
                for column in view.columns:
                    value = values.get(str(column.feature.field))
                    if not _fits(column, value):
                        corrupt.add((row, column.feature.name))
                    elif isinstance(value, str):
                        batch.strings[row, column.index] = value
                    elif value is not None:
                        batch.numbers[row, column.index] = value
        return FeatureBatch(batch.numbers, batch.strings, batch.event_times, frozenset(corrupt))

    async def ping(self, timeout_s: float) -> None:
        """See FeatureReader."""
        try:
            async with asyncio.timeout(timeout_s):
                await asyncio.sleep(self.delay_s)
        except TimeoutError as exc:
            raise FeatureStoreUnavailable("the store did not answer in time") from exc
        if self.failure is not None:
            raise FeatureStoreUnavailable(self.failure)

    async def close(self) -> None:
        """Nothing is open."""


def _fits(column: Column, value: Value) -> bool:
    return value is None or isinstance(value, str) == (column.feature.kind == "category")
