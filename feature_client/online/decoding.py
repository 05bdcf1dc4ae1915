"""Replies of a store, in Feast's bytes, become a FeatureBatch."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from feature_client.online import wire
from feature_client.online.plan import EntityKey, ReadPlan, ViewColumns
from feature_client.schema import FeatureBatch

Reply = Sequence[bytes | None]
"""What a store holds under `ReadPlan.fields`, None where nothing."""


@dataclass(frozen=True)
class Refusal:
    """What a store answers for one entity alone instead of a reply."""

    reason: str


class WrongEntity(Exception):
    """A row says that it belongs to another entity than the one asked for."""


def decode(plan: ReadPlan, keys: Sequence[EntityKey], replies: Sequence[Reply | Refusal]) -> FeatureBatch:
    """One row a reply. What cannot be read is missing, and listed as corrupt; a mix-up refuses its row."""
    batch = empty_batch(plan, len(replies))
    corrupt: set[tuple[int, str]] = set()
    refused: dict[int, str] = {}
    for row, (key, reply) in enumerate(zip(keys, replies, strict=True)):
        if isinstance(reply, Refusal):
            refused[row] = reply.reason
            continue
        try:
            corrupt.update((row, name) for name in _fill_row(batch, plan, row, key, reply))
        except WrongEntity:
            # Of a reply that is somebody else's, no view can be trusted.
            batch.numbers[row], batch.strings[row], batch.event_times[row] = np.nan, None, np.nan
            refused[row] = "a reply belongs to another entity"
    return FeatureBatch(batch.numbers, batch.strings, batch.event_times, frozenset(corrupt), refused)


def _fill_row(batch: FeatureBatch, plan: ReadPlan, row: int, key: EntityKey, reply: Reply) -> list[str]:
    """Puts all views into the batch's row, and returns the features that cannot be read. Raises WrongEntity."""
    corrupt: list[str] = []
    for position, view in enumerate(plan.views):
        # Feast writes values and their event time together: without a time there is no row.
        if reply[view.time_at] is None:
            continue
        try:
            event_time = _event_time(view, key, reply)
        except wire.WireError:
            # Of a row without a legible time or owner nothing can be trusted.
            corrupt += [column.feature.name for column in view.columns]
            continue
        batch.event_times[row, position] = event_time
        corrupt += _fill(batch, row, view, reply)
    return corrupt


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
