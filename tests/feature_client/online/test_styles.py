"""How a hash is read changes nothing of what is read: all at once, or field by field; written in whatever order."""

import asyncio
import itertools
import math
import random
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest

from feature_client.online.plan import Hash, ReadPlan
from feature_client.online.redis_reader import CHUNK, RedisReader, _Style
from feature_client.schema import FeatureBatch
from tests.feature_client.online.shop import SHOP, TOGETHER
from tests.feature_client.online.test_decoding import a_value, same
from tests.feature_client.online.varints import varint

TIMEOUT_S = 5.0
JUNK = [b"", b"\x98\x01\x00", b"\xff", b"\x29", b"*999999", b"\x20" + b"\xff" * 11]


def row(draw: random.Random, hash_: Hash, owner: bytes, *, damaged: bool) -> Mapping[bytes, bytes]:
    """Some of the fields, beside others, in any order."""
    fields: dict[bytes, bytes] = {}
    for block in hash_.blocks:
        for at in range(block.at.start, block.at.stop):
            value = draw.choice(JUNK) if damaged and draw.random() < 0.1 else a_value(draw, block.dtype)
            if value is not None:
                fields[hash_.fields[at]] = value
    for view in hash_.views:
        if draw.random() < 0.9:
            fields[hash_.fields[view.time_at]] = b"\x08" + varint(draw.randrange(10**9))
        if view.id_at is not None and draw.random() < 0.9:
            fields[hash_.fields[view.id_at]] = b"\x12\x02zz" if damaged and draw.random() < 0.05 else owner
    if draw.random() < 0.3:
        fields |= {b"_ts:other": b"\x08\x01", b"abcd": b"\x12\x01a"}
    if draw.random() < 0.03:
        fields |= {b"%04d" % number: b"x" for number in range(600)}  # a hash table, not a list
    shuffled = list(fields.items())
    draw.shuffle(shuffled)
    return dict(shuffled)


@pytest.mark.parametrize("plan", [ReadPlan(SHOP), ReadPlan(TOGETHER)], ids=["one entity", "three entities"])
def test_whole_or_by_fields_the_same_is_read(redis: Any, redis_url: str, plan: ReadPlan) -> None:
    draw = random.Random(7)
    entities = [
        {key.name: {"customer_id": f"k{one}", "account_id": str(two)}[key.name] for key in plan.join_keys}
        for one, two in itertools.product(range(30), range(3))
    ]
    styles = list(itertools.product([False, True], repeat=len(plan.hashes)))

    async def read(asked: Sequence[dict[str, str]]) -> list[FeatureBatch]:
        batches = []
        for style in styles:
            reader = RedisReader.from_connection_string(redis_url, TIMEOUT_S)
            for hash_, whole in zip(plan.hashes, style, strict=True):
                reader._styles[hash_] = _Style(whole, math.inf)
            batches.append(await reader.fetch(plan, plan.keys(asked), TIMEOUT_S))
            await reader.close()
        return batches

    seen = 0
    for round_ in range(12):
        redis.flushall()
        for key in plan.keys(entities):
            for hash_, redis_key, owner in zip(plan.hashes, key.redis_keys, key.owners, strict=True):
                if (fields := row(draw, hash_, owner, damaged=round_ % 2 == 1)) and draw.random() < 0.95:
                    redis.delete(redis_key)
                    redis.hset(redis_key, mapping=fields)
        asked = draw.choices(entities, k=draw.choice([1, 2, 30, CHUNK + 30]))
        by_fields, *others = asyncio.run(read(asked))
        for other in others:
            assert same(other, by_fields)
        seen += int((~np.isnan(by_fields.numbers)).sum())
    assert seen > 1_000


@pytest.mark.parametrize(("extra", "whole"), [(0, True), (40, False), (600, False)])
def test_all_is_read_where_the_hash_is_small_and_most_of_it_is_wanted(
    redis: Any,
    redis_url: str,
    extra: int,
    whole: bool,  # noqa: FBT001
) -> None:
    plan = ReadPlan(SHOP)
    keys = plan.keys([{"customer_id": f"c{number}"} for number in range(5)])
    for key in keys:
        fields = dict.fromkeys(plan.hashes[0].fields, b" \x01")
        redis.hset(key.redis_keys[0], mapping=fields | {b"%04d" % number: b"x" for number in range(extra)})

    async def scenario() -> bool:
        reader = RedisReader.from_connection_string(redis_url, TIMEOUT_S)
        await reader.fetch(plan, keys, TIMEOUT_S)
        await asyncio.gather(*reader._samples)
        style = reader._styles[plan.hashes[0]]
        await reader.fetch(plan, keys, TIMEOUT_S)
        await reader.close()
        return style.whole

    assert asyncio.run(scenario()) == whole
