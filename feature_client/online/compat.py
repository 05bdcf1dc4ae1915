"""Compat mode: exactly what Feast's `get_online_features(...).to_dict()` answers over the same Redis, without Feast.

The reference for equality, not the fast path: that is redis_reader.py, which is strict.
What differs on purpose: where Feast silently reads the wrong row or none (a missing join key, an alias that loses to
its join key), this is an EntityError.
"""

from collections.abc import Sequence
from typing import Any

from redis.asyncio import Redis
from redis.exceptions import RedisError

from feature_client.online import wire
from feature_client.online.compat_plan import CompatPlan, CompatView, Row
from feature_client.online.connection import connect, parse
from feature_client.online.multiplexer import GARBAGE
from feature_client.online.reader import FeatureStoreUnavailable
from feature_client.online.value import decode, decode_event_time

TIMEOUT_S = 1.0
CHUNK = 500
"""Hashes of one round trip."""
TIMES = "__ts"
"""Behind the name of a column: its event times."""


class CompatReader:
    """Belongs to the event loop that uses it."""

    def __init__(self, plan: CompatPlan, redis: "Redis") -> None:
        self.plan = plan
        self.redis = redis

    @classmethod
    def from_connection_string(cls, plan: CompatPlan, text: str, timeout_s: float = TIMEOUT_S) -> "CompatReader":
        """text: as in Feast's feature_store.yaml. timeout_s: of connecting, and of one reply.

        Raises ConnectionStringError. Connects when first used.
        """
        return cls(plan, connect(parse(text), timeout_s))

    async def get_online_features(
        self, entity_rows: Sequence[Row], *, include_event_timestamps: bool = False
    ) -> dict[str, list[Any]]:
        """Column -> one value a row: the request's join keys in its order, then the features in the plan's.

        include_event_timestamps: adds NAME__ts, in whole epoch seconds; 0 for join keys and where there is no row.
        Raises EntityError; WireError naming the feature, where one value cannot be read (Feast, too, then
        answers nothing); FeatureStoreUnavailable; RapportError where protobuf is needed and not installed.
        """
        rows = len(entity_rows)
        requested = self.plan.request(entity_rows)
        columns = dict(requested)
        times = {name: [0] * rows for name in requested}
        for view in self.plan.views:
            replies = await self._replies(view, self.plan.redis_keys(view, requested, rows))
            view_times = [_event_time(view, reply[-1]) for reply in replies]
            for at, column in enumerate(view.columns):
                name = f"{view.name}:{column.field}"
                columns[column.name] = [_value(name, reply[at], column.declared) for reply in replies]
                times[column.name] = view_times
        if not include_event_timestamps:
            return columns
        return {
            shown: values
            for name, column in columns.items()
            for shown, values in ((name, column), (f"{name}{TIMES}", list(times[name])))
        }

    async def close(self) -> None:
        await self.redis.aclose()

    async def _replies(self, view: CompatView, keys: Sequence[bytes]) -> list[list[bytes | None]]:
        """One a key, in their order: the view's values, and its event time last."""
        fields = [*(wire.value_name(view.name, column.field) for column in view.columns)]
        fields.append(wire.event_time_name(view.name))
        distinct = list(dict.fromkeys(keys))
        found: dict[bytes, list[bytes | None]] = {}
        for start in range(0, len(distinct), CHUNK):
            chunk = distinct[start : start + CHUNK]
            pipeline = self.redis.pipeline(transaction=False)
            for key in chunk:
                pipeline.execute_command("HMGET", key, *fields)
            try:
                replies = await pipeline.execute()
            except (RedisError, OSError) as exc:
                raise FeatureStoreUnavailable(f"Redis did not answer: {type(exc).__name__}") from exc
            if not all(_is_reply(reply, len(fields)) for reply in replies):
                raise FeatureStoreUnavailable(GARBAGE)
            found.update(zip(chunk, replies, strict=True))
        return [found[key] for key in keys]


def _is_reply(reply: object, fields: int) -> bool:
    return (
        isinstance(reply, list)
        and len(reply) == fields
        and all(value is None or isinstance(value, bytes) for value in reply)
    )


def _value(name: str, raw: bytes | None, declared: str | None) -> Any:
    try:
        return decode(raw or b"", declared)
    except wire.WireError as exc:
        raise wire.WireError(f"{name}: {exc}") from exc


def _event_time(view: CompatView, raw: bytes | None) -> int:
    try:
        return decode_event_time(raw or b"")
    except wire.WireError as exc:
        raise wire.WireError(f"{view.name}: {exc}") from exc
