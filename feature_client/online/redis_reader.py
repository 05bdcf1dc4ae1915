"""Features from Feast's Redis: one round trip a batch, decoded strictly."""

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeVar

from redis.asyncio import ConnectionPool, Redis
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError
from redis.exceptions import TimeoutError as RedisTimeoutError

from feature_client.online.connection import connect, parse
from feature_client.online.decoding import Refusal, Reply, decode
from feature_client.online.plan import EntityKey, ReadPlan
from feature_client.online.reader import FeatureStoreUnavailable
from feature_client.schema import FeatureBatch

TIMEOUT_S = 0.05
CHUNK = 200
"""Entities of one round trip: between two of them other reads and requests get their turn on the event loop."""

Answer = TypeVar("Answer")


class RedisReader:
    """Keeps the FeatureReader protocol (reader.py) on one Redis server. Belongs to the event loop that uses it."""

    def __init__(self, redis: "Redis") -> None:
        self.redis = redis
        self._reads: Counter[Redis] = Counter()

    @classmethod
    def from_connection_string(cls, text: str, timeout_s: float = TIMEOUT_S) -> "RedisReader":
        """text: as in Feast's feature_store.yaml. timeout_s: of connecting, and of one reply.

        Raises ConnectionStringError. Connects when first used.
        """
        return cls(connect(parse(text), timeout_s))

    async def fetch(self, plan: ReadPlan, keys: Sequence[EntityKey], timeout_s: float) -> FeatureBatch:
        """See FeatureReader."""
        ends = time.monotonic() + timeout_s
        parts = []
        for start in range(0, max(len(keys), 1), CHUNK):
            chunk = keys[start : start + CHUNK]
            replies = await self._read(plan, list(dict.fromkeys(key.redis_key for key in chunk)), ends)
            parts.append(decode(plan, chunk, [replies[key.redis_key] for key in chunk]))
        batch = FeatureBatch.join(parts)
        if batch.refused:
            await self._renew(self.redis)
        return batch

    async def ping(self, timeout_s: float) -> None:
        """See FeatureReader."""
        await self._ask(lambda redis: redis.execute_command("PING"), timeout_s)  # type: ignore[no-untyped-call]

    async def close(self) -> None:
        await self.redis.aclose()

    async def _read(self, plan: ReadPlan, keys: Sequence[bytes], ends: float) -> dict[bytes, Reply | Refusal]:
        if not keys:
            return {}

        async def read(redis: Redis) -> list[Any]:
            pipeline = redis.pipeline(transaction=False)
            for key in keys:
                pipeline.execute_command("HMGET", key, *plan.fields)
            # Errors come back in their places: raised, their messages would hold the keys.
            return await pipeline.execute(raise_on_error=False)

        replies = await self._ask(read, ends - time.monotonic())
        # A key of another type is its own fault and no other's.
        usable = [Refusal("Redis refused: WRONGTYPE") if _is_wrong_type(reply) else reply for reply in replies]
        if error := next((reply for reply in usable if isinstance(reply, RedisError)), None):
            raise FeatureStoreUnavailable(_reason(error))
        if len(usable) != len(keys) or not all(_answers(reply, len(plan.fields)) for reply in usable):
            await self._renew(self.redis)
            raise FeatureStoreUnavailable("Redis sent something that is not the reply to what was asked")
        return dict(zip(keys, usable, strict=True))

    async def _ask(self, command: Callable[[Redis], Awaitable[Answer]], timeout_s: float) -> Answer:
        """Runs `command`, and once more where its connection turns out to be closed; all within `timeout_s`."""
        try:
            async with asyncio.timeout(timeout_s):
                redis = self.redis
                try:
                    return await self._run(command, redis)
                except RedisConnectionError as exc:
                    # Its sub-classes are refusals (LOADING, NOAUTH), to which asking again is no answer.
                    if type(exc) is not RedisConnectionError:
                        raise
                    await self._renew(redis)
                    return await self._run(command, self.redis)
        # ValueError: redis-py takes a malformed MOVED apart while it builds the error.
        except (RedisError, OSError, TimeoutError, ValueError) as exc:
            raise FeatureStoreUnavailable(_reason(exc)) from exc

    async def _run(self, command: Callable[[Redis], Awaitable[Answer]], redis: Redis) -> Answer:
        self._reads[redis] += 1
        try:
            return await command(redis)
        finally:
            self._reads[redis] -= 1
            await self._close_unused(redis)

    async def _renew(self, redis: Redis) -> None:
        """From now on reads take new connections: what else lies unread on the old ones is unknown.

        Not closed under those who still read from them (redis-py then fails in ways of its own): the last one does.
        """
        if redis is self.redis:
            pool = redis.connection_pool
            self.redis = Redis.from_pool(ConnectionPool(pool.connection_class, **pool.connection_kwargs))
        await self._close_unused(redis)

    async def _close_unused(self, redis: Redis) -> None:
        if redis is not self.redis and self._reads[redis] <= 0:
            del self._reads[redis]
            await redis.aclose()


def _is_wrong_type(reply: object) -> bool:
    return isinstance(reply, RedisError) and str(reply).startswith("WRONGTYPE")


def _answers(reply: object, fields: int) -> bool:
    return isinstance(reply, Refusal) or (
        isinstance(reply, list)
        and len(reply) == fields
        and all(value is None or isinstance(value, bytes) for value in reply)
    )


def _reason(error: Exception) -> str:
    """What went wrong, for the log; messages of the server are left out, because they may quote keys."""
    if isinstance(error, TimeoutError | RedisTimeoutError):
        return "Redis did not answer in time"
    if type(error) is RedisConnectionError or isinstance(error, OSError):
        return "Redis closed or refused the connection"
    code = str(error).split(" ", 1)[0]
    return f"Redis refused: {code if code.isalpha() and code.isupper() else type(error).__name__}"
