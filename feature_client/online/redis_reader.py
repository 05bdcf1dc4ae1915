"""Features from Feast's Redis: one round trip a batch, decoded strictly."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeVar

from redis.asyncio import Redis
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError
from redis.exceptions import TimeoutError as RedisTimeoutError

from feature_client.online.connection import connect, parse
from feature_client.online.decoding import Reply, WrongEntity, decode
from feature_client.online.plan import Entity, ReadPlan
from feature_client.online.reader import FeatureStoreUnavailable
from feature_client.schema import FeatureBatch

TIMEOUT_S = 0.05

Answer = TypeVar("Answer")


class RedisReader:
    """Keeps the FeatureReader protocol (reader.py) on one Redis server. Belongs to the event loop that uses it."""

    def __init__(self, redis: "Redis") -> None:
        self.redis = redis

    @classmethod
    def from_connection_string(cls, text: str, timeout_s: float = TIMEOUT_S) -> "RedisReader":
        """text: as in Feast's feature_store.yaml. timeout_s: of connecting, and of one reply.

        Raises ConnectionStringError. Connects when first used.
        """
        return cls(connect(parse(text), timeout_s))

    async def fetch(self, plan: ReadPlan, entities: Sequence[Entity], timeout_s: float) -> FeatureBatch:
        """See FeatureReader."""
        keys = plan.keys(entities)
        replies = await self._read(plan, list(dict.fromkeys(key.redis_key for key in keys)), timeout_s)
        try:
            return decode(plan, keys, [replies[key.redis_key] for key in keys])
        except WrongEntity:
            await self._drop_connections()
            raise

    async def ping(self, timeout_s: float) -> None:
        """See FeatureReader."""
        await self._ask(lambda: self.redis.execute_command("PING"), timeout_s)  # type: ignore[no-untyped-call]

    async def close(self) -> None:
        await self.redis.aclose()

    async def _read(self, plan: ReadPlan, keys: Sequence[bytes], timeout_s: float) -> dict[bytes, Reply]:
        if not keys:
            return {}

        async def read() -> list[Any]:
            pipeline = self.redis.pipeline(transaction=False)
            for key in keys:
                pipeline.execute_command("HMGET", key, *plan.fields)
            # Errors come back in their places: raised, their messages would hold the keys.
            return await pipeline.execute(raise_on_error=False)

        replies = await self._ask(read, timeout_s)
        if error := next((reply for reply in replies if isinstance(reply, RedisError)), None):
            raise FeatureStoreUnavailable(_reason(error))
        if len(replies) != len(keys) or not all(_answers(reply, len(plan.fields)) for reply in replies):
            await self._drop_connections()
            raise FeatureStoreUnavailable("Redis sent something that is not the reply to what was asked")
        return dict(zip(keys, replies, strict=True))

    async def _ask(self, command: Callable[[], Awaitable[Answer]], timeout_s: float) -> Answer:
        """Runs `command`, and once more where its connection turns out to be closed; all within `timeout_s`."""
        try:
            async with asyncio.timeout(timeout_s):
                try:
                    return await command()
                except RedisConnectionError as exc:
                    # Its sub-classes are refusals (LOADING, NOAUTH), to which asking again is no answer.
                    if type(exc) is not RedisConnectionError:
                        raise
                    await self.redis.connection_pool.disconnect(inuse_connections=False)
                    return await command()
        # ValueError: redis-py takes a malformed MOVED apart while it builds the error.
        except (RedisError, OSError, TimeoutError, ValueError) as exc:
            raise FeatureStoreUnavailable(_reason(exc)) from exc

    async def _drop_connections(self) -> None:
        """All of them: what else lies unread on a connection that answered something else is unknown."""
        await self.redis.connection_pool.disconnect()


def _answers(reply: object, fields: int) -> bool:
    return (
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
