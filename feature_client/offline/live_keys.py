"""Entities that an online store holds right now, found by SCAN and read off their keys."""

from collections.abc import Sequence
from dataclasses import dataclass

from redis.asyncio import Redis

from feature_client.online import entity_key, wire
from feature_client.online.entity_key import EntityValues, ForeignKey

STEP = 1_000
"""Keys that Redis looks at in one SCAN: about a millisecond of its time."""
MAX_STEPS = 1_000
GLOB = b"*?[]\\^"
"""What SCAN's patterns take for more than itself."""


@dataclass(frozen=True)
class LiveKeys:
    """found: entities. exhausted: whether SCAN reached the end of the store or the sample first, and not MAX_STEPS."""

    found: list[EntityValues]
    exhausted: bool


async def sample(redis: "Redis", project: str, join_keys: Sequence[str], count: int) -> LiveKeys:
    """Up to `count` entities with exactly these join keys, in no order. Looks at no more than a million keys."""
    pattern = _literally(wire.entity_key_head(sorted(join_keys))) + b"*" + _literally(project.encode())
    found: dict[bytes, EntityValues] = {}
    cursor = 0
    for _ in range(MAX_STEPS):
        cursor, keys = await redis.scan(cursor, match=pattern, count=STEP)
        for key in keys:
            try:
                found[key] = entity_key.decode(key, project)
            except ForeignKey:
                continue
        if not cursor or len(found) >= count:
            return LiveKeys(list(found.values())[:count], exhausted=True)
    return LiveKeys(list(found.values()), exhausted=False)


async def has_entityless(redis: "Redis", project: str) -> bool:
    """Whether rows of views without entities were pushed: they lie under a key that Feast never reads."""
    return bool(await redis.exists(entity_key.encode({}, project)))


def _literally(text: bytes) -> bytes:
    return b"".join(b"\\" + bytes([byte]) if byte in GLOB else bytes([byte]) for byte in text)
