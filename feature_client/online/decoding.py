"""Replies of a store, in Feast's bytes, become a FeatureBatch."""

from collections.abc import Sequence

import numpy as np

from feature_client.online import wire
from feature_client.online.plan import EntityKey, ReadPlan, ViewColumns
from feature_client.online.reader import FeatureStoreUnavailable
from feature_client.schema import FeatureBatch

Reply = Sequence[bytes | None]
"""What a store holds under `ReadPlan.fields`, None where nothing."""


class WrongEntity(FeatureStoreUnavailable):
    """A row says that it belongs to another entity than the one asked for: a mix-up must not become its score."""


def decode(plan: ReadPlan, keys: Sequence[EntityKey], replies: Sequence[Reply]) -> FeatureBatch:
    """One row a reply. What cannot be read is missing, and listed as corrupt. Raises WrongEntity."""
    batch = empty_batch(plan, len(replies))
    corrupt: set[tuple[int, str]] = set()
    for row, (key, reply) in enumerate(zip(keys, replies, strict=True)):
        for position, view in enumerate(plan.views):
            # Feast writes values and their event time together: without a time there is no row.
            if reply[view.time_at] is None:
                continue
            try:
                event_time = _event_time(view, key, reply)
            except wire.WireError:
                # Of a row without a legible time or owner nothing can be trusted.
                corrupt.update((row, column.feature.name) for column in view.columns)
                continue
            batch.event_times[row, position] = event_time
            corrupt.update((row, name) for name in _fill(batch, row, view, reply))
    return FeatureBatch(batch.numbers, batch.strings, batch.event_times, frozenset(corrupt))


def empty_batch(plan: ReadPlan, rows: int) -> FeatureBatch:
    """Everything missing."""
    return FeatureBatch(
        numbers=np.full((rows, len(plan.schema.stored_numbers)), np.nan),
        strings=np.full((rows, len(plan.schema.categorical)), None, dtype=object),
        event_times=np.full((rows, len(plan.views)), np.nan),
    )


def _event_time(view: ViewColumns, key: EntityKey, reply: Reply) -> float:
    """When the view's row was computed. Raises WireError, and WrongEntity where the row is somebody else's."""
    if view.id_at is not None:
        owner = wire.decode(reply[view.id_at] or b"", "string")
        if owner is not None and owner != str(key.values[0]):
            raise WrongEntity("a reply belongs to another entity")
    return wire.decode_event_time(reply[view.time_at] or b"")


def _fill(batch: FeatureBatch, row: int, view: ViewColumns, reply: Reply) -> list[str]:
    """Puts the view's values into the batch's row, and returns the features that cannot be read."""
    corrupt = []
    for column in view.columns:
        try:
            value = wire.decode(reply[column.at] or b"", str(column.feature.dtype))
        except wire.WireError:
            corrupt.append(column.feature.name)
            continue
        if value is not None:
            matrix = batch.strings if column.feature.kind == "category" else batch.numbers
            matrix[row, column.index] = value
    return corrupt
