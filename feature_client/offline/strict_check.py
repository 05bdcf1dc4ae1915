"""Whether the gateway's strict reader reads what Feast reads, where strict and Feast mean to agree.

They mean to differ in one thing: of a value of another type than declared, which Feast shows as it is, strict makes
a missing one.
"""

import math
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from feature_client.offline.comparison import Difference
from feature_client.offline.feast_answer import Answer
from feature_client.online.plan import ReadPlan
from feature_client.online.reader import EntityError, EntityKey
from feature_client.online.redis_reader import RedisReader
from feature_client.schema import FeatureBatch, FeatureSchema

MEMBERS = {
    "string": "string_val",
    "int32": "int32_val",
    "int64": "int64_val",
    "float64": "double_val",
    "float32": "float_val",
    "bool": "bool_val",
    "timestamp": "unix_timestamp_val",
}
"""Declared dtype -> the member of Value that strict takes for it."""

TIME_TOLERANCE_S = 1e-5
"""Feast takes event times through microseconds."""


class StrictCheck:
    """refused: rows whose keys the strict reader does not take, such as an empty id. Belongs to one event loop."""

    def __init__(self, schema: FeatureSchema, connection_string: str, timeout_s: float) -> None:
        self.plan = ReadPlan(schema)
        self.reader = RedisReader.from_connection_string(connection_string, timeout_s)
        self.timeout_s = timeout_s

    async def close(self) -> None:
        await self.reader.close()

    def keys(self, rows: Sequence[Mapping[str, Any]]) -> dict[int, EntityKey]:
        """Row -> its key; rows whose key strict refuses are left out, such as those of an empty id."""
        keys = {}
        for number, row in enumerate(rows):
            try:
                [keys[number]] = self.plan.keys([{key.name: str(row[key.name]) for key in self.plan.join_keys}])
            except EntityError:
                continue
        return keys

    async def differences(self, answer: Answer, rows: Mapping[int, EntityKey]) -> list[Difference]:
        """rows: of `keys`. Raises FeatureStoreUnavailable."""
        batch = await self.reader.fetch(self.plan, list(rows.values()), self.timeout_s)
        found = []
        for at, row in enumerate(rows):
            if at in batch.refused:  # such as a row that says it is another entity's
                found.append(Difference("(a whole row)", row, "an answer", batch.refused[at]))
                continue
            for name, theirs, ours in self._pairs(answer, row, batch, at):
                if not _same(theirs, ours):
                    found.append(Difference(name, row, repr(theirs), repr(ours)))
        return found

    def _pairs(self, answer: Answer, row: int, batch: FeatureBatch, at: int) -> list[tuple[str, Any, Any]]:
        """Name, what strict should say, and what it says; of every feature and of every view's time."""
        schema = self.plan.schema
        pairs: list[tuple[str, Any, Any]] = []
        for column, feature in enumerate(schema.stored_numbers):
            name, expected = _expected(answer, row, feature)
            pairs.append((name, expected, _none_for_nan(batch.numbers[at, column])))
        for column, feature in enumerate(schema.categorical):
            name, expected = _expected(answer, row, feature)
            pairs.append((name, expected, batch.strings[at, column]))
        for column, view in enumerate(schema.views):
            times = next(times for name, times in answer.times.items() if name.startswith(f"{view}__"))
            ours = _none_for_nan(batch.event_times[at, column])
            if ours is None or abs(ours - times[row]) > TIME_TOLERANCE_S:
                pairs.append((f"{view} (event time)", times[row] or None, ours))
        return pairs


def _expected(answer: Answer, row: int, feature: Any) -> tuple[str, Any]:
    name = f"{feature.view}__{feature.field}"
    value = answer.columns[name][row]
    # Without an event time there is no row; a value of another type is none.
    if not answer.times[name][row] or answer.members[name][row] != MEMBERS[feature.dtype]:
        return name, None
    if value is None or feature.kind == "category":
        return name, value
    return name, value.timestamp() if isinstance(value, datetime) else float(value)


def _none_for_nan(number: Any) -> float | None:
    return None if math.isnan(number) else float(number)


def _same(theirs: Any, ours: Any) -> bool:
    # repr: 0.0 is not -0.0. Strict shows NaN, which Feast cannot store in a scalar, as missing.
    return repr(theirs) == repr(ours) or (isinstance(theirs, float) and math.isnan(theirs) and ours is None)
